"""Verbs of waiting: events sent to a task, sleeps already slept, tasks and queues that are paused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from celery_durable import states
from celery_durable.errors import NoSuchTask
from celery_durable.ledger.base import Room
from celery_durable.ledger.moves import Entry

if TYPE_CHECKING:
    from celery_durable.records import Claim

#: Rows per batch when a pause or its end moves what it concerns.
BATCH = 500


@dataclass(frozen=True, slots=True)
class Pause:
    """A task or queue that an operator holds back; times in microseconds."""

    kind: str
    target: str
    reason: str
    actor: str
    since: int
    until: int | None
    now: int

    @property
    def sentence(self) -> str:
        """Who holds what back, and why."""
        return f"{self.kind} {self.target!r} is paused by {self.actor}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Waited:
    """How a running task has waited so far; times in microseconds on the database's clock."""

    waiting_from: int | None
    give_up_at: int | None
    event: str | None
    waits: int
    now: int


class Waiting(Room):
    """Nothing waits without a row that says for what, since when and until when."""

    def send_event(self, row_id: int, name: str, payload: str, *, actor: str) -> bool:
        """Store an event for a live task; the first write of a name wins. False when there was one already.

        Whoever waits for it is due at once. The task's row is locked first, as by the wait itself: an event that
        arrives while the task goes to wait is seen by one of the two (PROTOCOL 18).

        Raises:
            NoSuchTask: the task is over, nobody will look.
        """
        s = self.t.signal

        def work(connection: sa.Connection) -> bool:
            rows = self.writer.lock(connection, self.t.task.c.id == row_id)
            if not rows or rows[0].state in states.TERMINAL:
                state = rows[0].state if rows else "gone"
                raise NoSuchTask(f"The task is {state}: nobody waits for event {name!r} any more.")
            row = rows[0]
            if self._sent(connection, row_id, name):
                return False
            connection.execute(
                sa.insert(s).values(
                    task_row=row_id, name=name, payload=payload, sent_at=self.dialect.clock_sql, sent_by=actor[:255]
                )
            )
            entry = Entry("event", row.state, row.state, row.claims, actor, f"event {name!r} arrived")
            self.writer.note(connection, row_id, entry)
            if row.wait_kind == states.EVENT and row.wait_event == name:
                due = sa.update(self.t.task).where(self.t.task.c.id == row_id)
                connection.execute(due.values(wake_at=self.dialect.clock_sql))
            return True

        return self.db.run(work)

    def _sent(self, connection: sa.Connection, row_id: int, name: str) -> bool:
        s = self.t.signal.c
        return connection.execute(sa.select(s.name).where(s.task_row == row_id, s.name == name)).first() is not None

    def event(self, claim: Claim, name: str) -> str | None:
        """Return the payload (JSON) of an event that arrived for a running task, None while it has not."""
        s = self.t.signal.c
        query = sa.select(s.payload).where(s.task_row == claim.row_id, s.name == name)
        found: str | None = self.db.run(lambda c: c.execute(query).scalar(), read_only=True)
        return found

    def waited(self, claim: Claim) -> Waited:
        """Tell how a running task has waited so far."""
        c = self.t.task.c
        query = sa.select(
            c.waiting_from, c.give_up_at, c.wait_event, c.waits, self.dialect.instant_sql.label("now")
        ).where(c.id == claim.row_id)
        row = self.db.run(lambda connection: connection.execute(query).one(), read_only=True)
        return Waited(row.waiting_from, row.give_up_at, row.wait_event, row.waits, row.now)

    def slept(self, claim: Claim, name: str) -> tuple[int, int] | None:
        """Return when a sleep that was begun ends, and the time now; None when it was not begun."""
        s = self.t.step.c
        query = sa.select(s.finished_at, self.dialect.instant_sql.label("now")).where(
            s.task_row == claim.row_id, s.name == name
        )
        row = self.db.run(lambda connection: connection.execute(query).first(), read_only=True)
        return None if row is None else (row.finished_at, row.now)

    # Pauses -------------------------------------------------------------------------------------------

    def pause(self, kind: str, target: str, reason: str, *, until: int | None, actor: str) -> int:
        """Hold back a task (by name) or a queue; return how many queued rows wait from now on.

        What runs goes on; what is queued, or arrives later, shows as waiting, kind ``paused``.
        """
        p = self.t.pause

        def work(connection: sa.Connection) -> None:
            connection.execute(sa.delete(p).where(p.c.kind == kind, p.c.target == target))
            connection.execute(
                sa.insert(p).values(
                    kind=kind,
                    target=target,
                    reason=reason,
                    actor=actor[:255],
                    since=self.dialect.clock_sql,
                    until=until,
                )
            )

        self.db.run(work)
        held = 0
        while moved := self.hold(BATCH, kind=kind, target=target):
            held += moved
        return held

    def hold(self, limit: int, *, kind: str = "", target: str = "", task_id: str | None = None) -> int:
        """Move queued rows that a pause concerns to ``waiting``: those of one pause, or the one that was met."""
        c = self.t.task.c
        where = [self.in_state(states.QUEUED)]
        if task_id is not None:
            where.append(c.task_id == task_id)
        else:
            where.append((c.task if kind == "task" else c.queue) == target)

        def work(connection: sa.Connection) -> int:
            pauses = self._pauses(connection)
            rows = self.writer.lock(connection, *where, limit=limit, order=c.id)
            moved = 0
            for row in rows:
                held = next((p for p in pauses if p.target == (row.task if p.kind == "task" else row.queue)), None)
                if held is not None:
                    self.writer.write(connection, row, states.hold(held.sentence, held.until), actor=held.actor)
                    moved += 1
            return moved

        return self.db.run(work)

    def resume(self, target: str, *, actor: str) -> int:
        """End the pauses of a task or queue; what they held is due at once. Return how many rows that were."""
        p, c = self.t.pause, self.t.task.c

        def work(connection: sa.Connection) -> int:
            connection.execute(sa.delete(p).where(p.c.target == target))
            held = (
                self.in_state(states.WAITING),
                c.wait_kind == states.PAUSED,
                sa.or_(c.task == target, c.queue == target),
            )
            update = sa.update(self.t.task).where(*held).values(wake_at=self.dialect.clock_sql)
            return int(connection.execute(update).rowcount)

        del actor  # the release that follows is the sweep's; the pause itself is gone
        return self.db.run(work)

    def pauses(self) -> list[Pause]:
        """List what is held back."""
        return self.db.run(self._pauses, read_only=True)

    def _pauses(self, connection: sa.Connection) -> list[Pause]:
        p, now = self.t.pause, self.dialect.instant_sql
        rows = connection.execute(
            sa.select(p, now.label("now")).where(sa.or_(p.c.until.is_(None), p.c.until > now)).order_by(p.c.since)
        )
        return [Pause(r.kind, r.target, r.reason, r.actor, r.since, r.until, r.now) for r in rows]

    def is_paused(self) -> sa.ColumnElement[bool]:
        """Return the condition that a pause concerns a task row."""
        p, c = self.t.pause.c, self.t.task.c
        concerned = sa.or_(
            sa.and_(p.kind == "queue", p.target == c.queue), sa.and_(p.kind == "task", p.target == c.task)
        )
        lasting = sa.or_(p.until.is_(None), p.until > self.dialect.instant_sql)
        return sa.select(sa.literal(1)).where(concerned, lasting).exists()

    def forget(self, connection: sa.Connection, row_id: int) -> None:
        """Drop what a task has slept and received: a fresh replay starts over."""
        for table in (self.t.step, self.t.signal):
            connection.execute(sa.delete(table).where(table.c.task_row == row_id))
