"""The end of a worker that shows a sign of death: what it ran goes back to the queue, at once and uncounted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import sqlalchemy as sa

from celery_durable import failures, states
from celery_durable.ledger.registry import Registry

if TYPE_CHECKING:
    from celery_durable.records import Failure

#: What the failure row of such an attempt names as its exception.
GONE = "celery_durable.WorkerGone"
#: How many queued rows are rung whose messages the worker may have held.
MAX_PREFETCHED = 100


class Burial(NamedTuple):
    """Whose attempts were ended, and whether there is nothing left to do."""

    task_ids: list[str]
    over: bool


class Burying(Registry):
    """What one worker does for another that is gone."""

    def bury(self, worker_id: str, number: int, limit: int, *, actor: str) -> Burial:
        """End the attempts of a worker whose lock is free, unless it has said meanwhile that it holds another one.

        The sign may be wrong: it is no loss, and what the worker still writes is refused by the claim's token. What
        must not be begun twice (``on_loss="dead"``) waits for its lease. At last the oldest queued rows of the worker's
        queues are rung: their messages may have died with it.
        """
        w, c = self.t.worker, self.t.task.c
        theirs = (
            self.in_state(states.RUNNING), c.lease_owner == worker_id, c.lease_expires_at.is_not(None),
            c.on_loss == "retry",
        )  # fmt: skip

        def work(connection: sa.Connection) -> Burial:
            known = sa.select(w.c.queues, w.c.broker).where(w.c.id == worker_id, w.c.lock_number == number)
            worker = connection.execute(known.with_for_update()).first()
            if worker is None:
                return Burial([], over=True)
            rows = self.writer.lock(connection, *theirs, limit=limit, order=c.id)
            for row in rows:
                move = states.lose(row, _gone(row), uuid4().hex, counted=self._proven(connection, row))
                self.writer.write(connection, row, move, actor=actor)
            left = connection.execute(sa.select(c.id).where(*theirs).limit(1)).first()
            if left is None:
                self._ring_prefetched(connection, worker)
                laid = sa.update(w).where(w.c.id == worker_id)
                connection.execute(laid.values(lock_number=None, lock_server=None, phase="gone"))
            return Burial([row.task_id for row in rows], over=left is None)

        return self.db.run(work)

    def _proven(self, connection: sa.Connection, row: sa.Row[Any]) -> int:
        """Count the sign of death that ended the attempt before this one, if that worker was never heard of again.

        So a task that takes its whole worker with it each time is poison, with one attempt more than others have.
        """
        f, w, e = self.t.failure, self.t.worker, self.t.event
        alive = sa.select(w.c.id).where(w.c.id == f.c.worker, w.c.heartbeat_at > f.c.occurred_at)
        replayed = sa.select(e.c.id).where(
            e.c.task_row == f.c.task_row, e.c.verb == "replay", e.c.at >= f.c.occurred_at
        )  # fmt: skip
        before = sa.select(f.c.id).where(
            f.c.task_row == row.id, f.c.claim == row.claims - 1, f.c.exception == GONE, ~alive.exists(),
            ~replayed.exists(),
        )  # fmt: skip
        return int(row.claims > 1 and connection.execute(before.limit(1)).first() is not None)

    def _ring_prefetched(self, connection: sa.Connection, worker: Any) -> None:
        """Make the oldest queued rows due; the sweep puts off those whose messages may still lie in the queue."""
        c = self.t.task.c
        lying = (
            self.in_state(states.QUEUED), c.queue.in_(json.loads(worker.queues)), c.finished_at.is_(None),
            c.broker == worker.broker, c.rings > 0, c.publish_at > self.dialect.instant_sql,
        )  # fmt: skip
        rows = self.writer.lock(connection, *lying, columns=(c.id,), limit=MAX_PREFETCHED, order=c.id)
        if rows:
            ring = sa.update(self.t.task).where(c.id.in_([row.id for row in rows]))
            connection.execute(ring.values(publish_at=self.dialect.clock_sql))


def _gone(row: sa.Row[Any]) -> Failure:
    left = max(0.0, (row.lease_expires_at - row.now) / 1e6)
    return failures.loss(
        "worker_lost", GONE, f"the worker {row.lease_owner} (pid {row.lease_pid}) is gone: the lock by which it showed "
        f"that it lives was free, {left:.3g} s before the end of its lease",
        worker=row.lease_owner, pid=row.lease_pid, claim=row.claims,
    )  # fmt: skip
