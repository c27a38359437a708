"""Many submissions at once: one multi-row insert, and each conflict judged as if it had come alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from celery_durable import keys, states
from celery_durable.ledger.database import Busy
from celery_durable.ledger.dialects import hasty
from celery_durable.ledger.moves import queue_of
from celery_durable.ledger.placeholders import gives_way
from celery_durable.ledger.replacing import Submitted
from celery_durable.ledger.submitting import Submitting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from celery_durable.records import Submission

#: Columns in which the rows of one insert may differ.
VARYING = (
    "task_id", "key_digest", "idempotency_key", "queue", "priority", "root_id", "envelope", "body", "deadline_at",
)  # fmt: skip
BINARY = ("key_digest", "body")


@dataclass(frozen=True, slots=True)
class _Item:
    """One submission, and what uniqueness is judged by."""

    sub: Submission
    digest: bytes

    def row(self) -> dict[str, Any]:
        """Return its varying columns."""
        sub = self.sub
        return {
            "task_id": sub.task_id, "key_digest": self.digest, "idempotency_key": sub.key,
            "queue": queue_of(sub.envelope), "priority": sub.priority, "root_id": sub.root_id,
            "envelope": sub.meta or sub.envelope.meta(), "body": sub.envelope.stored_body(),
            "deadline_at": sub.deadline_at,
        }  # fmt: skip


class Bulk(Submitting):
    """Submissions by the thousand."""

    def submit_many(self, subs: Sequence[Submission]) -> list[Submitted]:
        """Write submissions, and answer each as ``submit`` would, in their order; a key's first one comes first.

        After a crash each is there as a whole or not at all. Where nothing conflicts that is one statement on
        PostgreSQL, three in one transaction elsewhere.

        Raises:
            KeyBusy: a key is pending in a transaction that does not end; others of these may be written.
            TaskIdConflict: a task id belongs to another task or key; others of these may be written.
            LedgerUnavailable: the database did not answer; nothing may be published.
        """
        items = [_Item(sub, keys.digest(sub.task, sub.key)) for sub in subs]
        firsts = list({item.digest: item for item in reversed(items)}.values())
        # The order of locks, the same for everybody who has some of these keys (PROTOCOL 20).
        firsts.sort(key=lambda item: item.digest)
        answers: dict[str, Submitted] = {}
        try:
            for group in _alike(self._untaken(firsts)):

                def work(connection: sa.Connection, group: list[_Item] = group) -> dict[str, int]:
                    return self._insert_all(connection, group)

                written = self.db.run(work, autocommit=self.dialect.one_statement, impatient=True)
                subs_of = {item.sub.task_id: item.sub for item in group}
                answers |= {task_id: _new(subs_of[task_id], row_id) for task_id, row_id in written.items()}
        except Busy:
            return [self.submit(sub) for sub in subs]  # the one whose key is busy says so by name
        answers |= self._met_many([item for item in items if item.sub.task_id not in answers])
        return [answers.get(sub.task_id) or self.submit(sub) for sub in subs]

    def _untaken(self, items: list[_Item]) -> list[_Item]:
        """Leave out what is taken already, where the insert itself would lock that for as long as the caller's
        transaction lasts.
        """
        if not (self.db.lent and self.dialect.name == "mysql"):
            return items
        c = self.t.task.c
        taken = {r.key_digest for r in self._ask(sa.select(c.key_digest).where(c.key_digest.in_(_digests(items))))}
        return [item for item in items if item.digest not in taken]

    def _insert_all(self, connection: sa.Connection, items: Sequence[_Item]) -> dict[str, int]:
        """Insert rows with their history; return the row ids of those that were not there, by task id."""
        if self.dialect.one_statement:
            return self._insert_document(connection, items)
        return self._insert_rows(connection, items)

    def _insert_document(self, connection: sa.Connection, items: Sequence[_Item]) -> dict[str, int]:
        """One statement with one parameter, history included (PostgreSQL).

        A JSON document: arrays of so many texts take the driver longer than all the rest.
        """
        task, first = self.t.task, items[0].sub
        rows = [item.row() for item in items]
        for row in rows:
            row |= {name: row[name].hex() for name in BINARY}
        columns = [sa.column(name, sa.Text() if name in BINARY else task.c[name].type) for name in VARYING]
        document = sa.cast(sa.literal(json.dumps(rows), sa.Text()), postgresql.JSON)
        given = sa.func.json_to_recordset(document).table_valued(*columns).render_derived("given", with_types=True)
        taken = {n: sa.func.decode(given.c[n], "hex") if n in BINARY else given.c[n] for n in VARYING}
        patience = sa.select(sa.case((hasty() == "", 1), else_=1)).scalar_subquery()
        values = self.writer.values(self._values(first)) | {"envelope_no": patience} | taken
        picked = [
            value if isinstance(value, sa.ColumnElement) else sa.literal(value, task.c[name].type)
            for name, value in values.items()
        ]
        new = (
            postgresql.insert(task).from_select(list(values), sa.select(*picked))
            .on_conflict_do_nothing().returning(task.c.id, task.c.task_id).cte("new")
        )  # fmt: skip
        logged = self.writer.logged(
            new, verb="submit", from_state=None, to_state=_state(first), claim=0, actor=first.submitted_by[:255],
            reason="",
        )  # fmt: skip
        found = connection.execute(sa.select(new.c.task_id, new.c.id).add_cte(logged))
        return {row.task_id: row.id for row in found}

    def _insert_rows(self, connection: sa.Connection, items: Sequence[_Item]) -> dict[str, int]:
        """Plain values only, which drivers send as one statement; so the clock is asked first."""
        task, event, first = self.t.task, self.t.event, items[0].sub
        now = connection.execute(sa.select(self.dialect.clock_sql)).scalar_one()
        constant = self.writer.values(self._values(first, now=now))
        insert: Any
        if self.dialect.name == "mysql":
            insert = mysql.insert(task)
            insert = insert.on_duplicate_key_update(task_id=task.c.task_id)  # never INSERT IGNORE (PROTOCOL 24)
        else:
            insert = sqlite.insert(task).on_conflict_do_nothing()
        connection.execute(insert, [constant | item.row() for item in items])
        digests = {item.sub.task_id: item.digest for item in items}
        mine = sa.select(task.c.task_id, task.c.id, task.c.key_digest).where(task.c.task_id.in_(list(digests)))
        there = connection.execute(mine)
        found = {row.task_id: row.id for row in there if row.key_digest == digests[row.task_id]}
        told = {
            "task_row": task.c.id, "verb": sa.literal("submit"), "at": sa.literal(now, event.c.at.type),
            "to_state": task.c.state, "claim": sa.literal(0), "actor": sa.literal(first.submitted_by[:255]),
            "reason": sa.literal(""),
        }  # fmt: skip
        # A reply may have been lost, and this be the second time.
        untold = ~sa.exists().where(event.c.task_row == task.c.id)
        history = sa.select(*told.values()).where(task.c.id.in_(list(found.values())), untold)
        connection.execute(sa.insert(event).from_select(list(told), history))
        return found

    def _met_many(self, items: Sequence[_Item]) -> dict[str, Submitted]:
        """Answer those that met a row which stays as it is; whatever has to be written is left to ``submit``."""
        c = self.t.task.c
        columns = (
            c.id, c.task_id, c.task, c.idempotency_key, c.key_digest, c.state, c.envelope_no, c.result, c.result_type,
            c.observed, c.failure_kind, c.claims,
        )  # fmt: skip
        if not items:
            return {}
        query = sa.select(*columns).where(c.key_digest.in_(_digests(items)))
        rows = [*self._ask(query), *(self.db.run(lambda k: k.execute(query).all()) if self.db.lent else ())]
        held = {row.key_digest: row for row in reversed(rows)}  # what others have committed counts for more
        answers = {}
        for item in items:
            row = held.get(item.digest)
            if row is None or gives_way(row) or row.state in {states.DEAD, states.CANCELLED}:
                continue
            if row.task_id == item.sub.task_id:  # ours: the reply was lost
                answers[item.sub.task_id] = _new(item.sub, row.id)
            elif not item.sub.awaited:
                answers[item.sub.task_id] = Submitted(
                    "existing", row.id, row.task_id, row.state, row.envelope_no,
                    result=row.result, result_type=row.result_type,
                )  # fmt: skip
        return answers


def _alike(items: Iterable[_Item]) -> list[list[_Item]]:
    """Group what differs in varying columns only."""

    def constants(item: _Item) -> tuple[Any, ...]:
        s = item.sub
        return (
            s.task, s.broker, str(s.parent_id), str(s.wake), s.max_losses, s.on_loss, s.retries, s.owes, s.submitted_by
        )  # fmt: skip

    return [list(group) for _, group in groupby(sorted(items, key=constants), key=constants)]


def _digests(items: Iterable[_Item]) -> list[bytes]:
    return [item.digest for item in items]


def _state(sub: Submission) -> str:
    return states.QUEUED if sub.wake is None else states.WAITING


def _new(sub: Submission, row_id: int) -> Submitted:
    return Submitted("new", row_id, sub.task_id, _state(sub), publish=sub.wake is None)
