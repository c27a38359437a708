"""What a claimed delivery does (``Attempt``), and one that only tells an outcome again (``Telling``)."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from celery.result import ResultBase
from celery.states import IGNORED
from celery.utils.serialization import create_exception_cls
from kombu.exceptions import EncodeError
from kombu.serialization import dumps

from celery_durable import failures, signals, states, submission
from celery_durable.errors import LeaseLost, LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.delivery import Delivery, SoftLimitGuard
    from celery_durable.records import Claim, Envelope, Failure

    Decision = Callable[[Any], states.Move]

logger = logging.getLogger(__name__)

#: Seconds before a task that was rejected with requeue is tried again.
REQUEUE_DELAY = 1.0
#: Longest pause, in seconds, between two tries to record an outcome while the ledger is down.
SETTLE_PAUSE = 0.5


class Unclaimed(Ignore):
    """Celery shall do nothing more: the row is taken, over, or out of reach."""


class LedgerDown(Unclaimed):
    """The ledger did not answer: the worker has to stop consuming until it does."""


class Attempt:
    """One claimed run of a task's body."""

    def __init__(self, delivery: Delivery, claim: Claim, lease: float, guard: SoftLimitGuard) -> None:
        """Bind to a claim; ``lease`` is in seconds."""
        self.delivery, self.claim = delivery, claim
        self.task_id = claim.task_id
        self.entered = self.inside = False
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

    def capture(self, envelope: Envelope, wake: states.When | None) -> None:
        """Take the message of ``retry()`` or ``replace()``: the row moves when the body ends."""
        self._captured = (envelope, wake)

    def execute(self, args: Any, kwargs: Any) -> Any:
        """Run the body and record what comes of it; raise what Celery's tracer shall see."""
        try:
            result = self._body(args, kwargs)
            if self._captured is not None:  # retry(throw=False): stock Celery would succeed *and* retry
                raise Retry("retried with throw=False")  # noqa: TRY301 - handled as every other retry
        except MemoryError as exc:
            self._settle(self._lost(exc))
            raise Unclaimed("out of memory: recorded as a loss") from exc
        except Exception as exc:
            self._settle(self._decision(exc))
            if self._settled == states.CANCELLED:
                raise Unclaimed("cancelled while running") from exc
            raise
        return self._succeed(result)

    def finished(self, traced: Any) -> bool:
        """Say whether Celery's view of the outcome is the ledger's; where not, it stays owed."""
        told = traced.info is None or traced.info.state == IGNORED
        return told or self._settled != states.SUCCEEDED

    def _body(self, args: Any, kwargs: Any) -> Any:
        try:
            self.inside = True
            with self._guard.open():
                return self._task.run(*args, **kwargs)
        finally:
            self.inside = False

    def _succeed(self, result: Any) -> Any:
        try:
            content, content_type = self._encoded(result)
        except EncodeError as exc:
            self._settle(self._failed(exc, "permanent"))
            raise
        self._write(
            lambda: self._side.ledger.succeed(
                self.claim, content, content_type, owes=self._owes, actor=self._note.worker,
                continuation_grace=self._side.settings.republish_after,
            )
        )  # fmt: skip
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
            content_type, encoding, data = dumps(value, serializer=serializer)
        except Exception as exc:
            if isinstance(self._side.app.backend, DisabledBackend):
                return None, None  # stock Celery would not have stored it either
            raise EncodeError(
                f"{self._task.name}: the result, a {type(result).__name__}, cannot be serialised as {serializer}: "
                f"{exc}. Return plain data, or set ignore_result=True."
            ) from exc
        data = data.encode() if isinstance(data, str) else data
        return data, content_type if encoding == "utf-8" else f"{content_type};{encoding}"

    # What an exception of the body leads to ---------------------------------------------------------

    def _decision(self, exc: Exception) -> Decision:
        if isinstance(exc, Retry):
            return self._retried(exc)
        if isinstance(exc, Reject):
            return self._rejected(exc)
        if isinstance(exc, Ignore):
            return self._ignored()
        retried = getattr(self._task, "autoretry_for", ())
        return self._failed(exc, failures.kind_of(exc, expected=self._task.throws, retried=retried))

    def _failed(self, exc: BaseException, kind: str, retry: states.Retry | None = None) -> Decision:
        failure = self._described(exc, kind)
        ring = self._side.settings.republish_after
        return lambda row: states.fail(row, failure, self._note.token, owes=self._owes, ring=ring, retry=retry)

    def _retried(self, exc: Retry) -> Decision:
        cause = exc.exc if isinstance(exc.exc, BaseException) else exc
        retries = self.claim.retries + 1
        envelope, wake = self._captured or (None, None)
        if envelope is not None:
            retries = int(envelope.headers.get("retries") or retries)
        else:  # a Retry of the user's own making, without self.retry()
            seconds = isinstance(exc.when, int | float)
            wake = submission.wake_of(
                self._side.app, exc.when if seconds else None, None if seconds else exc.when
            ) or states.After(float(self._task.default_retry_delay))
        reason = f"retry {retries} after {self._described(cause, 'transient').headline}"
        retry = states.Retry(wake or states.After(), reason, retries, envelope)
        return self._failed(cause, "transient", retry)

    def _rejected(self, exc: Reject) -> Decision:
        if not exc.requeue:
            return self._failed(exc, "rejected")
        reason = f"rejected with requeue: {exc.reason}"
        retry = states.Retry(states.After(REQUEUE_DELAY), reason, self.claim.retries, kind="requeue")
        return self._failed(exc, "rejected", retry)

    def _ignored(self) -> Decision:
        """Take Ignore as a success without a result, or as the row's new message (replace)."""
        if self._captured is None:
            return lambda _: states.succeed_silently()
        envelope, wake = self._captured
        return lambda row: states.replace_message(row, envelope, wake, token=self._note.token, owes=self._owes)

    def _lost(self, exc: MemoryError) -> Decision:
        failure = failures.loss(
            "worker_lost", failures.qualified_name(type(exc)), "the process ran out of memory",
            worker=self._note.worker, pid=os.getpid(), claim=self.claim.claims,
        )  # fmt: skip
        return lambda row: states.lose(row, failure, self._note.token)

    def _described(self, exc: BaseException, kind: str) -> Failure:
        failure = failures.describe(exc, kind, worker=self._note.worker, claim=self.claim.claims)
        return replace(failure, retryable=kind == "transient")

    # Recording it -----------------------------------------------------------------------------------

    def _settle(self, decide: Decision) -> None:
        reached: list[str] = []
        self._write(lambda: reached.append(self._side.ledger.settle(self.claim, decide, actor=self._note.worker)))
        self._settled = reached[-1]

    def _write(self, write: Callable[[], None]) -> None:
        """Record the outcome, patiently; one that cannot be recorded counts as not done."""
        patience = time.monotonic() + self._lease
        while not self._written(write, last=time.monotonic() > patience):
            time.sleep(min(SETTLE_PAUSE, self._lease / 10))

    def _written(self, write: Callable[[], None], *, last: bool) -> bool:
        try:
            write()
        except LeaseLost as exc:
            signals.task_fenced.send(sender=self._task, task_id=self.task_id, claim=self.claim.claims)
            logger.warning("Task %s[%s]: %s", self._task.name, self.task_id, exc)
            raise Unclaimed("fenced: another claim took over") from exc
        except LedgerUnavailable as exc:
            if not last:
                return False
            logger.error("Task %s[%s]: its outcome was not recorded: %s", self._task.name, self.task_id, exc)  # noqa: TRY400
            raise LedgerDown("the outcome could not be recorded") from exc
        return True


class Telling:
    """A delivery of a row that is over but still owes its outcome: Celery's tracer tells it, no body runs."""

    def __init__(self, delivery: Delivery, row: Any) -> None:
        """Bind to the row as it stands."""
        self.delivery, self._row = delivery, row
        self.entered = False

    def execute(self, _args: Any, _kwargs: Any) -> Any:
        """Return or raise the recorded outcome, so that callbacks, chain and result are sent."""
        row, task = self._row, self.delivery.task
        if row.state == states.SUCCEEDED:
            return submission.decoded(row)
        expired = row.failure_kind == "expired"
        if row.state == states.CANCELLED or expired:
            reason = "expired" if expired else row.cancel_reason or "cancelled"
            stored = not submission.ignores_result(task, self.delivery.request)
            task.backend.mark_as_revoked(row.task_id, reason, request=task.request, store_result=stored)
            signals.celery.task_revoked.send(
                sender=task, request=task.request, terminated=False, signum=None, expired=expired
            )
            raise Unclaimed(f"{row.state}: {reason}")
        found = self.delivery.side.ledger.failures(row.id)
        raise (failures.rebuilt(found[-1], create_exception_cls) if found else TaskRevokedError(row.failure_kind))

    def finished(self, traced: Any) -> bool:
        """Clear what is owed once it was told, and say whether it was."""
        state, info = self._row.state, traced.info
        told = info is None if state == states.SUCCEEDED else info is not None
        if told:
            try:
                self.delivery.side.ledger.clear_continuations({self._row.task_id: self._row.continuation_pending})
            except LedgerUnavailable:
                logger.warning("Task %s was told its outcome; it will be told again.", self._row.task_id)
        return told
