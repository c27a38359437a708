"""One claimed run of a task's body: what it may ask for, and how what comes of it is recorded."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Retry
from celery.result import ResultBase
from celery.states import IGNORED
from kombu.exceptions import EncodeError

from celery_durable import signals, states, submission
from celery_durable.contents import encoded
from celery_durable.continuing import Follower, heirs
from celery_durable.control import Cancelled, Draining, LedgerDown, StepRetry, Stop, TaskWaiting, Unclaimed
from celery_durable.errors import LeaseLost, LedgerUnavailable, StepResultError, WaitTimeout
from celery_durable.outcomes import Outcomes
from celery_durable.progress import Progress
from celery_durable.replacement import Replacement
from celery_durable.secrecy import Secrets
from celery_durable.stepper import Stepper
from celery_durable.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.delivery import Delivery, SoftLimitGuard
    from celery_durable.outcomes import Outcome
    from celery_durable.records import Claim, Envelope
    from celery_durable.steps import How

logger = logging.getLogger(__name__)

#: Longest pause, in seconds, between two tries to record an outcome while the ledger is down.
SETTLE_PAUSE = 0.5


class Attempt:
    """One claimed run of a task's body."""

    def __init__(self, delivery: Delivery, claim: Claim, lease: float, guard: SoftLimitGuard, since: float) -> None:
        """Bind to a claim; ``lease`` is in seconds, ``since`` the monotonic time before the claim was asked for."""
        self.delivery, self.claim = delivery, claim
        self.task_id = claim.task_id
        self.entered = self.inside = False
        #: Whether somebody may listen for results.
        self.heard = True
        self._side, self._task, self._note = delivery.side, delivery.task, delivery.note
        self._lease, self._guard = lease, guard
        self._settled: str | None = None
        self._captured: tuple[Envelope, states.When | None] | None = None
        self._ignore_result = submission.ignores_result(delivery.task, delivery.request)
        self._owes = submission.owes(
            delivery.side.app,
            delivery.embed,
            delivery.request.get("group"),
            ignore_result=self._ignore_result,
        )

        self._outcomes = Outcomes(delivery, claim, owes=self._owes)
        self._watch = Watch(delivery, lease, since)
        self._progress = Progress(
            lambda content: self._side.ledger.progress(claim, content), lambda note: Secrets.of(delivery).scrub(note)
        )
        self.steps = Stepper(self, delivery, lease, guard)
        #: What the body has to be left with, whatever it makes of it (PROTOCOL 16).
        self._ending: BaseException | None = None
        self.follower = Follower(claim.task_id, claim.claims)
        self.canvas = Replacement(delivery.side, claim, delivery.note.worker)
        self._waiting: states.Wait | None = None
        self._sleeps: dict[str, int] = {}

    def capture(self, envelope: Envelope, wake: states.When | None) -> None:
        """Take the message of ``retry()`` or ``replace()``: the row moves when the body ends."""
        self._captured = (envelope, wake)

    @contextmanager
    def replacing(self, last: str) -> Iterator[None]:
        """Take what is submitted in the block for the canvas that replaces this task; ``last`` is how that ends.

        It is written together with the row's own move, or not at all.
        """
        with self.canvas.sending():
            try:
                yield
            except Ignore:
                self._outcomes.replaced_by(last)
                raise

    def execute(self, args: Any, kwargs: Any) -> Any:
        """Run the body and record what comes of it; raise what Celery's tracer shall see."""
        try:
            result = self._body(args, kwargs)
            self._look_behind()
        except MemoryError as exc:
            self._settle(self._outcomes.lost(exc))
            raise Unclaimed("out of memory: recorded as a loss") from exc
        except Stop as exc:
            self._ending = self._ending or exc
        except Exception as exc:
            if self._ending is None:
                shown = self._ended(exc)
                if shown is exc:
                    raise
                raise shown from exc
        if self._ending is not None:
            self._stop(self._ending)
        return self._succeed(result)

    def _look_behind(self) -> None:
        """Raise what a body that returned should have let pass."""
        if self._captured is not None:  # retry(throw=False): stock Celery would succeed *and* retry
            raise Retry("retried with throw=False")
        if self.canvas:
            raise Ignore("replaced by a canvas")

    def _ended(self, exc: Exception) -> Exception:
        """Record what the body raised; return what Celery shall see."""
        outcome = self._outcome(exc)
        self._settle(outcome)
        if self._settled == states.CANCELLED:
            return Unclaimed("cancelled while running")
        return outcome.shown if outcome.shown is not None and self._settled == states.WAITING else exc

    def _stop(self, ending: BaseException) -> NoReturn:
        """End the run as was said while the body ran, whatever it made of the exception (PROTOCOL 16)."""
        if self._waiting is not None:
            self._wait_out(self._waiting)
        if isinstance(ending, Cancelled):
            self._settle(self._outcomes.cancelled(str(ending)))
        elif isinstance(ending, Draining):
            self._settle(self._outcomes.drains(str(ending)))
        elif isinstance(ending, LeaseLost):
            self._fenced(ending)
        elif isinstance(ending, Exception):
            raise self._ended(ending)
        raise Unclaimed(str(ending)) from ending

    def _outcome(self, exc: Exception) -> Outcome:
        if isinstance(exc, StepRetry):
            return self._outcomes.step_retried(exc)
        if isinstance(exc, StepResultError):
            return self._outcomes.permanent(exc, "the result of a step cannot be recorded")
        outcome = self._outcomes.of(exc, self._captured)
        return outcome if self.steps.spent is None else outcome.tried(self.steps.spent, 0)

    def _wait_out(self, wait: states.Wait) -> NoReturn:
        """End the run waiting."""
        self._settle(self._outcomes.waits(wait))
        if self._settled == states.DEAD:
            raise WaitTimeout(f"gave up waiting: {wait.reason}")
        raise TaskWaiting(wait.reason)

    # What a body may ask for ------------------------------------------------------------------------

    def proceed(self) -> None:
        """Raise again what the body has swallowed; refuse to go on once the lease has passed (PROTOCOL 16).

        Whatever is about to do something for the body asks here first.
        """
        if self._ending is None:
            self._ending = self._watch.refusal()
        if self._ending is not None:
            raise self._ending

    def leave(self, ending: BaseException) -> NoReturn:
        """Leave the body with an exception that the run remembers: it settles the run, not what the body returns."""
        self._ending = self._ending or ending
        raise self._ending

    def check(self) -> None:
        """Leave the body if the task was cancelled, the worker shuts down or the lease has passed."""
        if self._ending is None:
            self._ending = self._watch.stop()
        if self._ending is not None:
            raise self._ending

    @property
    def draining(self) -> bool:
        """Whether the worker shuts down."""
        return self._watch.draining

    def progress(self, done: float, total: float | None, note: str) -> None:
        """Note how far the body is."""
        self._progress.note(done, total, note, write=not self.steps.in_transaction)

    def step(self, name: str, fn: Callable[..., Any], args: Any, kwargs: Any, how: How) -> Any:
        """Do a step, or return what it gave in an earlier run."""
        self.proceed()
        return self.steps.step(name, fn, args, kwargs, how)

    def wait(self, wait: states.Wait) -> NoReturn:
        """Leave the body; the row waits once it is left. A second wait in a run that is to wait repeats the first."""
        self.proceed()
        self._waiting = wait
        self.leave(TaskWaiting(wait.reason))

    def sleep(self, seconds: float, reason: str) -> None:
        """Wait until a sleep is over that is known by its reason and its occurrence in the run (PROTOCOL 17)."""
        self.proceed()
        count = self._sleeps[reason] = self._sleeps.get(reason, 0) + 1
        digest = hashlib.sha256(reason.encode("utf-8", "backslashreplace")).hexdigest()[:32]
        name = f"sleep:{digest}:{count}"
        begun = self._side.ledger.slept(self.claim, name)
        if begun is None:
            self.wait(states.Wait(states.SLEEP, reason, states.After(seconds), sleep=name))
        ends, now = begun
        if now < ends:
            self.wait(states.Wait(states.SLEEP, reason, states.At(ends), sleep=name))

    def wait_for_event(self, name: str, timeout: float) -> Any:
        """Return an event's payload, or leave the body until it arrives.

        Raises:
            WaitTimeout: ``timeout`` seconds have passed since the task first waited for it.
        """
        self.proceed()
        payload = self._side.ledger.event(self.claim, name)
        if payload is None:
            self._await_event(name, timeout)
        return json.loads(payload)

    def _await_event(self, name: str, timeout: float) -> NoReturn:
        waited = self._side.ledger.waited(self.claim)
        if waited.event == name and waited.give_up_at is not None and waited.give_up_at <= waited.now:
            raise WaitTimeout(f"event {name!r} did not arrive within {timeout:g} s")
        reason = f"waits for event {name!r}"
        self.wait(states.Wait(states.EVENT, reason, states.After(timeout), give_up_after=timeout, event=name))

    def _require(self, args: Any, kwargs: Any) -> None:
        """Look at the preconditions that the task declares; an unmet one becomes a wait."""
        for precondition in self._task.requires:
            arguments = submission.arguments(self._task, args, kwargs)
            reason = precondition.unmet(arguments)
            if reason is not None:
                wake = states.After(precondition.retry_in)
                self.wait(states.Wait(states.CONDITION, reason, wake, give_up_after=self._task.requires_within))

    @property
    def over(self) -> bool:
        """Whether the outcome is recorded, and final."""
        return self._settled in states.TERMINAL and not self.inside

    @property
    def succeeded(self) -> bool:
        """Whether the outcome is recorded, as a success."""
        return self._settled == states.SUCCEEDED

    def finished(self, traced: Any) -> bool:
        """Say whether Celery's view of the outcome is the ledger's; where not, it stays owed."""
        if self._settled is None:
            return self._concluded(traced)
        told = traced.info is None or traced.info.state == IGNORED
        return told or self._settled != states.SUCCEEDED

    def _concluded(self, traced: Any) -> bool:
        """Record an outcome that was reached without the body: by a hook, or by a ``__call__`` of the user's own."""
        try:
            if traced.info is None:
                self._succeed(traced.retval)
            else:
                self._settle(self._outcomes.of(traced.info.retval, self._captured))
        except (Ignore, EncodeError):
            return False
        return True

    def _body(self, args: Any, kwargs: Any) -> Any:
        try:
            self.inside = True
            with self._guard.open():
                if self._task.requires:
                    self._require(args, kwargs)
                return self._task.run(*args, **kwargs)
        finally:
            self.inside = False

    def _succeed(self, result: Any) -> Any:
        try:
            content, content_type = self._encoded(result)
        except EncodeError as exc:
            self._settle(self._outcomes.permanent(exc, "its result cannot be stored"))
            raise
        grace = self._side.settings.republish_after

        def write() -> None:
            self.heard = self._side.ledger.succeed(
                self.claim, content, content_type, owes=self._owes, actor=self._note.worker, continuation_grace=grace
            )

        self._write(write)
        self._settled = states.SUCCEEDED
        return result

    def _encoded(self, result: Any) -> tuple[bytes | None, str | None]:
        """Serialise a result.

        Raises:
            EncodeError: it cannot be stored, and somebody may ask for it (PROTOCOL 15).
        """
        if self._ignore_result and not any(self.delivery.embed.values()):
            return None, None
        value = result.as_tuple() if isinstance(result, ResultBase) else result
        serializer = self._side.app.conf.result_serializer
        try:
            content = encoded(value, serializer)
        except Exception as exc:
            if isinstance(self._side.app.backend, DisabledBackend):
                return None, None  # stock Celery would not have stored it either
            raise EncodeError(
                f"{self._task.name}: the result, a {type(result).__name__}, cannot be serialised as {serializer}: "
                f"{exc}. Return plain data, or set ignore_result=True."
            ) from exc
        return Secrets.of(self.delivery).stored(content)

    # Recording it -----------------------------------------------------------------------------------

    def _settle(self, outcome: Outcome) -> None:
        reached: list[str] = []
        settle, actor = self._side.ledger.settle, self._note.worker
        along = self.canvas.write if outcome.replaces else None
        self._write(lambda: reached.append(settle(self.claim, outcome.decide, actor=actor, along=along)))
        self._settled = reached[-1]
        if self._settled in {states.DEAD, states.CANCELLED}:
            self.follower.end(self._side.ledger, heirs(self.delivery.embed), self.claim.row_id)
        self.canvas.ring()

    def _write(self, write: Callable[[], None]) -> None:
        """Record the outcome, patiently; one that cannot be recorded counts as not done."""
        self._progress.flush()
        patience = time.monotonic() + self._lease
        while not self._written(write, last=time.monotonic() > patience):
            time.sleep(min(SETTLE_PAUSE, self._lease / 10))

    def _written(self, write: Callable[[], None], *, last: bool) -> bool:
        try:
            write()
        except LeaseLost as exc:
            self._fenced(exc)
            raise Unclaimed("fenced: another claim took over") from exc
        except LedgerUnavailable as exc:
            if not last:
                return False
            self._settled = "unrecorded"
            logger.error("Task %s[%s]: its outcome was not recorded: %s", self._task.name, self.task_id, exc)  # noqa: TRY400
            raise LedgerDown("the outcome could not be recorded") from exc
        return True

    def _fenced(self, exc: BaseException) -> None:
        """Take note that the claim is over: what the tracer makes of this run is recorded nowhere."""
        self._settled = "fenced"
        signals.task_fenced.send(sender=self._task, task_id=self.task_id, claim=self.claim.claims)
        logger.warning("Task %s[%s]: %s", self._task.name, self.task_id, exc)
