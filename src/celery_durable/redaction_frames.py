"""Secrets that no argument holds: what stands in local variables when a task fails, found by their names.

A password that the body itself has looked up may be quoted by the exception. Only plain values are looked at, so that
no object's code is called, and everything is bounded: this net is behind others.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from celery_durable.redaction_text import suspect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

#: How many exceptions of a chain, frames of each (the innermost), values in all, and how deep they are looked at.
MAX_EXCEPTIONS, MAX_FRAMES, MAX_VALUES, MAX_DEPTH = 10, 50, 5_000, 12
#: Shorter values are left: a local variable called ``token`` may be the word "and".
MIN_LENGTH = 6
#: The longest value that is looked for.
MAX_LENGTH = 4_000


def secrets_in(exc: BaseException | None) -> frozenset[str]:
    """Collect what local variables of suspect names held, all along the chain that an exception was raised from."""
    found: set[str] = set()
    budget = iter(range(MAX_VALUES))
    try:
        for one in islice(_chain(exc), MAX_EXCEPTIONS):
            for frame_locals in _locals(one.__traceback__):
                for name, value in frame_locals.items():
                    found.update(_secrets(value, budget, hidden=suspect(name)))
    except Exception:  # noqa: BLE001 - whatever is odd about somebody's frames, the failure is told
        return frozenset(found)
    return frozenset(found)


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    waiting: list[Any] = [exc]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        members = getattr(one, "exceptions", ())
        waiting += [*(members if isinstance(members, tuple | list) else ()), one.__context__, one.__cause__]


def _locals(tb: TracebackType | None) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    while tb is not None:
        frames.append(tb.tb_frame.f_locals)
        tb = tb.tb_next
    return frames[-MAX_FRAMES:]


def _secrets(value: Any, budget: Iterator[int], *, hidden: bool, depth: int = 0) -> Iterator[str]:
    """Yield the texts below a value that stand under a suspect name; ``budget`` runs out."""
    if depth > MAX_DEPTH or next(budget, None) is None:
        return
    if type(value) is dict:
        for name, inner in islice(value.items(), MAX_VALUES):
            yield from _secrets(
                inner, budget, hidden=hidden or (isinstance(name, str) and suspect(name)), depth=depth + 1
            )
    elif type(value) in {list, tuple, set, frozenset}:
        for inner in islice(value, MAX_VALUES):
            yield from _secrets(inner, budget, hidden=hidden, depth=depth + 1)
    elif hidden and type(value) in {str, bytes, int}:
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
        if MIN_LENGTH <= len(text) <= MAX_LENGTH:
            yield text
