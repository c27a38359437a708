"""A delivery of a row that is over but still owes its outcome: Celery's tracer tells it, no body runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.exceptions import TaskRevokedError
from celery.utils.serialization import create_exception_cls

from celery_durable import failures, signals, states, submission
from celery_durable.continuing import Follower, heirs
from celery_durable.control import Unclaimed
from celery_durable.errors import LedgerUnavailable

if TYPE_CHECKING:
    from celery_durable.delivery import Delivery

logger = logging.getLogger(__name__)


class Telling:
    """A delivery of a row that is over but still owes its outcome: Celery's tracer tells it, no body runs."""

    def __init__(self, delivery: Delivery, row: Any) -> None:
        """Bind to the row as it stands."""
        self.delivery, self._row = delivery, row
        self.entered = False
        self.over, self.succeeded, self.heard = True, row.state == states.SUCCEEDED, True
        self.follower = Follower(row.task_id, row.claims)

    def execute(self, _args: Any, _kwargs: Any) -> Any:
        """Return or raise the recorded outcome, so that callbacks, chain and result are sent."""
        row, task = self._row, self.delivery.task
        if row.state == states.SUCCEEDED:
            return submission.decoded(row)
        self.follower.end(self.delivery.side.ledger, heirs(self.delivery.embed), row.id)
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
        told = told and not self.follower.put_off
        if told:
            try:
                self.delivery.side.ledger.clear_continuations({self._row.task_id: self._row.continuation_pending})
            except LedgerUnavailable:
                logger.warning("Task %s was told its outcome; it will be told again.", self._row.task_id)
        return told
