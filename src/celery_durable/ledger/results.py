"""Results as Celery asks for them: from the rows, and from what is stored for ids that have no row."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc

from celery_durable import states
from celery_durable.ledger.base import Room
from celery_durable.ledger.moves import micros
from celery_durable.ledger.reporting import failure_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from celery_durable.records import Failure

#: What a stored result belongs to.
TASK, GROUP = "task", "group"
#: The state under which it is kept that a row's result was asked to be forgotten.
FORGOTTEN = "FORGOTTEN"


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored beside the rows, in Celery's own terms; the time in microseconds is the database's."""

    state: str
    content: bytes | None = None
    content_type: str | None = None
    stored_at: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the ledger knows of one task id: its row if it has one, its last failure, what was stored beside it."""

    row: sa.Row[Any] | None = None
    failure: Failure | None = None
    stored: Stored | None = None


class Results(Room):
    """The rows are the results; a table beside them holds what has no row."""

    def seen(self, task_ids: Collection[str]) -> dict[str, Seen]:
        """Look at tasks: one statement for those that have rows, one more for the others, one for failures."""
        c, r = self.t.task.c, self.t.result.c
        columns = (
            c.id, c.task_id, c.task, c.state, c.result, c.result_type, c.retries, c.started_at, c.finished_at,
            c.lease_owner, c.lease_pid, c.failure_kind, c.cancel_reason, c.parent_id, c.queue, c.observed,
        )  # fmt: skip
        aside = (r.state.label("aside"), r.content, r.content_type, r.stored_at)
        beside = self.t.task.outerjoin(self.t.result, sa.and_(r.kind == TASK, r.ref == c.task_id))
        ids = list(task_ids)
        found: dict[str, Seen] = {}
        failed: dict[int, str] = {}
        for row in self._ask(sa.select(*columns, *aside).select_from(beside).where(c.task_id.in_(ids))):
            if row.observed:
                continue
            stored = Stored(row.aside, row.content, row.content_type, row.stored_at) if row.aside else None
            found[row.task_id] = Seen(row, None, stored)
            if row.state == states.DEAD or (row.retries and row.state in states.LIVE):
                failed[row.id] = row.task_id
        for row_id, failure in self._last_failures(list(failed)).items():
            found[failed[row_id]] = replace(found[failed[row_id]], failure=failure)
        rest = [i for i in ids if i not in found]
        return found | {ref: Seen(stored=stored) for ref, stored in self._beside(TASK, rest).items()}

    def _last_failures(self, row_ids: Sequence[int]) -> dict[int, Failure]:
        if not row_ids:
            return {}
        f = self.t.failure.c
        last = sa.select(sa.func.max(f.id)).where(f.task_row.in_(row_ids)).group_by(f.task_row)
        rows = self._ask(sa.select(self.t.failure).where(f.id.in_(last.scalar_subquery())))
        return {row.task_row: failure_of(row) for row in rows}

    def _beside(self, kind: str, refs: Sequence[str]) -> dict[str, Stored]:
        if not refs:
            return {}
        r = self.t.result.c
        rows = self._ask(sa.select(self.t.result).where(r.kind == kind, r.ref.in_(refs)))
        return {row.ref: Stored(row.state, row.content, row.content_type, row.stored_at) for row in rows}

    def group(self, group_id: str) -> Stored | None:
        """Return a saved group."""
        return self._beside(GROUP, [group_id]).get(group_id)

    def children(self, task_ids: Collection[str]) -> dict[str, list[tuple[str, str | None]]]:
        """List the rows that tasks have sent, in their order: id, and the id of the group that it came in."""
        c = self.t.task.c
        query = sa.select(c.id, c.task_id, c.parent_id, c.envelope).where(c.parent_id.in_(list(task_ids)))
        told: dict[str, list[tuple[str, str | None]]] = {}
        for row in self._ask(query.order_by(c.id)):
            headers = json.loads(row.envelope)["headers"] if row.envelope else {}  # it may be pruned
            told.setdefault(row.parent_id, []).append((row.task_id, headers.get("group")))
        return told

    def message(self, row_id: int) -> sa.Row[Any] | None:
        """Return the two columns of a row's message, and who wrote its last move; None when it is pruned."""
        c, e = self.t.task.c, self.t.event.c
        last = sa.select(e.actor).where(e.task_row == row_id, e.verb == "claim").order_by(e.id.desc()).limit(1)
        rows = self._ask(sa.select(c.envelope, c.body, last.scalar_subquery().label("worker")).where(c.id == row_id))
        return rows[0] if rows and rows[0].envelope else None

    # Writing --------------------------------------------------------------------------------------------

    def keep_result(
        self, kind: str, ref: str, given: Stored, *, unless: Iterable[str] = (), rowless: bool = False
    ) -> bool:
        """Store a result beside the rows, over an older one; False when it was not to be stored.

        ``unless`` names stored states that stay (a success is final). ``rowless``: only for an id without a row.
        """
        r, c = self.t.result.c, self.t.task.c
        values = {"state": given.state[:64], "content": given.content, "content_type": given.content_type}
        kept = list(unless)

        def work(connection: sa.Connection) -> bool:
            if rowless:
                row = connection.execute(sa.select(c.id).where(c.task_id == ref, c.observed == 0)).first()
                if row is not None:
                    return False
            mine = (r.kind == kind, r.ref == ref)
            found = connection.execute(sa.select(r.state).where(*mine).with_for_update()).first()
            if found is None:
                try:
                    with connection.begin_nested():
                        new = sa.insert(self.t.result).values(kind=kind, ref=ref, stored_at=self.dialect.clock_sql)
                        connection.execute(new.values(values))
                except exc.IntegrityError:  # somebody else has just done so
                    found = connection.execute(sa.select(r.state).where(*mine).with_for_update()).one()
                else:
                    return True
            if found.state in kept:
                return False
            update = sa.update(self.t.result).where(*mine)
            connection.execute(update.values(stored_at=self.dialect.clock_sql, **values))
            return True

        return self.db.run(work)

    def drop_result(self, kind: str, ref: str) -> None:
        """Delete what was stored beside the rows."""
        r = self.t.result.c
        delete = sa.delete(self.t.result).where(r.kind == kind, r.ref == ref)
        self.db.run(lambda connection: connection.execute(delete), autocommit=True)

    def forget_result(self, task_id: str) -> None:
        """Forget a result: a row that is over keeps its history but no result, and is as unknown to Celery."""
        c = self.t.task.c
        over = sa.select(c.id).where(c.task_id == task_id, c.observed == 0, c.finished_at.is_not(None))
        if not self._ask(over):
            self.drop_result(TASK, task_id)
            return
        self.keep_result(TASK, task_id, Stored(FORGOTTEN))
        blank = sa.update(self.t.task).where(c.task_id == task_id, self.in_state(states.SUCCEEDED))
        blank = blank.where(c.continuation_pending.is_(None)).values(result=None, result_type=None)
        self.db.run(lambda connection: connection.execute(blank), autocommit=True)

    def expire_results(self, age: float) -> int:
        """Delete what was stored beside the rows, and chords that are over, from before ``age`` seconds ago."""
        t = self.t
        before = self.dialect.instant_sql - micros(age)

        def work(connection: sa.Connection) -> int:
            old = (t.chord.c.began_at < before, t.chord.c.state != "open")
            parts = sa.select(t.chord.c.group_id).where(*old)
            connection.execute(sa.delete(t.part).where(t.part.c.group_id.in_(parts)))
            connection.execute(sa.delete(t.chord).where(*old))
            return int(connection.execute(sa.delete(t.result).where(t.result.c.stored_at < before)).rowcount)

        return self.db.run(work)

    # Hints ----------------------------------------------------------------------------------------------

    def hint(self, task_id: str) -> None:
        """Tell who listens that a result is there; outside the settle, and worth nothing but time (PROTOCOL 26)."""
        if self.channel:
            notify = sa.select(sa.func.pg_notify(self.channel, task_id))
            self.db.run(lambda connection: connection.execute(notify), autocommit=True)
