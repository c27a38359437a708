"""How a worker that shuts down gives its work away, so that nothing waits for it to end.

Celery tells of a warm shutdown by a signal, of a soft one not before it is over; a remote ``shutdown`` command only
closes the steps. All three are heard here, and set one byte on the board: bodies see it at their next check, the
keeper's thread within a moment. It stops consuming and has rung for others what sits here and was not started.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.signals import worker_shutting_down

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.worker.keeper import Keeper

logger = logging.getLogger(__name__)


class Drain:
    """One per worker."""

    def __init__(self, keeper: Keeper, worker: Any) -> None:
        """Listen for every kind of shutdown."""
        self._keeper, self._worker = keeper, worker
        self._handed: set[str] = set()
        self._begun = False
        self._stock_wait: Callable[[], None] = worker.wait_for_soft_shutdown
        worker.wait_for_soft_shutdown = self._wait_for_soft_shutdown
        self._uid = f"celery-durable-drain-{id(worker)}"
        worker_shutting_down.connect(self._on_signal, sender=worker.hostname, weak=False, dispatch_uid=self._uid)

    def end(self) -> None:
        """Listen no more."""
        worker_shutting_down.disconnect(sender=self._worker.hostname, dispatch_uid=self._uid)

    # In signal handlers: a byte and a copy, nothing that could block ----------------------------------------------

    def _on_signal(self, **_: Any) -> None:
        self._keeper.leaving()

    def _wait_for_soft_shutdown(self) -> None:
        """Wait as Celery does; in the solo pool there is nothing to wait for, its body stands still meanwhile."""
        self._keeper.leaving()
        if not self._keeper.solo:
            self._stock_wait()

    # In the keeper's thread ------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Stop consuming, once; ring for others what this worker took and did not start. True the first time.

        Raises:
            LedgerError: the ledger did not answer; the next turn tries again.
        """
        first, self._begun = not self._begun, True
        if first:
            logger.info("celery-durable: the worker shuts down, its tasks go to others at their next check")
            self._stop_consuming()
        idle = [task_id for task_id in self._keeper.unstarted() if task_id not in self._handed]
        if idle:
            self._keeper.ledger.due_now(*idle)
            self._handed.update(idle)
        return first

    def _stop_consuming(self) -> None:
        consumer = self._keeper.consumer
        task_consumer = getattr(consumer, "task_consumer", None)
        if task_consumer is not None:
            consumer.call_soon(task_consumer.cancel)
