"""Verbs of waiting: events sent to a task, sleeps already slept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from celery_durable import states
from celery_durable.errors import NoSuchTask
from celery_durable.ledger.moves import Entry
from celery_durable.ledger.pausing import Pausing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.records import Claim


@dataclass(frozen=True, slots=True)
class Waited:
    """How a running task has waited so far; times in microseconds on the database's clock."""

    waiting_from: int | None
    give_up_at: int | None
    event: str | None
    waits: int
    now: int


class Waiting(Pausing):
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
            s.task_row == claim.row_id, s.kind == states.SLEPT, s.name == name
        )
        row = self.db.run(lambda connection: connection.execute(query).first(), read_only=True)
        return None if row is None else (row.finished_at, row.now)

    # Starting over ------------------------------------------------------------------------------------

    def forget(self, connection: sa.Connection, row_ids: Sequence[int]) -> None:
        """Drop what tasks have done, slept and received: a fresh replay starts over."""
        for table in (self.t.step, self.t.signal):
            connection.execute(sa.delete(table).where(table.c.task_row.in_(row_ids)))
