"""Secrets are not shown, by whatever name, at whatever depth, in whatever encoding; and nothing takes long."""

from __future__ import annotations

import base64
import html
import inspect
import json
import time
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_durable import redaction
from celery_durable.redaction import REDACTED, arguments, scrub, scrub_patterns, secrets_of, shown, suspect

SUSPECT = [
    "password", "PASSWORD", "user_password", "userPassword", "PassWord", "passwd", "db_passwd2", "passphrase", "pwd",
    "secret", "client_secret", "token", "tokens", "accessToken", "oauth2_token", "X-Auth-Token", "Authorization",
    "proxy-authorization", "api_key", "apiKey", "APIkey", "X-Api-Key", "apikey", "access_key", "AWS_SECRET_ACCESS_KEY",
    "privateKey", "credential", "credentials", "card", "cardNumber", "credit-card", "cvv", "cvv2", "cvc", "iban",
    "customer.iban", "ssn", "cookie", "Set-Cookie", "session", "sessionId", "jwt", "pin_code",
]  # fmt: skip
HARMLESS = [
    "discard", "cardinal", "cardiology", "tokenizer", "author", "authors", "secretary", "secretariat", "wildcard",
    "postcard", "scorecard", "pinned", "shopping", "spin", "keyboard", "monkey", "access", "compass", "passenger",
    "obsession", "sessional", "urban", "user", "order_id", "amount", "", "_", "key", "private", "1",
]  # fmt: skip
MARK = "zq7"  # what every seeded secret holds, and nothing else does


@pytest.mark.parametrize("name", SUSPECT)
def test_suspect(name):
    assert suspect(name)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless(name):
    assert not suspect(name)


# Arguments --------------------------------------------------------------------------------------------


def pay(order, password, /, amount, *tokens, card=None, **more): ...


SIGNATURE = inspect.signature(pay)


def test_positional_arguments_have_the_names_of_their_parameters():
    args, kwargs = arguments(SIGNATURE, (1, "hunter2", 5, "t1", "t2"), {"card": {"no": 1}, "note": "hi"})
    assert args == (1, REDACTED, 5, REDACTED, REDACTED)
    assert kwargs == {"card": REDACTED, "note": "hi"}


def test_declared_names_in_any_spelling_at_any_depth():
    value = {"deep": [{"taxNumber": "x1"}, {"tax-number": 7}, {"tax": 1}, {"number": 2}]}
    _, kwargs = arguments(None, (), value, ["tax_number"])
    assert kwargs == {"deep": [{"taxNumber": REDACTED}, {"tax-number": REDACTED}, {"tax": 1}, {"number": 2}]}


def test_what_is_no_secret_is_left_alone():
    value = {
        "password": None,
        "token": True,
        "max_tokens": 4096,
        "session_timeout": 2.5,
        "n": [1, 2.5, "x", b"y", None],
    }
    assert arguments(None, (value,), {}) == ((value,), {})
    assert arguments(None, (), {"max_tokens": 4096}, ["max_tokens"])[1] == {"max_tokens": REDACTED}


@dataclass
class Payment:
    owner: str
    card_number: str


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("pin", "place")
    pin: int
    place: str


Pair = namedtuple("Pair", "user password")  # noqa: PYI024 - the plain kind, without types


class Holder:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class Wrapped(Mapping[str, Any]):
    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


@pytest.mark.parametrize(
    "value",
    [
        Payment("Ann", "zq7-1234"),
        Slotted(7771234, "here"),
        Pair("ann", "zq7"),
        Holder(api_key="zq7", other=Holder(token="zq7")),
        Wrapped(secret="zq7"),
        OrderedDict(secret="zq7"),
        ("Authorization", "Bearer zq7"),
        [["X-Api-Key", "zq7"], ["Accept", "*/*"]],
        (b"cookie", b"a=zq7"),
        {b"password": "zq7"},
        {"name": "password", "value": "zq7"},
        [{"key": "Authorization", "value": "zq7"}],
        {"ok": {("a", "b"): {"token": ["zq7", {"x": "zq7"}]}}},
        "redis://:zq7@localhost/0",
        '{"user": "ann", "password": "zq7"}',
        "Authorization: Bearer zq7-zq7-zq7",
        {1, ("token", "zq7")},
    ],
    ids=lambda value: type(value).__name__,
)
def test_shapes(value):
    text = "".join(shown(*arguments(None, [value], {"x": value})))
    assert MARK not in text
    assert "7771234" not in text
    assert REDACTED in text


def test_objects_are_shown_by_their_attributes():
    args, _ = arguments(None, [Payment("Ann", "41"), Slotted(1, "x"), {2}, uuid.UUID(int=1), Holder()], {})
    assert repr(args[0]) == "Payment(owner='Ann', card_number='[redacted]')"
    assert repr(args[1]) == "Slotted(pin='[redacted]', place='x')"
    assert repr(args[2]) == "set([2])"
    assert repr(args[3]) == "UUID('00000000-0000-0000-0000-000000000001')"


def test_a_card_number_is_hidden_under_any_name():
    args, kwargs = arguments(None, [4111111111111111, 1700000000000000], {"note": "card 4111 1111 1111 1111"})
    assert args == [REDACTED, 1700000000000000]
    assert kwargs == {"note": "card [redacted]"}


# Bounds -----------------------------------------------------------------------------------------------


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError

    def __getattribute__(self, name: str) -> Any:
        raise KeyError(name)


class Broken(Wrapped):
    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)


class Liar:
    __slots__ = ()

    def __repr__(self) -> Any:
        return 7


def nested(depth: int, width: int = 1) -> Any:
    value: Any = {"token": "zq7-deep"}
    for _ in range(depth):
        value = [value] * width
    return value


@pytest.mark.parametrize("number", range(9))
def test_hostile_values_are_shown_somehow(number):
    value = [Hostile(), Broken(a=1), Liar(), 10**5000, object(), type, len, "\ud800", b"\xff"][number]
    texts = shown(*arguments(None, (value,), {"x": value}), limit=100)
    assert all(0 < len(text) <= 100 for text in texts)
    assert all(shown((value,), {"x": value}, limit=100))
    assert secrets_of(None, (value,), {}) is not None


def test_a_cycle_ends():
    loop: dict[str, Any] = {"password": "hunter2"}
    loop["again"] = [loop]
    assert arguments(None, (loop,), {})[0][0]["password"] == REDACTED
    assert "<cycle>" in shown(*arguments(None, (loop,), {}))[0]
    assert secrets_of(None, (loop,), {}) == {"hunter2"}


@pytest.mark.parametrize(
    "value",
    [
        nested(5_000),
        nested(60, width=10),
        ["x"] * 2_000_000,
        {str(i): i for i in range(300_000)},
        "password=(" * 200_000,
    ],
    ids=["deep", "billion laughs", "wide", "many keys", "long text"],
)
def test_huge_values_take_no_time(value):
    begin = time.process_time()
    texts = shown(*arguments(None, (value,), {"x": value}), limit=500)
    secrets = secrets_of(None, (value,), {})
    took = time.process_time() - begin
    assert took < 8  # seconds of this process; it takes one
    assert all(len(text) <= 500 for text in texts)
    assert MARK not in "".join(texts)
    assert MARK not in scrub("failed: zq7-deep", secrets) or redaction.EVERYTHING not in secrets


@pytest.mark.parametrize("limit", [0, 1, 3, 10, 100])
def test_reprs_are_bounded(limit):
    assert all(len(text) <= limit for text in shown(("x" * 1000, 1), {"a": "y" * 1000}, limit))


def test_short_values_are_written_as_python_does():
    args, kwargs = (1, "x", [2.5, None], {"a": (1,)}, b"b"), {"k": {"n": ()}}
    assert shown(*arguments(None, args, kwargs)) == (repr(args), repr(kwargs))


def test_what_could_not_be_searched_hides_the_whole_text():
    for value in (nested(200), {"tokens": [f"secret-{i}" for i in range(1000)]}, Broken(a=1)):
        secrets = secrets_of(None, (value,), {})
        assert scrub("anything at all", secrets) == REDACTED
    assert scrub("anything at all", {f"s-{i}" for i in range(1000)}) == REDACTED


# Scrubbing --------------------------------------------------------------------------------------------


def test_secrets_are_collected_by_the_same_names():
    found = secrets_of(SIGNATURE, (1, "hunter2", 5, b"b-token"), {"card": {"number": 4111111111111111, "cvv": 12}})
    assert found == {"hunter2", "b-token", "4111111111111111"}
    assert secrets_of(None, (), {"Authorization": "Bearer abcdef"}) == {"Bearer abcdef", "abcdef"}
    assert secrets_of(None, ("postgres://bob:s3cret@db/x",), {}) == {"s3cret"}
    assert secrets_of(None, (), {"x": "my-value"}, ["x"]) == {"my-value"}


def test_overlapping_secrets_leave_nothing():
    assert scrub("abcdefgh", {"abcd", "bcdefgh", "cdef"}) == REDACTED


def test_a_long_secret_is_found_in_pieces():
    secret = "'line\n" * 3_000
    assert "line" not in scrub(repr(repr(secret)) + secret, {secret})
    assert scrub("x", {"y" * 1_000_000}) == REDACTED


def test_lines_of_a_key_are_found_alone():
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nEFAASCBKcwggSjAgEAAoIBAQC7\n-----END KEY-----"
    text = scrub(f"  bad line: EFAASCBKcwggSjAgEAAoIBAQC7 in {key!r}", secrets_of(None, (), {"private_key": key}))
    assert "SCBKcwgg" not in text
    assert "kqhkiG9w" not in text


ENCODINGS: dict[str, Any] = {
    "plain": str,
    "repr": repr,
    "repr of repr": lambda s: repr(repr(s)),
    "message in a message": lambda s: repr(str(KeyError(f"no {s}"))),
    "ascii": ascii,
    "json": json.dumps,
    "json, unicode": lambda s: json.dumps(s, ensure_ascii=False),
    "three times": lambda s: repr(json.dumps({"x": repr([s, "'"])})),
    "json in json": lambda s: json.dumps(json.dumps({"x": s})),
    "quote": quote,
    "quote all": lambda s: quote(s, safe=""),
    "quote plus": quote_plus,
    "html": html.escape,
    "bytes": lambda s: repr(s.encode()),
    "hex": lambda s: s.encode().hex(),
    "HEX": lambda s: s.encode().hex().upper(),
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "base64, URL-safe": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "base64, unpadded": lambda s: base64.urlsafe_b64encode(s.encode()).decode().rstrip("="),
}
secret_texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("'\"\\\n/%<&\0é😀"), min_size=4, max_size=40
).filter(lambda s: s not in REDACTED and not s.isspace())


@given(secret=secret_texts, before=st.text(max_size=10), name=st.sampled_from(sorted(ENCODINGS)))
@settings(deadline=None, max_examples=400)
def test_scrub_finds_it_in_every_encoding(secret, before, name):
    encoded = ENCODINGS[name](secret)
    text = scrub(f"{before} {encoded} after", {secret})
    assert encoded not in text or encoded in f"{before} {REDACTED} after"
    assert REDACTED in text


@given(user=st.text("abcdef", max_size=9), secret=st.text("ghijkl0123!", min_size=9, max_size=30))
@settings(deadline=None)
def test_scrub_finds_it_inside_of_basic_authorization(user, secret):
    encoded = base64.b64encode(f"{user}:{secret}".encode()).decode()
    text = scrub(f"sent Authorization {encoded}", {secret})
    kept = text.split()[-1].replace(REDACTED, "")
    assert len(kept) <= len(encoded) - len(secret) * 4 // 3 + 4


# The property: a secret under a suspect name is shown nowhere ------------------------------------------

names = st.sampled_from([*SUSPECT, "declared_one", "declaredOne"])
plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text("abc =:'\"", max_size=8), st.binary(max_size=4)
)
harmless = st.sampled_from([name for name in HARMLESS if name])


def wrap(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.tuples(plain, inner).map(list),
        st.tuples(inner, plain, plain),
        st.builds(lambda name, value, more: {name: value, "more": more}, harmless, inner, plain),
        st.builds(lambda value: Holder(field=value), inner),
        st.builds(lambda value: Payment(value, "none"), inner),
        st.builds(lambda value: Pair(value, "none"), inner),
        st.builds(lambda value: Wrapped(field=value), inner),
    )


secret_values = st.uuids().map(lambda u: f"{MARK}-{u}")
secret_holders = st.recursive(
    st.one_of(secret_values, secret_values.map(lambda s: s.encode())),
    lambda inner: st.one_of(st.lists(inner, min_size=1, max_size=3), st.dictionaries(harmless, inner, min_size=1)),
    max_leaves=3,
)
seeds = st.one_of(
    st.builds(lambda name, value: {name: value}, names, secret_holders),
    st.builds(lambda name, value: Holder(**{name: value}), names, secret_holders),
    st.builds(lambda name, value: (name, value), names, secret_holders),
    st.builds(lambda name, value: {"name": name, "value": value}, names, secret_holders),
    st.builds(lambda value: Payment("x", value), secret_holders),
)


@given(value=st.recursive(seeds, wrap, max_leaves=12), positional=st.booleans())
@settings(deadline=None, max_examples=400)
def test_a_seeded_secret_is_never_shown(value, positional):
    declared = ["declared_one"]
    args, kwargs = ((value,), {}) if positional else ((), {"field": value})

    texts = shown(*arguments(None, args, kwargs, declared), limit=100_000)

    assert MARK not in "".join(texts)
    # and what was hidden is found in text, however deep it stood
    secrets = secrets_of(None, args, kwargs, declared)
    assert secrets
    for secret in secrets:
        assert MARK not in scrub(f"could not use {secret!r} ({quote(secret)})", secrets)


# Patterns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Authorization: Bearer abc.def-ghi", "Authorization: [redacted]"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz', 'n': 1}", "{'Authorization': '[redacted]', 'n': 1}"),
        ("got bearer abcdefgh12 here", "got bearer [redacted] here"),
        ("password=hunter2&user=bob", "password=[redacted]&user=bob"),
        ("PGPASSWORD='a b c' psql", "PGPASSWORD='[redacted]' psql"),
        ("token=b'abc' next", "token=b'[redacted]' next"),
        ("secret=SecretStr('abc') next", "secret=[redacted] next"),
        ('{"user": "bob", "password": "x\\"y", "n": 1}', '{"user": "bob", "password": "[redacted]", "n": 1}'),
        ("'credentials': {'user': 'b', 'x': [1]}, 'ok': 1", "'credentials': [redacted], 'ok': 1"),
        ("Cookie: a=b; c=d\nHost: x", "Cookie: [redacted]\nHost: x"),
        ("postgres://bob:s3cr@t@db:5432/x failed", "postgres://bob:[redacted]@db:5432/x failed"),
        ("redis://:pw@h/0", "redis://:[redacted]@h/0"),
        ("key AKIAIOSFODNN7EXAMPLE!", "key [redacted]!"),
        ("ghp_0123456789abcdefABCDEF0123456789abcd", "[redacted]"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def", "jwt [redacted]"),
        ("card 4111 1111 1111 1111 declined", "card [redacted] declined"),
        ("card=378282246310005", "card=[redacted]"),
        ("5500-0000-0000-0004", "[redacted]"),
        ("['mysql', '--password', 'hunter2', 'db']", "['mysql', '--password', '[redacted]', 'db']"),
        ("curl --api-token abc123 http://x", "curl --api-token [redacted] http://x"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----[redacted]-----END RSA PRIVATE KEY-----",
        ),
    ],
)
def test_patterns(text, scrubbed):
    assert scrub_patterns(text) == scrubbed
    assert scrub_patterns(scrubbed) == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "1700000000000000",  # microseconds
        "4111 1111 1111 1112",  # the check digit is wrong
        "http://host:80/path?x=1",
        "discard: 7, tokenizer=bpe, author: Ann",
        "basic information about bearers",
        "password=None",
        "errors in a.b:7: x = y",
        'duplicate key value violates unique constraint "orders_pkey"\nDETAIL:  Key (id)=(7) already exists.',
        "",
    ],
)
def test_ordinary_text_stays(text):
    assert scrub_patterns(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        "-", "-eyJ", "pw=(", 'pw="', "1 ", "a.", "bearer ", "abc-", "QUJD", "a://b:", "cookie=", "password\\", "--a-",
        "basic a", "-----BEGIN PRIVATE KEY-----", "token: ", "authorization ", "password={", "\\", "=", "4111 ",
    ],
)  # fmt: skip
def test_no_text_takes_long(piece):
    text = piece * (400_000 // len(piece))
    begin = time.process_time()
    assert len(scrub_patterns(text)) < 800_000
    assert len(scrub(text, {piece * 4, f"x{piece}x" * 3, "never there"})) < 800_000
    assert time.process_time() - begin < 5  # seconds of this process; it takes tenths of one


def test_a_secret_on_the_edge_is_not_cut_in_two():
    text = "x" * 3_990 + " password=hunter2-hunter2"
    assert "hun" not in scrub_patterns(text, 4_005)
    text = "x" * (redaction.MAX_TEXT - 4) + "hunter2-hunter2"
    assert "hunt" not in scrub(text, {"hunter2-hunter2"})


def test_what_is_redacted_already_stays_as_it_is():
    said = "Authorization: Bearer [redacted], password=[redacted], cookie: [redacted]; card='[redacted]'"
    assert scrub_patterns(said) == said
