"""A case: a function that makes a real library raise, and what the classifier has to say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

TRANSIENT, PERMANENT, UNCLASSIFIED, TIMEOUT = "transient", "permanent", "unclassified", "timeout"


@dataclass(frozen=True)
class Case:
    name: str
    raises: str  # the class, as the failure row names it
    kind: str
    why: str  # part of the sentence
    retry_after: float | None
    fail: Callable[[Any], Any]


def collector(cases: list[Case]) -> Callable[..., Any]:
    """A decorator that adds a function to the table."""

    def case(raises: str, kind: str, why: str, retry_after: float | None = None) -> Callable[[Any], Any]:
        def add(fail: Callable[[Any], Any]) -> Callable[[Any], Any]:
            name = f"{fail.__name__}-{len(cases)}" if any(c.name == fail.__name__ for c in cases) else fail.__name__
            cases.append(Case(name, raises, kind, why, retry_after, fail))
            return fail

        return add

    return case
