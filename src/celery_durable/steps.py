"""Steps: parts of a task that are done once. What a run knows of them, their names, their tokens, their tries.

Pure: ``stepper`` runs them, ``ledger.stepping`` records them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from celery_durable import redaction
from celery_durable.errors import StepError, StepResultError
from celery_durable.records import HIDDEN, JSON_CONTENT_TYPE, isotime
from celery_durable.sealing import is_sealed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Longest name of a step, in characters.
MAX_NAME = 255
#: Seconds: the longest pause between two tries of a step that a worker is kept for, and the longest pause of all.
LONGEST_STAY, LONGEST_PAUSE = 5.0, 600.0


class Content(NamedTuple):
    """A serialised value and how to read it."""

    data: bytes
    type: str


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is done, with its result as it is stored; times in microseconds on the database's clock."""

    name: str
    claim: int
    result: Content
    started_at: int
    finished_at: int

    def as_json(self, names: Iterable[str] = ()) -> dict[str, Any]:
        """Return the contract's JSON form of a step, without secrets; ``names`` are those that the task redacts."""
        result: Any
        if is_sealed(self.result.type):
            result = HIDDEN
        elif self.result.type == JSON_CONTENT_TYPE:
            result = json.loads(self.result.data)
        else:
            result = {"content_type": self.result.type, "bytes": len(self.result.data)}
        shown = redaction.arguments(None, (), {self.name: result}, names)[1]
        return {
            "name": self.name, "claim": self.claim, "result": shown[self.name],
            "started_at": isotime(self.started_at), "finished_at": isotime(self.finished_at),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier runs of a task have left: results of steps, tries of steps, the checkpoint."""

    steps: dict[str, Content] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    checkpoint: Content | None = None


@dataclass(frozen=True, slots=True)
class How:
    """The way in which a step is to be done."""

    transaction: bool = False
    retries: int = 0
    backoff: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            StepError: naming the option and the value.
        """
        if self.retries < 0:
            raise StepError(f"retries is {self.retries!r}: it is how often a step is tried again, 0 or more.")
        if not self.backoff >= 0:
            raise StepError(f"backoff is {self.backoff!r}: it is the seconds before the first retry, 0 or more.")

    def pause(self, tried: int) -> float:
        """Seconds before the next try, after so many: ``backoff``, then twice as long each time."""
        return float(min(LONGEST_PAUSE, self.backoff * 2.0 ** min(tried - 1, 60)))


class Journal:
    """The steps of one run: which is being done, which have been."""

    def __init__(self) -> None:
        self.inside: str | None = None
        self.in_transaction = False
        self._done: set[str] = set()

    @contextmanager
    def doing(self, name: str, *, transaction: bool) -> Iterator[None]:
        """Do a step: within it there is no other."""
        self.inside, self.in_transaction = name, transaction
        try:
            yield
        finally:
            self.inside, self.in_transaction = None, False

    def check(self, name: str) -> None:
        """Refuse a name that no step can have now.

        Raises:
            StepError: it is no name, it was used in this run, or another step is being done.
        """
        checked(name)
        if self.inside is not None:
            raise StepError(
                f"Step {name!r} is asked for inside step {self.inside!r}: steps cannot be nested. "
                "Do them one after the other in the task's body."
            )
        if name in self._done:
            raise StepError(
                f"There are two steps {name!r} in one run: the second would get the first one's result. "
                'Name them apart, in a loop by what they are about: f"page-{n}".'
            )

    def check_outside(self, what: str) -> None:
        """Refuse what writes to the ledger while a step's transaction is open: it would be no part of that.

        Raises:
            StepError: a transactional step is being done.
        """
        if self.in_transaction:
            raise StepError(
                f"{what} inside the transactional step {self.inside!r} would not be part of its transaction: "
                "do it before or after the step."
            )

    def done(self, name: str) -> None:
        """Note that a step has given its result."""
        self._done.add(name)


def checked(name: object) -> str:
    """Return the name of a step.

    Raises:
        StepError: no database could store it, or not tell it from another.
    """
    if not isinstance(name, str) or not name or name != name.strip() or not name.isprintable():
        raise StepError(f"{name!r} is no name of a step: 1 to {MAX_NAME} printable characters, no outer blanks.")
    if len(name) > MAX_NAME:
        raise StepError(f"The name of step {name[:40]!r}... has {len(name)} characters; {MAX_NAME} are the most.")
    return name


def check_function(name: str, fn: object) -> None:
    """Refuse what a step cannot call.

    Raises:
        StepError: it is not callable, or a coroutine function.
    """
    if not callable(fn):
        raise StepError(
            f"Step {name!r} is given {type(fn).__name__!r} in place of a function: pass the function and its "
            f'arguments apart, self.step("{name}", function, argument).'
        )
    inner: Any = fn
    while isinstance(inner, partial):
        inner = inner.func
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None)):  # noqa: B004
        raise StepError(f"Step {name!r} is an 'async def': a step calls plain functions; asyncio.run() makes it one.")


def check_result(name: str, result: object) -> None:
    """Refuse a result that is not there yet.

    Raises:
        StepResultError: it is a coroutine or a generator: nothing of it has run.
    """
    if inspect.iscoroutine(result):
        result.close()
    if inspect.isawaitable(result) or inspect.isgenerator(result):
        raise StepResultError(
            f"Step {name!r} returned a {type(result).__name__}, which does its work later: return what comes of it."
        )


def check_size(what: str, content: Content, limit: int, error: type[StepError]) -> None:
    """Refuse what has more than ``limit`` bytes.

    Raises:
        StepError: of the class ``error``.
    """
    if len(content.data) > limit:
        raise error(
            f"{what} has {len(content.data)} bytes; durable_max_message_bytes allows {limit}. "
            "Store it elsewhere and keep where."
        )


def token(ledger: str, task_id: str, replaces: int, name: str) -> str:
    """Return the token of a step: the same in every run of a task, another for every other task and step.

    A UUID, for most systems take that as an idempotency key, and some take nothing longer.
    """
    digest = hashlib.sha256("\0".join((ledger, task_id, str(replaces), name)).encode()).digest()
    return str(UUID(bytes=digest[:16], version=5))


def about_retry(name: str, tried: int, how: How) -> str:
    """Say that a step is tried again."""
    return f"try {tried + 1} of {how.retries + 1} of step {name!r}"
