"""Secrets in text: by the names before them, by their look, and in whatever encoding a known one turns up."""

from __future__ import annotations

import base64
import html
import re
from functools import lru_cache
from itertools import islice, pairwise
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Span = tuple[int, int]

#: What stands in the place of a secret.
REDACTED = "[redacted]"
#: Stands in a set of secrets that may not be complete.
EVERYTHING = "\0everything"
#: The longest text that is looked through, in characters; what comes behind is left out.
MAX_TEXT = 256_000
#: How far beyond that a secret is followed, so that none is cut in two.
MAX_VALUE = 20_000
#: Shorter values are not looked for in text: they would hide half of it.
MIN_SECRET = 4
#: More and longer secrets than this are not looked for one by one: the text is hidden as a whole.
MAX_SECRETS, MAX_SECRET_CHARS = 500, 100_000
#: A text with more places to hide than this is hidden as a whole.
MAX_SPANS = 100_000

# Names ------------------------------------------------------------------------------------------------

# A name is suspect when one of its words is, or two in a row are. `discard`, `author` and `tokenizer` are other words.
_WORDS = frozenset({
    "password", "passwd", "passphrase", "passcode", "pwd", "pw", "secret", "token", "auth", "authorization", "bearer",
    "credential", "cred", "apikey", "accesskey", "privatekey", "secretkey", "card", "creditcard", "cardnumber", "cvv",
    "cvc", "csc", "iban", "ssn", "cookie", "session", "sessionid", "jwt", "otp", "pin", "csrf", "xsrf",
})  # fmt: skip
_PAIRS = frozenset({
    ("api", "key"), ("access", "key"), ("private", "key"), ("signing", "key"), ("encryption", "key"),
    ("master", "key"), ("account", "key"), ("security", "code"), ("amz", "signature"),
})  # fmt: skip
# Written together with others, as in `userpassword`: only what no other word ends with.
_ENDINGS = (
    "password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "privatekey", "secretkey",
    "sessionid", "cardnumber", "creditcard", "credential",
)  # fmt: skip

# No name is suspect that holds none of these: most names need no more than this one look.
_ROOTS = re.compile("|".join(sorted({*_WORDS, *_ENDINGS, *(second for _, second in _PAIRS)})), re.IGNORECASE)
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
_LOWER = re.compile(r"[^\W\d_]+|\d+")


@lru_cache(maxsize=4_096)
def words_of(name: str) -> tuple[str, ...]:
    """Split a name into lower-case words: ``cardNumber``, ``card-number`` and ``CARD_NUMBER`` are the same two."""
    return tuple(word.lower() for word in _CAMEL.findall(name))


@lru_cache(maxsize=4_096)
def suspect(name: str) -> bool:
    """Say whether what stands under such a name is taken for a secret."""
    if not _ROOTS.search(name):
        return False
    # split both ways: cardNumber is two words, PassWord and APIkey are one
    return any(_suspect_words(words) for words in (words_of(name), tuple(_LOWER.findall(name.lower()))))


def _suspect_words(words: tuple[str, ...]) -> bool:
    words = tuple(word[:-1] if word.endswith("s") and not word.endswith("ss") else word for word in words)
    return any(w in _WORDS or w.endswith(_ENDINGS) or w.startswith("password") for w in words) or any(
        pair in _PAIRS for pair in pairwise(words)
    )


# By their look ----------------------------------------------------------------------------------------

# What must be in the lower-cased text, and the pattern; its one group is the secret. Each is bounded or anchored, so
# that no text takes long.
_LOOKS = tuple(
    (hint, re.compile(pattern))
    for hint, pattern in (
        ("private key", r"(?s)-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(.*?)(?:-----END|\Z)"),
        (
            "authorization",
            r"(?i)\bauthorization\\*[\"']?\s*[:=]\s*\\*[\"']?(?:[a-z][\w-]{0,30}\s+)?([^\s\"',;)}\]\\]+)",
        ),
        ("cookie", r"(?i)\bcookie\\*[\"']?\s*[:=]\s*\\*[\"']?([^\"'\r\n]+)"),
        ("bearer", r"(?i)\bbearer\s+([\w.~+/=-]{8,})"),
        ("basic", r"(?i)\bbasic\s+(?=\S*[\d=+/])([\w+/=-]{8,})"),
        # --password hunter2, also in the repr of a list of words
        ("-", r"(?i)(?<![\w-])--?(?:[\w-]{0,40}-)?(?:password|passwd|token|secret)[\"']?,?\s+[\"']?([^\s\"',\[\]]+)"),
        ("://", r"(?i)\b[a-z][a-z0-9+.-]{0,30}://[^\s/?#@:\"']{0,200}:([^\s/?#\"']{1,500})@"),
        ("a", r"\b((?:AKIA|ASIA)[0-9A-Z]{16})\b"),
        ("_", r"\b((?:gh[pousr]_|github_pat_|[sr]k_(?:live|test)_)[\w-]{16,255})"),
        ("-", r"\b((?:xox[abprs]-|glpat-|sk-)[\w-]{16,255})"),
        ("eyj", r"(?<![\w-])(eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)"),
    )
)
_CARD = re.compile(r"(?<![\w.])((?:\d[ -]?){12,18}\d)(?!\w)")
# The ranges that card schemes really use: a timestamp in microseconds is not to be taken for a card.
_SCHEMES = re.compile(r"4(\d{12}|\d{15}|\d{18})|(5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3[068]\d{12}|(6[0245]|35)\d{14,17}")
_NAME = re.compile(r"(?<![\w.])([A-Za-z_][\w.-]{0,80})\\*[\"']?\s{0,4}(?:=>|==?|:(?!//))\s{0,4}")
_QUOTED = re.compile(r"[bBrRuU]{0,2}\\*([\"'])((?:(?!\1|\\).|\\.){0,20000})", re.DOTALL)
_BARE = re.compile(r"[^\s,;&\"'()\[\]{}<>]{1,20000}")
#: Words that stand before a token in a header.
SCHEMES = frozenset({"bearer", "basic", "token", "digest", "apikey"})
_CLOSING = {"[": "]", "{": "}", "(": ")"}


def scrub_patterns(text: str, limit: int = MAX_TEXT) -> str:
    """Replace what looks like a secret by ``[redacted]``.

    That is ``password=...`` and the like, ``Authorization: Bearer ...``, cookies, ``scheme://user:...@host``, private
    keys, keys of well-known services, and card numbers with a right check digit. At most ``limit`` characters of the
    text are looked through and returned.
    """
    return _without(text, _looks(text[: limit + MAX_VALUE]), limit)


def found_in(text: str) -> list[str]:
    """Return what ``scrub_patterns`` would replace."""
    text = text[: MAX_TEXT + MAX_VALUE]
    found = [text[start:end] for start, end in _merged(_looks(text))]
    return [secret for secret in found if secret != REDACTED]


def _looks(text: str) -> Iterator[Span]:
    lower = text.lower()
    for hint, look in _LOOKS:
        if hint in lower:
            found = look.finditer(text)
            yield from (match.span(1) for match in found if not text.startswith(REDACTED, match.start(1)))
    yield from (match.span(1) for match in _CARD.finditer(text) if is_card(match[1]))
    last = 0
    for match in _NAME.finditer(text) if ":" in text or "=" in text else ():
        if match.start() >= last and suspect(match[1]):
            value = _value(text, match.end())
            last = value[1]
            yield value


def _value(text: str, start: int) -> Span:
    """Return where the value begins and ends that stands after ``name =``."""
    if text.startswith(REDACTED, start):
        return start, start + len(REDACTED)
    quoted = _QUOTED.match(text, start)
    if quoted:
        return quoted.span(2)
    bare = _BARE.match(text, start)
    if bare and bare[0] in {"None", "null", "True", "False", "true", "false"}:
        return start, start
    if bare and bare[0].lower() in SCHEMES:
        if text.startswith(REDACTED, bare.end() + 1):
            return bare.end() + 1, bare.end() + 1 + len(REDACTED)
        bare = _BARE.match(text, bare.end() + 1) or bare
    end = bare.end() if bare else start
    return start, _closed(text, end) if text[end : end + 1] in _CLOSING else end


def _closed(text: str, start: int) -> int:
    """Return where a bracket is closed, the end of what was looked at where it is not."""
    opening = text[start]
    closing, open_ones = _CLOSING[opening], 0
    end = min(len(text), start + MAX_VALUE)
    for place in range(start, end):
        open_ones += (text[place] == opening) - (text[place] == closing)
        if open_ones == 0:
            return place + 1
    return end


def is_card(text: str) -> bool:
    """Say whether digits (with blanks or dashes) are a card number: a known range, a right check digit (Luhn)."""
    digits = re.sub(r"[ -]", "", text)
    if not _SCHEMES.fullmatch(digits):
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0  # noqa: PLR2004 - Luhn's own


# By their value ---------------------------------------------------------------------------------------


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Replace every one of the secrets by ``[redacted]``, also where it is quoted, escaped or encoded.

    At most ``MAX_TEXT`` characters are returned. With too many secrets, or not all, the whole text is hidden.
    """
    wanted = set(islice(secrets, MAX_SECRETS + 1))
    if EVERYTHING in wanted or len(wanted) > MAX_SECRETS or sum(map(len, wanted)) > MAX_SECRET_CHARS:
        return REDACTED
    window = text[: MAX_TEXT + MAX_VALUE]
    found = (span for secret in wanted if len(secret) >= MIN_SECRET for span in _places(window, secret))
    spans = list(islice(found, MAX_SPANS + 1))
    return REDACTED if len(spans) > MAX_SPANS else _without(text, spans, MAX_TEXT)


def _places(text: str, secret: str) -> Iterator[Span]:
    for form in _forms(secret):
        if form in text:
            yield from _occurrences(re.compile(re.escape(form)), text)
    if not _UNESCAPED.fullmatch(secret):
        for start in range(0, len(secret), _CHUNK):
            chunk = secret[max(start - MIN_SECRET, 0) : start + _CHUNK]  # never a short rest alone
            yield from _occurrences(_escaped(chunk), text)


def _occurrences(pattern: re.Pattern[str], text: str) -> Iterator[Span]:
    match = pattern.search(text)
    while match:
        yield match.span()
        match = pattern.search(text, match.start() + 1)  # they may overlap


# What repr(), JSON and the like leave as it is, however often one is put into the other.
_UNESCAPED = re.compile(r"[ !#-&(-.0-\[\]-_a-~]*")
_CHUNK = 500
_SLASHES = r"\\{1,16}"
_SHORT = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f", "\v": "v", "\a": "a", "\0": "0"}


def _escaped(secret: str) -> re.Pattern[str]:
    """Make a pattern of a secret as it is and as it is escaped: by repr, ascii, JSON, bytes, up to four times over."""
    return re.compile("".join(_escapes(part) for part in re.findall(r"\\+|.", secret, re.DOTALL)))


def _escapes(part: str) -> str:
    if part[0] == "\\":
        return rf"\\{{{len(part)},{16 * len(part)}}}"
    if part in "'\"`/":
        return rf"\\{{0,16}}{part}"
    if _UNESCAPED.fullmatch(part):
        return re.escape(part)
    number = ord(part)
    units = part.encode("utf-16-be", "surrogatepass")
    data = part.encode("utf-8", "surrogatepass")
    ways = [
        f"x{number:02x}", f"u{number:04x}", f"U{number:08x}", _SHORT.get(part, f"u{number:04x}"),
        _SLASHES.join(f"x{byte:02x}" for byte in data),
        _SLASHES.join(f"u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)),
    ]  # fmt: skip
    return f"(?:{re.escape(part)}|{_SLASHES}(?i:{'|'.join(ways)}))"


def _forms(secret: str) -> set[str]:
    """Return how a secret may be encoded: not at all, for HTML and URLs, in hexadecimal, in base64."""
    data = secret.encode("utf-8", "backslashreplace")
    forms = {secret, html.escape(secret), html.escape(secret, quote=False), data.hex(), data.hex().upper()}
    for encoded in (quote(data, safe=""), quote(data), quote_plus(data)):
        forms |= {encoded, re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), encoded)}
    return {form for form in forms | _base64(data) if len(form) >= MIN_SECRET}


def _base64(data: bytes) -> set[str]:
    """Return what base64 makes of data: alone, and in the midst of other data, where it begins at one of three bits."""
    whole = base64.b64encode(data).decode()
    forms = {whole, whole.rstrip("=")}
    for offset in range(3):
        padded = base64.b64encode(b"\0" * offset + data).decode()
        core = padded[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
        if len(core) > MIN_SECRET:  # shorter ones turn up in ordinary text
            forms.add(core)
    return forms | {form.translate(_URL_SAFE) for form in forms}


_URL_SAFE = str.maketrans("+/", "-_")


# Replacing --------------------------------------------------------------------------------------------


def _without(text: str, spans: Iterable[Span], limit: int) -> str:
    """Replace spans of a text, cut to ``limit`` of its own characters."""
    kept: list[str] = []
    last = 0
    for start, end in _merged(spans):
        if start >= limit:
            break
        kept += [text[last:start], REDACTED]
        last = end
    kept.append(text[last:limit])
    if len(text) > limit:
        kept.append(f"... {len(text) - limit} characters left out ...")
    return "".join(kept)


def _merged(spans: Iterable[Span]) -> Iterator[Span]:
    """Sort spans and join those that overlap; empty ones are dropped."""
    last: Span | None = None
    for span in sorted(span for span in spans if span[1] > span[0]):
        if last is None or span[0] >= last[1]:
            if last is not None:
                yield last
            last = span
        else:
            last = (last[0], max(last[1], span[1]))
    if last is not None:
        yield last
