"""The steps and the checkpoint of one attempt: done, recorded, and remembered from the attempts before."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.result import ResultBase

from celery_durable import failpoints, steps
from celery_durable.contents import PLAIN, decoded, encoded
from celery_durable.control import StepRetry
from celery_durable.errors import DurableError, LeaseLost, LedgerError, LedgerUnavailable, StepError, StepResultError
from celery_durable.sealing import opened_result
from celery_durable.secrecy import Secrets
from celery_durable.steps import LONGEST_STAY, Content, How, Journal, Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.attempt import Attempt
    from celery_durable.delivery import Delivery, SoftLimitGuard

T = TypeVar("T")

#: Longest pause, in seconds, between two tries to record a step while the ledger is down.
PAUSE = 0.5
#: What is no failure of a step's function, or not helped by another try.
_PASSES = (DurableError, Ignore, Reject, Retry, SoftTimeLimitExceeded, MemoryError)


class Stepper:
    """One per attempt; used by the thread of its body."""

    def __init__(self, attempt: Attempt, delivery: Delivery, lease: float, guard: SoftLimitGuard) -> None:
        """Bind to an attempt; ``lease`` is in seconds."""
        #: A step that was tried in earlier runs too, and whose tries are used up.
        self.spent: str | None = None
        self._attempt, self._claim, self._guard, self._lease = attempt, attempt.claim, guard, lease
        self._delivery = delivery
        self._task, self._ledger, self._settings = delivery.task, delivery.side.ledger, delivery.side.settings
        self._actor = delivery.note.worker
        self._serializer = delivery.task.serializer or delivery.side.app.conf.task_serializer
        self._journal = Journal()
        self._checkpoint: Content | None = None
        self._restored = False
        self._raised: Exception | None = None

    # Steps --------------------------------------------------------------------------------------------

    def step(self, name: str, fn: Callable[..., Any], args: Any, kwargs: Any, how: How) -> Any:
        """Do a step, or return what it gave in an earlier run."""
        self._journal.check(name)
        steps.check_function(name, fn)
        known = self._memory.steps.get(name)
        if known is None:
            with self._journal.doing(name, transaction=how.transaction):
                result = self._tried(name, fn, lambda *given: fn(*given, *args, **kwargs), how)
        else:
            result = self._read(f"The recorded result of step {name!r}", known)
        self._journal.done(name)
        return result

    @property
    def in_transaction(self) -> bool:
        """Whether a transactional step is being done: until it is over nothing else can be written."""
        return self._journal.in_transaction

    def _tried(self, name: str, fn: Callable[..., Any], call: Callable[..., Any], how: How) -> Any:
        """Try a step as often as it may be; go to wait in the ledger before a long pause."""
        tried = self._memory.tries.get(name, 0)
        while True:
            try:
                return self._transacted(name, fn, call) if how.transaction else self._done(name, call)
            except Exception as exc:
                tried += 1
                if isinstance(exc, (*_PASSES, *self._given_up())) or tried > how.retries:
                    self.spent = name if name in self._memory.tries else None
                    raise
                pause = how.pause(tried)
                if pause > LONGEST_STAY:
                    self._attempt.leave(StepRetry(exc, name, tried, pause, steps.about_retry(name, tried, how)))
            time.sleep(pause)
            self._attempt.check()

    def _given_up(self) -> tuple[type[Exception], ...]:
        task = self._task
        return (*(task.throws or ()), *getattr(task, "dont_autoretry_for", ()))

    def _done(self, name: str, call: Callable[..., Any]) -> Any:
        began = time.monotonic()
        with failpoints.around(failpoints.STEP, name):
            result = call()
        seconds = time.monotonic() - began
        with self._ours():
            value, content = self._recordable(name, result)
            told: dict[str, Any] = {"seconds": seconds, "actor": self._actor}
            self._patiently(lambda: self._ledger.record_step(self._claim, name, content, **told))
        return value

    def _transacted(self, name: str, fn: Callable[..., Any], call: Callable[..., Any]) -> Any:
        value: Any = None

        def work(*given: Any) -> Content:
            nonlocal value
            try:
                with self._guard.open(), failpoints.around(failpoints.TRANSACTION, name):
                    result = call(*given)
            except Exception as exc:
                self._raised = exc
                raise
            value, content = self._recordable(name, result)
            return content

        with self._ours(), self._guard.closed():
            enclosure = self._delivery.side.enclosure(fn)
            content = self._ledger.transact_step(self._claim, name, enclosure, work, actor=self._actor)
        return value if type(value) in PLAIN else decoded(content)

    # The checkpoint -----------------------------------------------------------------------------------

    def checkpoint(self, value: Any) -> None:
        """Keep a value for the runs to come; the same value again costs nothing."""
        self._attempt.proceed()
        self._journal.check_outside("A checkpoint")
        content = self._encoded("The checkpoint", value, StepError)
        if self._current is not None and opened_result(*content) == opened_result(*self._current):
            return
        with self._ours():
            self._patiently(
                lambda: self._ledger.write_checkpoint(self._claim, content, progress=self._restored, actor=self._actor)
            )
        self._checkpoint = content

    def restore(self, default: Any) -> Any:
        """Return what was kept last."""
        self._attempt.proceed()
        self._restored = True
        return default if self._current is None else self._read("The checkpoint", self._current)

    @property
    def _current(self) -> Content | None:
        return self._checkpoint or self._memory.checkpoint

    # Remembering --------------------------------------------------------------------------------------

    @cached_property
    def _memory(self) -> Memory:
        """What earlier attempts have left: asked for once, and not in a task's first attempt."""
        if self._claim.claims == 1:
            return Memory()
        with self._ours():
            return self._patiently(lambda: self._ledger.remembered(self._claim))

    def _recordable(self, name: str, result: Any) -> tuple[Any, Content]:
        """Return a result as every later run will see it, and what is recorded for that."""
        steps.check_result(name, result)
        if isinstance(result, ResultBase):  # self.step("notify", notify.delay, ...)
            result = result.as_tuple()
        what = f"Step {name!r} was done, but its result"
        content = self._encoded(what, result, StepResultError)
        return (result if type(result) in PLAIN else self._read(what, content, StepResultError)), content

    def _encoded(self, what: str, value: Any, error: type[StepError]) -> Content:
        try:
            content = encoded(value, self._serializer)
        except Exception as exc:
            raise error(
                f"{what}, a {type(value).__name__}, cannot be serialised as {self._serializer}: {exc}. Use plain data."
            ) from exc
        steps.check_size(what, content, self._settings.max_message_bytes, error)
        return self._secrets.stored(content)

    @cached_property
    def _secrets(self) -> Secrets:
        """What a result must not show in the ledger."""
        return Secrets.of(self._delivery)

    def _read(self, what: str, content: Content, error: type[StepError] = StepError) -> Any:
        try:
            return decoded(content)
        except Exception as exc:
            raise error(f"{what} cannot be read as {content.type}: {exc}.") from exc

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask the ledger until it answers, for as long as a lease lasts. The soft time limit strikes afterwards."""
        patience = time.monotonic() + self._lease
        while True:
            try:
                with self._guard.closed():
                    return ask()
            except LedgerUnavailable:
                if time.monotonic() > patience:
                    raise
            time.sleep(min(PAUSE, self._lease / 10))

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """End the run with what goes wrong in here, unless a step's own function raised it."""
        try:
            yield
        except (LeaseLost, LedgerError, StepResultError) as exc:
            if exc is self._raised:
                raise
            self._attempt.leave(exc)
