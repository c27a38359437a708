"""The sweep: one cheap look per interval, and bounded batches of whatever is due."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from celery_durable.outbox import Publisher
from celery_durable.worker.strangers import Strangers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from celery_durable.ledger import Glance, Ring
    from celery_durable.wiring import Plugin

logger = logging.getLogger(__name__)

#: Rows per batch, and batches per turn: others may want their turn, and leases have to be renewed.
BATCH, BATCHES = 100, 10
#: How far (as a part of a lease) the database's clock may drift from ours within one interval.
DRIFT = 1 / 3


class Sweeper:
    """Releases due waits, ends what expired, rings what is due. Every worker has one; they share the work."""

    def __init__(
        self, side: Plugin, actor: str, *, reserved: Callable[[], Iterable[str]],
        running: Callable[[], Sequence[str]] = tuple,
    ) -> None:  # fmt: skip
        """``reserved`` tells whose messages sit in this process, ``running`` which tasks run in its pool."""
        self.side, self.ledger, self.actor = side, side.ledger, actor
        self._reserved, self._running = reserved, running
        self._strangers = Strangers(side, actor)
        self._publisher = Publisher(side.app, side.ledger.uuid)
        self._lease = side.settings.lease
        self._last: tuple[float, int] | None = None
        self._patient_until = 0.0

    def sweep(self) -> bool:
        """Do one turn; say whether one of the running tasks was cancelled.

        Raises:
            LedgerError: the ledger did not answer; what was not committed is due still.
        """
        if self._last is None:
            self._strangers.arrive()
        glance = self.ledger.glance(self.side.broker, self._running())
        may_expire = self._trusts_the_clock(glance)
        if glance.waits:
            self._all(lambda: self.ledger.release(BATCH, actor=self.actor))
            self.ledger.follow(BATCH, actor=self.actor)
            self._strangers.sweep()
        if glance.leases and may_expire:
            for task_id in self.ledger.expire_leases(BATCH, actor=self.actor):
                logger.warning("Task %s: its lease expired", task_id)
        if glance.deadlines:
            self._all(lambda: self.ledger.expire_deadlines(BATCH, actor=self.actor))
        if glance.rings or glance.waits or glance.leases or glance.deadlines:
            self._ring()
        return glance.cancels

    def close(self) -> None:
        """Close the broker connections."""
        self._publisher.close()

    def ring_unclaimed(self, task_id: str) -> None:
        """Ring a row at once whose message died with a pool process before it was claimed."""
        self.ledger.due_now(task_id)

    def _trusts_the_clock(self, glance: Glance) -> bool:
        """After an outage or a jump of the database's clock, give everybody time to renew first (PROTOCOL 9)."""
        now, last = time.monotonic(), self._last
        self._last = (now, glance.now)
        patience = self._lease / 3
        if last is None or now - last[0] > patience:
            self._patient_until = now + patience
        elif abs((glance.now - last[1]) / 1e6 - (now - last[0])) > self._lease * DRIFT:
            logger.warning("The database's clock jumped; no lease is expired for %.1f s", patience)
            self._patient_until = now + patience
        return now >= self._patient_until

    def _all(self, batch: Callable[[], int]) -> None:
        for _ in range(BATCHES):
            if batch() < BATCH:
                return

    def _ring(self) -> None:
        """Send due messages. A broker that is down ends the turn; the rows stay due."""
        if self._publisher.down:
            return
        for _ in range(BATCHES):
            queues = self.ledger.rung_before(self.side.broker, BATCH)
            depths = {queue: self._publisher.depth(queue) for queue in queues}
            frontiers = self.ledger.frontiers(self.side.broker) if any(depths.values()) else {}
            rings, due = self.ledger.take_rings(
                self.side.broker, BATCH, depths=depths, frontiers=frontiers, reserved=set(self._reserved())
            )
            unsent: dict[bool, list[int]] = {True: [], False: []}
            for ring in rings:
                if not self._send(ring):
                    unsent[self._publisher.down].append(ring.row_id)
            for down, row_ids in unsent.items():
                self.ledger.ring_again(row_ids, at_once=down)
            if due < BATCH or self._publisher.down:
                return

    def _send(self, ring: Ring) -> bool:
        if self._publisher.down:
            return False
        try:
            self._publisher.ring(
                ring.envelope, ring.task_id, ring.envelope_no, retries=ring.retries,
                deadline_at=None if ring.state != "queued" else ring.deadline_at, now=ring.now,
                owed=ring.state != "queued",
            )  # fmt: skip
        except Exception as exc:  # noqa: BLE001 - one row that cannot be sent never blocks the others
            logger.warning("Task %s could not be sent (%s: %s); it stays due.", ring.task_id, type(exc).__name__, exc)
            return False
        return True
