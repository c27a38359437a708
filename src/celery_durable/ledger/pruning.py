"""Forgetting what is long over: message, result, steps and history go; id, key and outcome stay (PROTOCOL 5).

What stays is why a pruned key never runs again: a submission of it meets its row, and so does a message that turns up
late. Only after ``durable_key_retention``, where that is set, does the row itself go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger.base import Room
from celery_durable.ledger.moves import micros
from celery_durable.ledger.results import TASK

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from celery_durable.states import When

#: Rows per transaction: a few hundredths of a second.
BATCH = 1_000
#: What is pruned unless somebody says otherwise: a dead task may still be replayed.
USUAL = (states.SUCCEEDED, states.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """Which rows: over since before a time, in one of these states, and of one task where that is named."""

    before: When
    states: Collection[str] = USUAL
    task: str | None = None


class Pruning(Room):
    """Small transactions over rows that are over and that nobody waits for; whoever works passes them by."""

    def prune(self, which: Aged, *, batch: int = BATCH) -> Iterator[int]:
        """Strip rows of all but what keeps their keys, ``batch`` in a transaction; yield how many each has done.

        A live row is never touched, nor one that owes an outcome or that a live alias follows. After a crash each
        batch stands whole or not at all, and calling it again goes on with the rest.
        """
        place = (0, 0)
        before = self._instant(which.before)
        while rows := self._prune_batch(which, before, place, batch):
            yield len(rows)
            place = rows[-1].finished_at, rows[-1].id

    def count_prunable(self, which: Aged) -> int:
        """Count the rows that ``prune`` would strip now, a page at a time."""
        place, total, page = (0, 0), 0, 10 * BATCH
        before, c = self._instant(which.before), self.t.task.c
        while rows := self._ask(self._page(which, before, place, page, (c.id, c.finished_at))):
            total += len(rows)
            place = rows[-1].finished_at, rows[-1].id
        return total

    def forget_keys(self, age: float, *, batch: int = BATCH) -> Iterator[int]:
        """Delete pruned rows that were over ``age`` seconds ago; yield how many each transaction has deleted.

        From then on their keys are free, and a message of theirs that turns up is a stranger's.
        """
        before = self._instant(states.After(-age))
        while gone := self._forget_batch(before, batch):
            yield gone

    # How it is done -----------------------------------------------------------------------------------

    def _instant(self, when: When) -> int:
        if isinstance(when, states.At):
            return when.micros
        return int(self._ask(sa.select(self.dialect.instant_sql + micros(when.seconds)))[0][0])

    def _page(
        self, which: Aged, before: int, place: tuple[int, int], limit: int, columns: Sequence[Any]
    ) -> sa.Select[Any]:
        """Select the next rows after a place, in the order of their ends."""
        c = self.t.task.c
        # Both bounds of the end of the page are said, so that the index is entered where it begins.
        beyond = (c.finished_at >= place[0], sa.or_(c.finished_at > place[0], c.id > place[1]))
        where = [c.finished_at.is_not(None), c.finished_at < before, c.pruned_at.is_(None), *beyond]
        where += [c.state.in_(sorted(which.states)), c.continuation_pending.is_(None), self._unfollowed()]
        if which.task is not None:
            where.append(c.task == which.task)
        return sa.select(*columns).where(*where).order_by(c.finished_at, c.id).limit(limit)

    def _unfollowed(self) -> sa.ColumnElement[bool]:
        """No live alias has still to take its outcome."""
        alias = self.t.task.alias("follower")
        return ~sa.exists().where(alias.c.duplicate_of == self.t.task.c.id, alias.c.finished_at.is_(None))

    def _prune_batch(self, which: Aged, before: int, place: tuple[int, int], limit: int) -> Sequence[sa.Row[Any]]:
        c = self.t.task.c
        columns = (c.id, c.task_id, c.finished_at, c.state, c.observed)
        page = self._page(which, before, place, limit, columns)

        def work(connection: sa.Connection) -> Sequence[sa.Row[Any]]:
            rows = connection.execute(page.with_for_update(skip_locked=self.dialect.skip_locked)).all()
            if rows:
                self._strip(connection, rows)
            return rows

        return self.db.run(work)

    def _strip(self, connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> None:
        t = self.t
        ids = [row.id for row in rows]
        for table in (t.event, t.step, t.signal):
            connection.execute(sa.delete(table).where(table.c.task_row.in_(ids)))
        self._strip_failures(connection, rows)
        aside = (t.result.c.kind == TASK, t.result.c.ref.in_([row.task_id for row in rows]))
        connection.execute(sa.delete(t.result).where(*aside))
        observed = [row.id for row in rows if row.observed]
        if observed:  # nothing was promised of them
            connection.execute(sa.delete(t.task).where(t.task.c.id.in_(observed)))
        blank: dict[str, Any] = {
            "envelope": "", "body": b"", "result": None, "result_type": None, "progress": None, "progress_at": None,
            "deadline_at": None, "wait_event": None, "pruned_at": self.dialect.clock_sql,
        }  # fmt: skip
        connection.execute(sa.update(t.task).where(t.task.c.id.in_(ids)).values(blank))

    def _strip_failures(self, connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> None:
        """Delete failures; of what is dead the last one stays, which says why."""
        f = self.t.failure.c
        theirs = f.task_row.in_([row.id for row in rows])
        dead = [row.id for row in rows if row.state == states.DEAD and not row.observed]
        kept: list[int] = []
        if dead:
            last = sa.select(sa.func.max(f.id)).where(f.task_row.in_(dead)).group_by(f.task_row)
            kept = [int(row[0]) for row in connection.execute(last)]
        connection.execute(sa.delete(self.t.failure).where(theirs, f.id.not_in(kept)))

    def _forget_batch(self, before: int, limit: int) -> int:
        c = self.t.task.c
        old = sa.select(c.id).where(c.pruned_at.is_not(None), c.finished_at < before, self._unfollowed())
        old = old.order_by(c.finished_at).limit(limit)

        def work(connection: sa.Connection) -> int:
            ids = list(connection.execute(old.with_for_update()).scalars())
            if ids:
                connection.execute(sa.delete(self.t.failure).where(self.t.failure.c.task_row.in_(ids)))
                connection.execute(sa.delete(self.t.task).where(c.id.in_(ids)))
            return len(ids)

        return self.db.run(work)
