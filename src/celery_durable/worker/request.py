"""The parent's view of one delivery: when it is acknowledged, and what is known when its process dies."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.request import Request, task_ready

from celery_durable import failpoints, runs, submission
from celery_durable.delivery import Note
from celery_durable.outbox import HEADER
from celery_durable.secrecy import PoolLogScrubber
from celery_durable.wiring import plugin

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.worker.keeper import Keeper

logger = logging.getLogger(__name__)

#: Pools in which a body can be ended from outside.
ENDED = frozenset({"prefork", "gevent"})
#: Seconds that a hard limit of ours leaves to a task after its soft limit.
SOFT_LIMIT_GRACE = 60.0


class DurableRequest(Request):
    """A request whose work is a row: the message is acknowledged early, a death is recorded at once.

    None of its hooks touches the ledger: they run on the worker's event loop, and leave word for the keeper.
    """

    def __init__(self, message: Any, **options: Any) -> None:
        """Read the message's mark and give this delivery its token."""
        super().__init__(message, **options)
        side = plugin(self._app)
        self.keeper: Keeper | None = side.keeper
        self.early = self.buried = False
        worker = side.keeper.worker_id if side.keeper is not None else self._hostname
        uuid = side.keeper.ledger_uuid if side.keeper is not None else side.ledger.uuid
        mark = self._request_dict.pop(HEADER, None)
        note = Note.read(mark, self.id, uuid, worker)
        self.owed = note.recorded and bool(mark.get("owed"))
        plain = note.plain()
        if not note.recorded:
            plain["message"] = {"headers": dict(message.headers or {}), "content_type": self._content_type}
            plain["message"]["headers"].pop(HEADER, None)
        self.note = note
        self._request_dict[HEADER] = plain
        self.time_limits = self._limits(side.settings.time_limit)
        if self.keeper is not None and note.recorded:
            self.keeper.reserve(self.id, self)

    def __init_subclass__(cls, **options: Any) -> None:
        """Wrap what Celery generates per task: its overrides would hide ours."""
        super().__init_subclass__(**options)
        for name, around in (("execute_using_pool", _executing), ("on_success", _succeeding)):
            if name in cls.__dict__:
                setattr(cls, name, around(cls.__dict__[name]))

    def _limits(self, ours: float) -> tuple[Any, Any]:
        """Give a task without a hard limit one, so that a hung body cannot hold a renewed lease for ever."""
        hard, soft = (*self.time_limits, None, None)[:2]
        hard = hard or self._task.time_limit
        soft = soft or self._task.soft_time_limit
        if hard is None:
            hard = max(ours, soft + SOFT_LIMIT_GRACE) if soft else ours
            own = self.keeper.worker_time_limit if self.keeper is not None else None
            hard = min(hard, own) if own else hard
        return hard, soft

    # Acknowledgement ---------------------------------------------------------------------------------

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Acknowledge a recorded message as soon as the pool has it: the row, not the message, is the work."""
        super().on_accepted(pid, time_accepted)
        if self.note.recorded:
            self._ack_early()

    def _ack_early(self) -> None:
        """Acknowledge without setting ``acknowledged``: a shutdown would wait for the task, a reconnect cancel it."""
        if self.early or self.acknowledged:
            return
        self.early = True
        with failpoints.around(failpoints.ACKNOWLEDGE):
            if self.keeper is not None and self.keeper.solo:
                # The solo pool's event loop is busy with the task itself: nothing deferred would be sent.
                self._message.ack_log_error(logger, self._connection_errors)
            else:
                self._on_ack(logger, self._connection_errors)

    def acknowledge(self) -> None:
        """Acknowledge the message, unless that was done when the pool accepted it."""
        if self.early:
            self.acknowledged = True
        else:
            with failpoints.around(failpoints.ACKNOWLEDGE):
                super().acknowledge()

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's signature
        """Reject the message; one that is recorded is never requeued, its row is rung again instead."""
        if self.early:
            self.acknowledged = True
        else:
            super().reject(requeue=requeue)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 - Celery's signature  # noqa: FBT001, FBT002
        """End the attempt at a cold shutdown or a lost connection; its row goes back to the queue."""
        if self.early and not self._shutting_down():
            return  # the connection is gone, the claim is not
        if self.keeper is not None and self.keeper.pool not in ENDED:
            return  # nothing can end the body but itself: at its next check
        super().cancel(pool, signal, emit_retry=False)
        self._lost("worker_lost", "celery.exceptions.WorkerTerminate", "the connection to the broker was lost")

    def _shutting_down(self) -> bool:
        return self.keeper is None or self.keeper.shutting_down()

    # Outcomes ------------------------------------------------------------------------------------------

    def told(self) -> None:
        """Leave word that the outcome reached whoever waited for it."""
        if self.keeper is None:
            return
        embed = {"callbacks": None, "errbacks": self.errbacks, "chord": self.chord}
        embed |= {k: self._payload[2].get(k) for k in ("callbacks", "chain")}
        if submission.owes(self._app, embed, self.group, ignore_result=self._ignore_result):
            self.keeper.told(self.id, self.note.token)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Sort deaths from failures: a death is a loss for the ledger, a failure was settled by the child."""
        exc = exc_info.exception
        exc = exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
        if isinstance(exc, runs.LedgerDown) and self.keeper is not None:
            self.keeper.ledger_failed()
        if isinstance(exc, runs.NotStarted) and self.keeper is not None:
            self.keeper.unclaimed(self)
        if isinstance(exc, Terminated):
            return super().on_failure(exc_info, send_failed_event, return_ok)
        if isinstance(exc, SystemExit | KeyboardInterrupt) and (self._already_cancelled or self._already_revoked):
            return super().on_failure(exc_info, send_failed_event, return_ok)
        if isinstance(exc, WorkerLostError | SystemExit | KeyboardInterrupt | MemoryError):
            return self._died("worker_lost", exc, exc_info)
        if isinstance(exc, TimeLimitExceeded) and not isinstance(exc, SoftTimeLimitExceeded):
            return self._died("timeout", exc, exc_info)
        self._over()
        answer = super().on_failure(exc_info, send_failed_event, return_ok)
        if not isinstance(exc, Ignore | Retry | Reject):
            self.told()
        return answer

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001 - Celery's signature
        """Record a hard time limit as a loss, kind ``timeout``; the soft one is the body's to handle."""
        if soft:
            super().on_timeout(soft, timeout)
            return
        self._died("timeout", TimeLimitExceeded(timeout), None)

    def bury(self) -> None:
        """Record the death of the pool process; what billiard says of it later changes nothing."""
        self.buried = True
        name = "billiard.exceptions.WorkerLostError"
        self._lost("worker_lost", name, f"pool process {self.worker_pid} is gone")

    def _died(self, kind: str, exc: BaseException, exc_info: Any) -> None:
        task_ready(self)
        if self.buried:
            return
        message = _told(kind, exc)
        logger.error("Task %s[%s] was lost (%s): %s", self.name, self.id, kind, message)
        module = type(exc).__module__
        name = type(exc).__qualname__ if module == "builtins" else f"{module}.{type(exc).__qualname__}"
        self._lost(kind, name, message)
        self.send_event("task-failed", exception=f"{name}({message!r})", traceback=getattr(exc_info, "traceback", None))

    def _lost(self, kind: str, exception: str, message: str) -> None:
        """Leave word of a death; the keeper records it and settles the message.

        What dies with a worker that shuts down is handed over: a shutdown is not the task's fault, and its signal may
        reach every process at once.
        """
        if self.keeper is not None:
            if kind == "worker_lost" and self.keeper.shutting_down():
                self.keeper.handed_over(self)
            else:
                self.keeper.lost(self, kind, exception, message)
        self._over()

    def _over(self) -> None:
        if self.keeper is not None:
            self.keeper.over(self.id, self.note.token)

    def revoked(self) -> bool:
        """Say whether Celery shall drop the delivery; never one that has only an outcome to tell (PROTOCOL 14)."""
        if self.owed or (self.note.recorded and self.keeper is not None and self.keeper.has_revoked(self.id)):
            return False  # the row has taken the revoke; if it rings still, that is for what came after
        return bool(super().revoked())

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:  # noqa: FBT001
        """Turn Celery's revoke into a move of the row, which outlives this worker's memory (PROTOCOL 14)."""
        if self.keeper is not None:
            self.keeper.revoked(self, expired=expired, reason=reason)
        self._over()
        super()._announce_revoked(reason, terminated, signum, expired)


def _told(kind: str, exc: BaseException) -> str:
    """Say what ended an attempt; what the body gave to ``sys.exit()`` only if that is a number, no text of its own."""
    if kind == "timeout" and exc.args:
        return f"hard time limit of {exc.args[0]} s"
    if isinstance(exc, WorkerLostError) or all(isinstance(arg, int | None) for arg in exc.args):
        return str(exc)
    return f"the body raised {type(exc).__name__} (its text is not kept)"


def _executing(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the lease of whatever goes to the pool."""

    @functools.wraps(method)
    def execute_using_pool(self: DurableRequest, pool: Any, **options: Any) -> Any:
        if self.keeper is not None:
            self._request_dict[HEADER]["line"] = self.keeper.keep(self)
        with PoolLogScrubber.applied(self.name):
            return method(self, pool, **options)

    return execute_using_pool


def _succeeding(method: Callable[..., Any]) -> Callable[..., Any]:
    """Leave word of a success after Celery has seen to it."""

    @functools.wraps(method)
    def on_success(self: DurableRequest, outcome: Any, **options: Any) -> Any:
        failed, result, _ = outcome
        if failed and isinstance(result.exception, SystemExit | KeyboardInterrupt):
            return self.on_failure(result, return_ok=True)  # stock Celery ends the whole worker here
        answer = method(self, outcome, **options)
        if not failed:
            self._over()
            self.told()
        return answer

    return on_success
