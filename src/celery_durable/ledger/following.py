"""Rows that end as another one does: aliases, and rows that a canvas stands in for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as sa

from celery_durable import failures, states
from celery_durable.ledger.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Collection


class Following(Waiting):
    """Who follows another row takes its outcome, and drives a continuation of his own."""

    def follow(self, limit: int, *, actor: str) -> int:
        """Let aliases whose first is over take its outcome; the others, and what a canvas stands in for, look later."""
        c = self.t.task.c
        due = (
            self.in_state(states.WAITING),
            c.wake_at <= self.dialect.instant_sql,
            c.wait_kind.in_((states.DUPLICATE, states.REPLACED)),
        )

        def work(connection: sa.Connection) -> int:
            rows = self.writer.lock(connection, *due, limit=limit, order=c.wake_at)
            for row in rows:
                if row.wait_kind == states.REPLACED:  # whoever ends the canvas ends it
                    self._look_later(connection, row, states.REPLACED_INTERVAL)
                    continue
                first = connection.execute(sa.select(self.t.task).where(c.id == row.duplicate_of)).first()
                if first is not None and first.state not in states.TERMINAL:
                    self._look_later(connection, row, states.FOLLOW_INTERVAL)
                    continue
                self._take_outcome(connection, row, first, actor, owes=bool(row.owes))
            return len(rows)

        return self.db.run(work)

    def _look_later(self, connection: sa.Connection, row: sa.Row[Any], seconds: float) -> None:
        later = self.writer.value(states.After(seconds))
        connection.execute(sa.update(self.t.task).where(self.t.task.c.id == row.id).values(wake_at=later))

    def end_replaced(self, task_ids: Collection[str], part_id: int, *, actor: str) -> int:
        """End rows that a canvas stands in for with the outcome of the part that will bring them no more.

        Of a failure Celery itself tells those who wait for them; of a part that was cancelled it does not.
        """
        c = self.t.task.c
        theirs = (c.task_id.in_(list(task_ids)), self.in_state(states.WAITING), c.wait_kind == states.REPLACED)

        def work(connection: sa.Connection) -> int:
            rows = self.writer.lock(connection, *theirs)
            part = connection.execute(sa.select(self.t.task).where(c.id == part_id)).first() if rows else None
            if part is None or part.state not in {states.DEAD, states.CANCELLED}:
                return 0
            for row in rows:
                owes = bool(row.owes) and part.state == states.CANCELLED
                self._take_outcome(connection, row, part, actor, owes=owes)
            return len(rows)

        return self.db.run(work) if task_ids else 0

    def _take_outcome(
        self, connection: sa.Connection, row: sa.Row[Any], first: sa.Row[Any] | None, actor: str, *, owes: bool
    ) -> None:
        if first is None:
            gone = failures.loss(
                "rejected", "celery_durable.RowMissing", "the row that held the same key is gone",
                worker="", pid=None, claim=row.claims,
            )  # fmt: skip
            move = states.follow(states.DEAD, "rejected", uuid4().hex, owes=owes, first="a row that is gone")
            move = replace(move, failure=gone)
        else:
            move = states.follow(first.state, first.failure_kind, uuid4().hex, owes=owes, first=first.task_id)
            outcome = {"result": first.result, "result_type": first.result_type, "cancel_reason": first.cancel_reason}
            connection.execute(sa.update(self.t.task).where(self.t.task.c.id == row.id).values(outcome))
            if move.to == states.DEAD:
                f = self.t.failure
                source = sa.select(
                    sa.literal(row.id), *(x for x in f.c if x.name not in {"id", "task_row"})
                ).where(f.c.task_row == first.id).order_by(f.c.id.desc()).limit(1)  # fmt: skip
                names = ["task_row", *(x.name for x in f.c if x.name not in {"id", "task_row"})]
                connection.execute(sa.insert(f).from_select(names, source))
        self.writer.write(connection, row, move, actor=actor)
