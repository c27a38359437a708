"""Values written for people, piece by piece: what is not shown is not written either."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: How deep nested values are written.
MAX_DEPTH = 24
# Names that Celery itself gives to the parts of a message, and any run of other characters but punctuation.
_NAME_OR_VALUE = re.compile(
    r"([\"'](?:args|kwargs|task|id|body|headers|properties|callbacks|errbacks|chain|chord)[\"']\s*:)"
    r"|[^\s\[\]{}(),:\"']+"
)


class Shown:
    """An object as it is shown: the name of its class with its attributes (a dict) or its items (a list), or text."""

    def __init__(self, head: str, body: dict[str, Any] | list[Any] | None = None) -> None:
        self.head, self.body = head, body

    def __repr__(self) -> str:
        return "".join(_written(self, 0))


def bounded(value: Any, limit: int) -> str:
    """Write a value in at most ``limit`` characters; one that was cut ends in ``...``."""
    parts: list[str] = []
    size = 0
    for part in _written(value, 0):
        parts.append(part)
        size += len(part)
        if size > limit:
            return ("".join(parts)[: max(limit - 3, 0)] + "...")[: max(limit, 0)]
    return "".join(parts)


def shape(text: str) -> str:
    """Show how a text is built, without its values: nobody knows which of them are secret.

    Brackets, quotes and Celery's own names stay: ``[["…"], {"…": …``.
    """
    return _NAME_OR_VALUE.sub(lambda found: found[1] or "…", text)


def guarded(call: Callable[[Any], Any], value: Any) -> Any:
    """Call the code of somebody's object; None where it fails."""
    try:
        return call(value)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it must not stop what is going on
        return None


def _written(value: Any, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        yield "..."
    elif type(value) is Shown:
        yield value.head
        if isinstance(value.body, dict):
            yield from _joined("(", value.body.items(), ")", lambda pair: _pair(pair, depth, "="))
        elif value.body is not None:
            yield from _joined("([", value.body, "])", lambda item: _written(item, depth + 1))
    elif type(value) is dict:
        yield from _joined("{", value.items(), "}", lambda pair: _pair(pair, depth, ": "))
    elif type(value) is list:
        yield from _joined("[", value, "]", lambda item: _written(item, depth + 1))
    elif type(value) is tuple:
        yield from _joined("(", value, ",)" if len(value) == 1 else ")", lambda item: _written(item, depth + 1))
    else:
        text = guarded(repr, value)
        yield text if isinstance(text, str) else f"<{type(value).__name__}>"


def _pair(pair: tuple[Any, Any], depth: int, between: str) -> Iterator[str]:
    key, value = pair
    yield from [str(key)] if between == "=" else _written(key, depth + 1)
    yield between
    yield from _written(value, depth + 1)


def _joined(left: str, items: Any, right: str, write: Callable[[Any], Iterator[str]]) -> Iterator[str]:
    yield left
    for number, item in enumerate(items):
        if number:
            yield ", "
        yield from write(item)
    yield right
