"""The registry of workers: who is there, what it consumes, when it last said so."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable.ledger.base import Room
from celery_durable.ledger.liveness_session import liveness_lock
from celery_durable.ledger.moves import micros
from celery_durable.records import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.ledger.liveness import Held, LivenessLock

#: Seconds after which a silent worker's row is removed.
FORGET_AFTER = 86_400.0


@dataclass(frozen=True, slots=True)
class Presence:
    """How a worker introduces itself."""

    id: str
    hostname: str
    pid: int
    queues: Sequence[str]
    tasks: Sequence[str]
    broker: str
    lease: float
    pool: str = ""
    #: The lock by which it shows that it lives; None when it holds none.
    lock: Held | None = None


class Registry(Room):
    """Workers as rows."""

    def enter(self, presence: Presence) -> None:
        """Register a worker, and forget those silent for a day."""
        w = self.t.worker
        clock = self.dialect.clock_sql
        values = {
            "id": presence.id, "hostname": presence.hostname, "pid": presence.pid,
            "queues": json.dumps(list(presence.queues)), "tasks": json.dumps(list(presence.tasks)),
            "broker": presence.broker, "started_at": clock, "heartbeat_at": clock, "phase": "starting",
            "running": 0, "lease_micros": micros(presence.lease), "pool": presence.pool, **_holding(presence.lock),
        }  # fmt: skip

        def work(connection: sa.Connection) -> None:
            old = w.c.heartbeat_at < clock - micros(FORGET_AFTER)
            connection.execute(sa.delete(w).where(sa.or_(old, w.c.id == presence.id)))
            connection.execute(sa.insert(w).values(values))

        self.db.run(work)

    def beat(
        self, worker_id: str, *, phase: str, running: int, queues: Sequence[str] | None = None,
        lock: Held | None = None,
    ) -> bool:  # fmt: skip
        """Report that a worker lives, what it consumes and which lock it holds now.

        False when its row is gone: it has to enter again.
        """
        w = self.t.worker
        values: dict[str, Any] = {"heartbeat_at": self.dialect.clock_sql, "phase": phase, "running": running}
        values |= _holding(lock)
        if queues is not None:
            values["queues"] = json.dumps(list(queues))
        update = sa.update(w).where(w.c.id == worker_id).values(values)
        return bool(self.db.run(lambda c: c.execute(update).rowcount, autocommit=True))

    def liveness_lock(self) -> LivenessLock:
        """Make the lock of a worker; nothing connects yet."""
        return liveness_lock(self.db, self.t.worker)

    def workers(self) -> list[Worker]:
        """List the workers, the most recently heard of first."""
        w = self.t.worker
        query = sa.select(w, self.dialect.instant_sql.label("now")).order_by(w.c.heartbeat_at.desc())
        rows = self.db.run(lambda c: c.execute(query).all(), read_only=True)
        return [
            Worker(
                r.id, r.hostname, r.pid, tuple(json.loads(r.queues)), tuple(json.loads(r.tasks)), r.broker,
                r.started_at, r.heartbeat_at, r.phase, r.running, r.lease_micros / 1e6, r.now, r.pool,
                r.lock_number,
            )
            for r in rows
        ]  # fmt: skip


def _holding(lock: Held | None) -> dict[str, Any]:
    """Columns of a worker that holds a lock, or none."""
    number, server = lock if lock is not None else (None, None)
    return {"lock_number": number, "lock_server": server}
