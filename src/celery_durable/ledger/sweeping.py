"""Verbs of the sweep: what is due is moved in bounded batches; the cost follows what is due, not what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as sa

from celery_durable import failures, states
from celery_durable.ledger.following import Following
from celery_durable.ledger.moves import micros
from celery_durable.records import Envelope

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

#: Longest interval between two rings of one row, in seconds; and how often a busy queue may put one off.
MAX_INTERVAL, MAX_DEFERRALS = 600.0, 3


@dataclass(frozen=True, slots=True)
class Glance:
    """What is due right now, and the database's clock (microseconds)."""

    now: int
    waits: bool
    leases: bool
    rings: bool
    deadlines: bool
    cancels: bool


@dataclass(frozen=True, slots=True)
class Ring:
    """A message to be sent (again)."""

    row_id: int
    task_id: str
    envelope_no: int
    retries: int
    deadline_at: int | None
    now: int
    state: str
    envelope: Envelope


class Sweeping(Following):
    """Released waits, expired leases and deadlines, rung doorbells."""

    def glance(self, broker: str, running: Collection[str] = ()) -> Glance:
        """Ask in one cheap statement whether anything is due, and whether one of these running tasks is cancelled."""
        c, now = self.t.task.c, self.dialect.instant_sql
        flagged = (c.task_id.in_(list(running)), self.in_state(states.RUNNING), c.cancel_requested_at.is_not(None))

        def any_of(*where: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
            return sa.select(sa.literal(1)).where(*where).limit(1).exists()

        query = sa.select(
            now.label("now"),
            any_of(self.in_state(states.WAITING), c.wake_at <= now).label("waits"),
            any_of(self.in_state(states.RUNNING), c.lease_expires_at <= now).label("leases"),
            any_of(c.publish_at <= now, c.broker == broker).label("rings"),
            any_of(*self._overdue()).label("deadlines"),
            (any_of(*flagged) if running else sa.literal(0)).label("cancels"),
        )
        row = self.db.run(lambda connection: connection.execute(query).one(), read_only=True)
        due = (row.waits, row.leases, row.rings, row.deadlines, row.cancels)
        return Glance(row.now, *(bool(x) for x in due))

    def release(self, limit: int, *, actor: str) -> int:
        """Move due waits to ``queued``, where they are rung at once; return how many were looked at.

        What a pause holds goes on waiting, and tells for which one.
        """
        c = self.t.task.c
        due = (
            self.in_state(states.WAITING),
            c.wake_at <= self.dialect.instant_sql,
            c.wait_kind.not_in((states.DUPLICATE, states.UNREGISTERED, states.REPLACED)),
        )
        columns = (c.id, c.state, c.claims, c.wait_kind, c.task, c.queue)

        def work(connection: sa.Connection) -> int:
            pauses = self._pauses(connection, shared=True)
            rows = self.writer.lock(connection, *due, columns=columns, limit=limit, order=c.wake_at)
            self._let_go(connection, rows, pauses, actor=actor)
            return len(rows)

        return self.db.run(work)

    def expire_leases(self, limit: int, *, actor: str) -> list[str]:
        """End attempts whose lease has passed; return their task ids."""
        c = self.t.task.c
        due = (self.in_state(states.RUNNING), c.lease_expires_at <= self.dialect.instant_sql)

        def work(connection: sa.Connection) -> list[sa.Row[Any]]:
            rows = self.writer.lock(connection, *due, limit=limit, order=c.lease_expires_at)
            for row in rows:
                failure = failures.loss(
                    "lease_expired", "celery_durable.LeaseExpired",
                    f"the lease of {row.lease_owner} (pid {row.lease_pid}) was not renewed",
                    worker=row.lease_owner, pid=row.lease_pid, claim=row.claims,
                )  # fmt: skip
                self.writer.write(connection, row, states.lose(row, failure, uuid4().hex), actor=actor)
            return list(rows)

        return [r.task_id for r in self.db.run(work)]

    def _overdue(self) -> tuple[sa.ColumnElement[bool], ...]:
        c = self.t.task.c
        return (
            c.deadline_at <= self.dialect.instant_sql, c.finished_at.is_(None), ~self.in_state(states.RUNNING),
        )  # fmt: skip

    def expire_deadlines(self, limit: int, *, actor: str) -> int:
        """End rows whose ``expires`` passed before anybody ran them."""
        c = self.t.task.c

        def work(connection: sa.Connection) -> int:
            rows = self.writer.lock(connection, *self._overdue(), limit=limit, order=c.deadline_at)
            for row in rows:
                failure = failures.loss(
                    "expired", "celery.exceptions.TaskRevokedError", "expired before a worker could run it",
                    worker="", pid=None, claim=row.claims,
                )  # fmt: skip
                self.writer.write(connection, row, states.expire(row, uuid4().hex, failure), actor=actor)
            return len(rows)

        return self.db.run(work)

    def rung_before(self, broker: str, limit: int) -> set[str]:
        """Queues of due rows whose message was sent before: worth a look at the queue's depth."""
        c = self.t.task.c
        due = (
            sa.select(c.queue, c.rings)
            .where(c.publish_at <= self.dialect.instant_sql, c.broker == broker)
            .order_by(c.publish_at)
            .limit(limit)
        )
        rows = self.db.run(lambda connection: connection.execute(due).all(), read_only=True)
        return {r.queue for r in rows if r.rings}

    def frontiers(self, broker: str) -> dict[str, int]:
        """For each queue, when the latest message was sent whose task runs now: older ones were overtaken."""
        c = self.t.task.c
        query = (
            sa.select(c.queue, sa.func.max(c.published_at).label("frontier"))
            .where(self.in_state(states.RUNNING), c.lease_expires_at.is_not(None), c.broker == broker)
            .group_by(c.queue)
        )
        rows = self.db.run(lambda connection: connection.execute(query).all(), read_only=True)
        return {r.queue: r.frontier for r in rows if r.frontier is not None}

    def take_rings(
        self,
        broker: str,
        limit: int,
        *,
        depths: Mapping[str, int],
        frontiers: Mapping[str, int] = MappingProxyType({}),
        reserved: Collection[str] = (),
        among: Collection[int] | None = None,
    ) -> tuple[list[Ring], int]:
        """Move ``publish_at`` of due rows on, committed before anything is published (PROTOCOL 7).

        A row whose message may still be there is put off instead, at most three times in a row (PROTOCOL 8):
        its queue holds messages and none sent later runs already (``frontiers``), or it sits in this process
        (``reserved``). ``among`` names the only rows that are looked at. Returns the messages to send and how many rows
        were due.
        """
        c = self.t.task.c
        # In a transaction that wrote the rows itself, its start is before they were due.
        now = self.dialect.clock_sql if self.db.lent else self.dialect.instant_sql
        due = (c.publish_at <= now, c.broker == broker)

        def work(connection: sa.Connection) -> tuple[list[Ring], int]:
            columns = (
                c.id, c.task_id, c.queue, c.state, c.rings, c.deferrals, c.retries, c.deadline_at, c.envelope_no,
                c.envelope, c.body, c.published_at, self.dialect.instant_sql.label("now"),
            )  # fmt: skip
            where = due if among is None else (*due, c.id.in_(among))
            rows = self.writer.lock(connection, *where, columns=columns, limit=limit, order=c.publish_at)
            rings: list[Ring] = []
            groups: dict[tuple[float, bool], list[int]] = {}
            for row in rows:
                overtaken = (row.published_at or 0) < frontiers.get(row.queue, 0)
                queued = row.rings > 0 and depths.get(row.queue, 0) > 0 and not overtaken
                there = queued or row.task_id in reserved
                deferred = there and row.deferrals < MAX_DEFERRALS
                interval = min(MAX_INTERVAL, self.republish_after * 2.0 ** min(row.rings, 10))
                groups.setdefault((interval, deferred), []).append(row.id)
                if not deferred:
                    rings.append(_ring(row))
            for (interval, deferred), ids in groups.items():
                counted = (
                    {"deferrals": c.deferrals + 1}
                    if deferred
                    else {
                        "rings": c.rings + 1, "publish_count": c.publish_count + 1, "deferrals": 0,
                        "published_at": self.dialect.clock_sql,
                    }
                )  # fmt: skip
                moved_on = {"publish_at": self.dialect.clock_sql + micros(interval)}
                connection.execute(sa.update(self.t.task).where(c.id.in_(ids)).values(counted | moved_on))
            return rings, len(rows)

        return self.db.run(work)

    def ring_again(self, row_ids: Sequence[int], *, at_once: bool) -> None:
        """Take back rings that the broker did not take: no interval grows by them.

        ``at_once`` makes the rows due (the broker is down); else they wait for the time already set.
        """
        if not row_ids:
            return
        c = self.t.task.c
        due = {"publish_at": self.dialect.clock_sql} if at_once else {}
        update = (
            sa.update(self.t.task)
            .where(c.id.in_(list(row_ids)), c.publish_at.is_not(None), c.rings > 0)
            .values(rings=c.rings - 1, publish_count=c.publish_count - 1, **due)
        )
        self.db.run(lambda connection: connection.execute(update), autocommit=True)

    def clear_continuations(self, tokens: Mapping[str, str]) -> int:
        """Note that outcomes have been told (task id -> token of that outcome, and of no later one)."""
        if not tokens:
            return 0
        c = self.t.task.c
        told = (c.task_id.in_(list(tokens)), c.continuation_pending.in_(list(tokens.values())))

        def work(connection: sa.Connection) -> int:
            update = sa.update(self.t.task).where(*told).values(continuation_pending=None, publish_at=None)
            return int(connection.execute(update).rowcount)

        return self.db.run(work, autocommit=True)


def _ring(row: sa.Row[Any]) -> Ring:
    envelope = Envelope.load(row.envelope, row.body)
    return Ring(row.id, row.task_id, row.envelope_no, row.retries, row.deadline_at, row.now, row.state, envelope)
