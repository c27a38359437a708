"""Secrets out of what is shown and stored: by the names of arguments, by their values, by the look of text.

Three nets, one behind the other:

- ``arguments`` hides what stands under a name that the task declares (``redact``) or that is suspect anyway;
- ``secrets_of`` collects those same values, and ``scrub`` removes them from messages and tracebacks, in whatever
  encoding they turn up there;
- ``scrub_patterns`` finds secrets that nobody declared, by how they look.

Everything is bounded in time and depth, and raises nothing. Where a bound is reached less is shown, never more.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from celery_durable.redaction_shown import Shown, bounded, guarded
from celery_durable.redaction_text import (
    EVERYTHING,
    MAX_SECRETS,
    MAX_TEXT,
    MIN_SECRET,
    REDACTED,
    SCHEMES,
    found_in,
    is_card,
    scrub,
    scrub_patterns,
    suspect,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "EVERYTHING",
    "MAX_TEXT",
    "REDACTED",
    "arguments",
    "scrub",
    "scrub_patterns",
    "secrets_of",
    "shown",
    "suspect",
]

#: How deep and how far values are shown, and how far secrets are looked for in them.
MAX_DEPTH, MAX_NODES = 12, 5_000
MAX_SECRET_DEPTH, MAX_SECRET_NODES = 100, 200_000
#: The longest string of an argument that is shown whole, and the longest name that is looked at.
MAX_STRING, MAX_NAME = 4_000, 200

Names = frozenset[tuple[str, ...]]


def arguments(
    signature: inspect.Signature | None, args: Any, kwargs: Any, names: Iterable[str] = ()
) -> tuple[Any, Any]:
    """Copy the arguments of a call for showing, every secret in them replaced by ``[redacted]``.

    ``signature`` is that of the call, without ``self``; by it positional arguments get their names. ``names`` are
    the task's own (``redact``): they are matched whole, at any depth, in any spelling (``cardOwner``, ``card-owner``).
    Objects are shown as the name of their class with their attributes; none of their code is called for that.
    """
    copier = _Copier(_declared(names))
    if not isinstance(args, tuple | list):
        return copier.copy(args), copier.copy(kwargs)
    copied = [copier.copy(value, name) for name, value in _named(signature, args)]
    return (tuple(copied) if isinstance(args, tuple) else copied), copier.copy(kwargs)


def shown(args: Any, kwargs: Any, limit: int = 1_024) -> tuple[str, str]:
    """Write what ``arguments`` returned, each of the two in at most ``limit`` characters."""
    return bounded(args, limit), bounded(kwargs, limit)


def secrets_of(
    signature: inspect.Signature | None, args: Any, kwargs: Any, names: Iterable[str] = ()
) -> frozenset[str]:
    """Collect the values that ``arguments`` would hide, as text: what ``scrub`` has to look for.

    The set is to be kept in memory only. Where not everything could be looked at it says so, and ``scrub`` then
    hides the whole text.
    """
    seeker = _Seeker(_declared(names))
    try:
        for name, value in _named(signature, args) if isinstance(args, tuple | list) else [(None, args)]:
            seeker.seek(value, name)
        seeker.seek(kwargs)
    except Exception:  # noqa: BLE001 - out of bounds, or an object that fails: what was not seen may be secret
        seeker.secrets.add(EVERYTHING)
    return frozenset(seeker.secrets)


# Names ------------------------------------------------------------------------------------------------

# The size or age of a suspect thing is no secret: max_tokens, session_timeout.
_MEASURES = frozenset({"max", "min", "count", "total", "limit", "length", "size", "timeout", "ttl", "age", "seconds"})


def _declared(names: Iterable[str]) -> Names:
    return frozenset(words_of(str(name)) for name in ([names] if isinstance(names, str) else names))


def _named(signature: inspect.Signature | None, args: Iterable[Any]) -> list[tuple[str | None, Any]]:
    """Pair positional arguments with the names of their parameters."""
    names: list[str] = []
    rest: str | None = None
    for parameter in signature.parameters.values() if signature else ():
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
            names.append(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            rest = parameter.name
    return [(names[i] if i < len(names) else rest, value) for i, value in enumerate(args)]


@lru_cache(maxsize=4_096)
def _standing(name: str, declared: Names) -> str:
    if declared and words_of(name) in declared:
        return "declared"
    if not suspect(name):
        return ""
    return "suspect" if _MEASURES.isdisjoint(words_of(name)) else "measure"


def _hidden(name: Any, value: Any, declared: Names) -> bool:
    """Say whether a value under this name is secret; None and booleans never are."""
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    if not isinstance(name, str) or value is None or isinstance(value, bool):
        return False
    standing = _standing(str.__str__(name)[:MAX_NAME], declared)
    return standing in {"declared", "suspect"} or (standing == "measure" and not isinstance(value, int | float))


# Walking ----------------------------------------------------------------------------------------------

_PLAIN = (str, bytes, bytearray, int, float, complex, type(None), type, Enum, UUID, PurePath, Fraction)


class _Part(NamedTuple):
    """A part of a compound value: the key it is shown under, the name it is judged by."""

    key: Any
    name: Any
    value: Any


def _parts(value: Any) -> Iterator[_Part] | None:
    """Take a compound value apart; None for a plain one. The items of a list have no name."""
    if isinstance(value, _PLAIN):
        return None
    if isinstance(value, Mapping):
        # {"name": "password", "value": ...} is how headers, forms and parameters are often written
        label = value.get("name", value.get("key")) if "value" in value else None
        return (_Part(k, label if k == "value" and isinstance(label, str) else k, v) for k, v in value.items())
    if isinstance(value, tuple) and isinstance(fields := getattr(type(value), "_fields", None), tuple):
        return (_Part(name, name, item) for name, item in zip(fields, value, strict=False))
    if isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], str | bytes):  # noqa: PLR2004
        return iter([_Part(None, None, value[0]), _Part(None, value[0], value[1])])  # ("Authorization", "Bearer ...")
    if isinstance(value, tuple | list | set | frozenset):
        return (_Part(None, None, item) for item in value)
    stored = _attributes(value)
    return (_Part(name, name, item) for name, item in stored.items()) if stored else None


def _attributes(value: Any) -> dict[Any, Any]:
    """Return the attributes of an object as they are stored, calling none of its code."""
    found: dict[Any, Any] = {}
    for cls in type(value).__mro__:
        for name, slot in cls.__dict__.items():
            if inspect.ismemberdescriptor(slot) and not name.startswith("__"):
                try:
                    found[name] = slot.__get__(value)
                except AttributeError:  # never set
                    continue
    try:
        stored = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return found
    return found | stored if isinstance(stored, dict) else found


class _OutOfBounds(Exception):
    """More, or deeper, than is looked at."""


class _Seeker:
    """Collects the secrets in values."""

    def __init__(self, declared: Names) -> None:
        self.secrets: set[str] = set()
        self._declared, self._nodes, self._path = declared, 0, set[int]()

    def seek(self, value: Any, name: Any = None, *, hidden: bool = False) -> None:
        """Look into a value; below a secret name all of it is secret."""
        self._nodes += 1
        if self._nodes > MAX_SECRET_NODES or len(self._path) > MAX_SECRET_DEPTH:
            raise _OutOfBounds
        hidden = hidden or _hidden(name, value, self._declared)
        parts = _parts(value)
        if parts is None:
            self._leaf(value, hidden=hidden)
        elif id(value) not in self._path:
            self._path.add(id(value))
            for part in parts:
                self.seek(part.value, part.name, hidden=hidden)
            self._path.discard(id(value))

    def _leaf(self, value: Any, *, hidden: bool) -> None:
        if isinstance(value, str) and not hidden:
            self._keep(*(found_in(value) if len(value) > MIN_SECRET else ()))
        elif hidden and isinstance(value, bytes | bytearray):
            self._keep(bytes(value).decode("utf-8", "backslashreplace"), repr(bytes(value))[2:-1])
        elif hidden and value is not None and not isinstance(value, bool):
            self._keep(str(value))

    def _keep(self, *values: str) -> None:
        for value in values:
            self.secrets.update(piece for piece in _pieces(value) if len(piece) >= MIN_SECRET)
        if len(self.secrets) > MAX_SECRETS:
            raise _OutOfBounds


def _pieces(secret: str) -> Iterator[str]:
    """Return a secret, and the pieces of it that are quoted alone: a header's token, the lines of a key file."""
    yield secret
    yield secret.strip()
    scheme, _, token = secret.strip().partition(" ")
    if scheme.lower() in SCHEMES:
        yield token.strip()
    if "\n" in secret:
        yield from (line.strip() for line in secret.splitlines() if len(line.strip()) >= 16)  # noqa: PLR2004


class _Copier:
    """Copies values for showing."""

    def __init__(self, declared: Names) -> None:
        self._declared, self._nodes, self._path = declared, 0, set[int]()

    def copy(self, value: Any, name: Any = None) -> Any:
        """Copy a value that stands under a name."""
        self._nodes += 1
        try:
            if _hidden(name, value, self._declared):
                return REDACTED
            parts = _parts(value)
            return _leaf(value) if parts is None else self._compound(value, parts)
        except Exception:  # noqa: BLE001 - an object that cannot be read is not shown
            return Shown(f"<{type(value).__name__}>")

    def _compound(self, value: Any, parts: Iterator[_Part]) -> Any:
        if id(value) in self._path:
            return Shown("<cycle>")
        if len(self._path) >= MAX_DEPTH or self._nodes > MAX_NODES:
            return Shown("...")
        self._path.add(id(value))
        try:
            copied = [(part.key, self.copy(part.value, part.name)) for part in self._some(parts)]
        finally:
            self._path.discard(id(value))
        if isinstance(value, Mapping):
            return {_leaf(key): item for key, item in copied}
        items = [item for _, item in copied]
        if type(value) in {list, tuple}:
            return items if type(value) is list else tuple(items)
        head = type(value).__name__
        named = bool(copied) and copied[0][0] is not None
        return Shown(head, {str(key): item for key, item in copied} if named else items)

    def _some(self, parts: Iterator[_Part]) -> Iterator[_Part]:
        for part in parts:
            if self._nodes > MAX_NODES:
                yield _Part("...", None, Shown("..."))
                return
            yield part


def _leaf(value: Any) -> Any:
    """Copy a value without parts; of an object of another's making only what it says of itself."""
    if type(value) is str:
        return scrub_patterns(value, MAX_STRING)
    if value is None or type(value) in {int, float, complex, bool}:
        return REDACTED if type(value) is int and 10**12 <= value < 10**19 and is_card(str(value)) else value
    if type(value) in {bytes, bytearray}:
        return scrub_patterns(bytes(value[:MAX_STRING]).decode("latin-1")).encode("latin-1")
    if isinstance(value, Shown):
        return value
    text = guarded(repr, value)
    return Shown(scrub_patterns(text, MAX_STRING) if isinstance(text, str) else f"<{type(value).__name__}>")
