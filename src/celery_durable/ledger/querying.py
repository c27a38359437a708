"""Questions to the ledger; nothing here writes."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.errors import NoSuchTask
from celery_durable.ledger.base import Room
from celery_durable.ledger.reporting import failure_of
from celery_durable.records import Event, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.records import Failure

_RENAMED = {"idempotency_key": "key"}
_DERIVED = {"failure", "now"}


class Querying(Room):
    """Reads for people, commands and the API."""

    def get(self, ref: str) -> Record:
        """Return the record of a REF: a task id, an idempotency key, or ``task_name/key``.

        Raises:
            NoSuchTask: nothing fits, or several tasks use that key.
        """
        c = self.t.task.c
        found = [r for r in self._records(c.task_id == ref) if r.task_id == ref]
        if not found:
            named = [c.idempotency_key == ref]
            if "/" in ref:
                task, _, key = ref.partition("/")
                named.append(sa.and_(c.task == task, c.idempotency_key == key))
            found = self._records(c.duplicate_of.is_(None), sa.or_(*named), limit=6)
        # MySQL takes text that differs in trailing blanks for equal, whatever the collation.
        found = [r for r in found if ref in {r.task_id, r.key, f"{r.task}/{r.key}"}]
        if not found:
            raise NoSuchTask(f"No task has the id or idempotency key {ref!r}.")
        if len(found) > 1:
            names = ", ".join(f"{r.task}/{r.key}" for r in found[:5])
            raise NoSuchTask(f"The key {ref!r} is used by several tasks; say which: {names}.")
        return self.with_failure(found)[0]

    def record(self, row_id: int) -> Record | None:
        """Return the record of a row id, None when there is no such row."""
        found = self.with_failure(self._records(self.t.task.c.id == row_id))
        return found[0] if found else None

    def knows(self, task_id: str) -> bool:
        """Whether there is a row of this task id that is more than an observation."""
        return bool(self._records(self.t.task.c.task_id == task_id, self.t.task.c.observed == 0))

    def find(
        self, *, state: str | None = None, task: str | None = None, queue: str | None = None,
        wait_kind: str | None = None, limit: int = 50,
    ) -> list[Record]:  # fmt: skip
        """List records, newest first."""
        c = self.t.task.c
        where = [
            column == value
            for column, value in (
                (c.state, state),
                (c.task, task),
                (c.queue, queue),
                (c.wait_kind, wait_kind),
            )
            if value is not None
        ]
        return self.with_failure(self._records(*where, limit=limit))

    def waits(
        self, *, kind: str | None = None, task: str | None = None, queue: str | None = None, limit: int = 50
    ) -> list[Record]:
        """List what waits, in the order in which it is looked at again."""
        c = self.t.task.c
        given = ((c.wait_kind, kind), (c.task, task), (c.queue, queue))
        where = [self.in_state(states.WAITING), *(column == value for column, value in given if value is not None)]
        return self.with_failure(self._records(*where, limit=limit, order=(c.wake_at, c.id)))

    def _records(
        self, *where: sa.ColumnElement[bool], limit: int = 2, order: Sequence[sa.ColumnElement[Any]] = ()
    ) -> list[Record]:
        c = self.t.task.c
        names = [f.name for f in fields(Record) if f.name not in _DERIVED]
        back = {v: k for k, v in _RENAMED.items()}
        columns = [c[back.get(n, n)].label(n) for n in names]
        query = sa.select(*columns, self.dialect.instant_sql.label("now")).where(*where)
        rows = self._ask(query.order_by(*order or (c.id.desc(),)).limit(limit))
        return [Record(**(dict(r._mapping) | {"owes": bool(r.owes), "observed": bool(r.observed)})) for r in rows]

    def with_failure(self, records: list[Record]) -> list[Record]:
        """Attach the last failure to each record."""
        f = self.t.failure.c
        ids = [r.id for r in records]
        if not ids:
            return records
        last = sa.select(sa.func.max(f.id)).where(f.task_row.in_(ids)).group_by(f.task_row)
        rows = self._ask(sa.select(self.t.failure).where(f.id.in_(last)))
        by_row = {r.task_row: failure_of(r) for r in rows}
        return [
            Record(**({x.name: getattr(r, x.name) for x in fields(Record)} | {"failure": by_row.get(r.id)}))
            for r in records
        ]

    def failures(self, row_id: int) -> list[Failure]:
        """Every failed attempt of a task, oldest first."""
        f = self.t.failure
        return [failure_of(r) for r in self._ask(sa.select(f).where(f.c.task_row == row_id).order_by(f.c.id))]

    def events(self, row_id: int) -> list[Event]:
        """Return the history of a task, oldest first."""
        e = self.t.event
        rows = self._ask(sa.select(e).where(e.c.task_row == row_id).order_by(e.c.id))
        return [Event(r.verb, r.at, r.from_state, r.to_state, r.claim, r.actor, r.reason) for r in rows]

    def stats(self) -> dict[str, Any]:
        """Count rows by state, and the queued ones by queue with the age of the oldest in seconds."""
        c, now = self.t.task.c, self.dialect.instant_sql
        counts = dict.fromkeys(states.STATES, 0)
        for row in self._ask(sa.select(c.state, sa.func.count().label("n")).group_by(c.state)):
            counts[row.state] = row.n
        waiting = (
            sa.select(
                c.queue,
                sa.func.count().label("n"),
                sa.func.min(c.submitted_at).label("oldest"),
                now.label("now"),
            )
            .where(self.in_state(states.QUEUED), c.finished_at.is_(None))
            .group_by(c.queue)
            .order_by(c.queue)
        )
        queues = [
            {"queue": r.queue, "queued": r.n, "oldest_age_seconds": round(max(0, r.now - r.oldest) / 1e6, 3)}
            for r in self._ask(waiting)
        ]
        return {"states": counts, "queues": queues}

    def ahead_of(self, record: Record) -> int:
        """Count the queued rows of the same queue that were submitted earlier."""
        c = self.t.task.c
        query = sa.select(sa.func.count()).where(
            self.in_state(states.QUEUED), c.finished_at.is_(None), c.queue == record.queue, c.id < record.id
        )
        return int(self._ask(query)[0][0])

    def holder_of(self, record: Record) -> Record | None:
        """Return the row whose outcome an alias waits for."""
        if record.duplicate_of is None:
            return None
        found = self._records(self.t.task.c.id == record.duplicate_of)
        return found[0] if found else None
