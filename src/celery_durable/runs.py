"""One delivery of a durable task in a pool process, around Celery's tracer.

Nothing of the user's runs unclaimed: the claim comes before the tracer (and its signals and hooks).
The body's outcome is settled within ``__call__``, so before callbacks, chain and result go out; what
a crash leaves untold is kept as ``continuation_pending``.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import Ignore, Reject
from celery.states import IGNORED
from celery.utils.threads import LocalStack

from celery_durable import adoption, states
from celery_durable.attempt import Attempt
from celery_durable.continuing import Follower, Guard
from celery_durable.control import LedgerDown, NotStarted, Unclaimed
from celery_durable.delivery import Delivery, Note, SoftLimitGuard
from celery_durable.errors import LedgerUnavailable, SubmitError
from celery_durable.secrecy import TRACE_LOGGER, LogScrubber
from celery_durable.telling import Telling
from celery_durable.wiring import plugin
from celery_durable.worker.orphans import ending_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.records import Submission
    from celery_durable.task import DurableTask

__all__ = ["LedgerDown", "NotStarted", "Unclaimed", "current", "deliver", "entering", "running"]

logger = logging.getLogger(__name__)

#: How often a delivery looks again at a row that changes beneath it.
_ROUNDS = 3

_stack = LocalStack()


def _in_hand() -> Delivery | None:
    run: Attempt | Telling | None = _stack.top
    return None if run is None else run.delivery


logging.getLogger(TRACE_LOGGER).addFilter(LogScrubber(_in_hand))


def current() -> Attempt | None:
    """Return the attempt of this thread or greenlet, None outside one."""
    found = _stack.top
    return found if isinstance(found, Attempt) else None


def running(task_id: str) -> Attempt | None:
    """Return the current attempt if it is this task's and its body is running."""
    attempt = current()
    return attempt if attempt is not None and attempt.inside and attempt.task_id == task_id else None


def at(task_id: str) -> Attempt | Telling | None:
    """Return the run of this delivery if it is this task's, whether its body runs or its outcome is told."""
    run: Attempt | Telling | None = _stack.top
    return run if run is not None and run.delivery.uuid == task_id else None


def collected(sub: Submission) -> bool:
    """Take a part of the canvas that replaces the running task, if that is what Celery is sending just now."""
    attempt = current()
    return attempt is not None and attempt.canvas.collect(sub)


def entering(task: DurableTask) -> Attempt | Telling | None:
    """Return the run whose body ``__call__`` is about to start; None for any other call of the task."""
    run: Attempt | Telling | None = _stack.top
    if run is None or run.entered or run.delivery.task.name != task.name:
        return None
    run.entered = True
    return run


def over() -> Attempt | Telling | None:
    """Return the run of this thread if its outcome is recorded: Celery is sending what follows."""
    run: Attempt | Telling | None = _stack.top
    return run if run is not None and run.over else None


def follower() -> Follower | None:
    """Return what names what is being sent, where that follows a recorded outcome."""
    run = over()
    return None if run is None else run.follower


def guarded(backend: Any) -> Any:
    """Return the backend, guarded while an outcome is told."""
    run = over()
    return backend if run is None else Guard(backend, succeeded=run.succeeded)


def deliver(task: DurableTask, tracer: Callable[..., Any], *call: Any) -> Any:
    """Handle one delivery in place of Celery's tracer, and return what the tracer would.

    ``call`` is the tracer's: task id, args, kwargs, request.
    """
    uuid, args, kwargs, request = call
    side = plugin(task._get_app())
    delivery = Delivery(side, task, uuid, args, kwargs, request, Note.of(request, side))
    if side.keeper is not None and side.keeper.board.draining:
        logger.info("Task %s[%s] was not run: the worker shuts down", task.name, uuid)
        if delivery.note.recorded:
            return _dropped(NotStarted("the worker shuts down; the row is rung for another one"))
        raise Reject("the worker shuts down", requeue=True)
    with ending_with_parent(), SoftLimitGuard() as guard:
        try:
            run = _admitted(delivery, guard)
        except LedgerUnavailable as exc:
            logger.error("Task %s[%s] was not run: %s", task.name, uuid, exc)  # noqa: TRY400 - one line is enough
            if delivery.note.recorded:
                return _dropped(LedgerDown("the ledger is down; the row is rung again"))
            raise Reject("the ledger is down", requeue=True) from exc
        if isinstance(run, str):
            logger.info("Task %s[%s] was not run: %s", task.name, uuid, run)
            return _dropped(Unclaimed(run))
        _stack.push(run)
        try:
            traced = tracer(uuid, args, kwargs, request)
        except Reject as exc:
            if not run.over:
                raise
            logger.warning("What follows task %s[%s] could not be sent and stays owed: %r", task.name, uuid, exc.reason)
            return _dropped(Unclaimed("what follows is sent by a later sweep"))
        finally:
            _stack.pop()
        return traced if run.finished(traced) else _dropped(Unclaimed("what follows is sent by a later sweep"))


def _admitted(delivery: Delivery, guard: SoftLimitGuard) -> Attempt | Telling | str:
    """Claim the row of a delivery, adopting a message that has none; or say why it does not run."""
    note, ledger = delivery.note, delivery.side.ledger
    lease = delivery.task.lease or delivery.side.settings.lease
    number = note.envelope_no if note.recorded else None
    for _ in range(_ROUNDS):
        since = time.monotonic()
        answer = ledger.claim(
            delivery.uuid, note.token, owner=note.worker, pid=os.getpid(), lease=lease, envelope_no=number
        )
        if answer.claim is not None:
            return Attempt(delivery, answer.claim, lease, guard, since)
        if answer.why == "free":
            continue
        if answer.why == "paused":
            ledger.hold(delivery.uuid)
        if answer.row is not None:
            owing = answer.why == "owing"
            return Telling(delivery, answer.row) if owing else f"its row is {answer.row.state} ({answer.why})"
        if note.recorded:
            adoption.park(delivery)
            return "its row is gone: the submission was rolled back, or the ledger lost commits"
        try:
            submitted = adoption.adopt(delivery)
        except SubmitError as exc:
            return adoption.refuse(delivery, exc)
        if submitted.state != states.QUEUED:
            return f"the row that holds its key is {submitted.state} ({submitted.outcome})"
    return "its row changes hands too fast"


def _dropped(exc: Ignore) -> Any:
    """Return what Celery's tracer returns for a task that raised Ignore."""
    try:
        raise exc
    except Ignore:
        return trace_ok_t(ExceptionInfo(internal=True), TraceInfo(IGNORED, exc), 0.0, None)
