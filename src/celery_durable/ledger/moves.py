"""How a move is written: the row, its history row and its failure row, together or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable.ledger.prepared import fixed, given
from celery_durable.states import SLEPT, TRIES, After, At, Move, allowed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery_durable.ledger.dialects import Dialect
    from celery_durable.ledger.schema import Tables
    from celery_durable.records import Failure


class IllegalMove(AssertionError):
    """A defect: a move that the table of moves does not have."""


def micros(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * 1_000_000)


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the history, stamped with the database's clock when it is written."""

    verb: str
    source: str | None
    target: str
    claim: int
    actor: str
    reason: str = ""


class Writer:
    """Writes moves in the way one database does it best."""

    def __init__(self, tables: Tables, dialect: Dialect) -> None:
        """Bind to one set of tables."""
        self.t, self.dialect = tables, dialect

    def values(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Turn times of a decision into expressions on the database's clock."""
        return {k: self.value(v) for k, v in changes.items()}

    def value(self, value: Any) -> Any:
        """Turn one value of a decision into what SQL stores."""
        if isinstance(value, After):
            return self.dialect.clock_sql + micros(value.seconds) if value.seconds else self.dialect.clock_sql
        return value.micros if isinstance(value, At) else value

    def fixed(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a decision that is always the same into constants of a statement; expressions stay as they are."""
        return {k: v if isinstance(v, sa.ColumnElement) else self._fixed(k, v) for k, v in changes.items()}

    def _fixed(self, name: str, value: Any) -> sa.ColumnElement[Any]:
        if isinstance(value, After):
            return self.dialect.clock_sql + fixed(micros(value.seconds), sa.BigInteger)
        return fixed(value, self.t.task.c[name].type)

    def parted(self, changes: Mapping[str, Any]) -> tuple[tuple[tuple[str, str], ...], dict[str, Any]]:
        """Part the values of a new row into the form that a statement can be made for, and its parameters.

        What is NULL is left out.
        """
        form: list[tuple[str, str]] = []
        parameters: dict[str, Any] = {}
        for name, value in changes.items():
            if value is None:
                continue
            if isinstance(value, After):
                form.append((name, "after"))
                parameters["v_" + name] = micros(value.seconds)
            else:
                form.append((name, "given"))
                parameters["v_" + name] = value.micros if isinstance(value, At) else value
        return tuple(form), parameters

    def formed(self, form: tuple[tuple[str, str], ...]) -> dict[str, Any]:
        """Return the expressions of such a form."""
        columns = self.t.task.c
        binds = {name: given(name, columns[name].type) for name, _ in form}
        return {name: self.dialect.clock_sql + binds[name] if how == "after" else binds[name] for name, how in form}

    def lock(
        self, connection: sa.Connection, *where: sa.ColumnElement[bool], columns: Sequence[Any] = (), limit: int = 0,
        order: sa.ColumnElement[Any] | None = None,
    ) -> Sequence[sa.Row[Any]]:  # fmt: skip
        """Lock rows; with a limit, only those that nobody else holds (one locked row stops no sweep)."""
        seen = columns or (*self.t.task.c, self.dialect.instant_sql.label("now"))
        query = sa.select(*seen).where(*where)
        if order is not None:
            query = query.order_by(order)
        if limit:
            query = query.limit(limit)
        query = query.with_for_update(skip_locked=bool(limit) and self.dialect.skip_locked)
        return connection.execute(query).all()

    def write(self, connection: sa.Connection, row: sa.Row[Any], move: Move, *, actor: str) -> None:
        """Write a move of a row that this transaction has locked."""
        if not allowed(move.verb, row.state, move.to):
            raise IllegalMove(f"{move.verb}: {row.state} -> {move.to}")
        values = self.values(move.changes)
        if move.envelope is not None:
            values |= {
                "envelope": move.envelope.meta(), "body": move.envelope.stored_body(),
                "queue": queue_of(move.envelope), "envelope_no": row.envelope_no + 1,
            }  # fmt: skip
        connection.execute(sa.update(self.t.task).where(self.t.task.c.id == row.id).values(values))
        if move.sleep:
            self._remember_sleep(connection, row, move.sleep)
        if move.tries is not None:
            self._remember_tries(connection, row, *move.tries)
        if "replaces" in move.changes:  # another body, whose steps may bear the same names
            connection.execute(sa.delete(self.t.step).where(self.t.step.c.task_row == row.id))
        if move.failure is not None:
            self.failure(connection, row.id, row.claims, move.failure)
        self.note(connection, row.id, Entry(move.verb, row.state, move.to, row.claims, actor, move.reason))

    def write_all(self, connection: sa.Connection, rows: Sequence[sa.Row[Any]], move: Move, *, actor: str) -> None:
        """Write one move of many rows that this transaction has locked: two statements, whatever their number."""
        if not rows:
            return
        for source in {row.state for row in rows}:
            if not allowed(move.verb, source, move.to):
                raise IllegalMove(f"{move.verb}: {source} -> {move.to}")
        changed = sa.update(self.t.task).where(self.t.task.c.id.in_([row.id for row in rows]))
        connection.execute(changed.values(self.values(move.changes)))
        told = [
            {
                "task_row": row.id, "verb": move.verb, "at": self.dialect.clock_sql, "from_state": row.state,
                "to_state": move.to, "claim": row.claims, "actor": actor[:255], "reason": move.reason,
            }
            for row in rows
        ]  # fmt: skip
        connection.execute(sa.insert(self.t.event).values(told))

    def _remember_sleep(self, connection: sa.Connection, row: sa.Row[Any], name: str) -> None:
        """Remember that a sleep was begun and ends as the row wakes; one that was begun before keeps its end."""
        step, task = self.t.step, self.t.task
        until = sa.select(task.c.wake_at).where(task.c.id == row.id).scalar_subquery()
        known = sa.select(step.c.name).where(step.c.task_row == row.id, step.c.kind == SLEPT, step.c.name == name)
        if connection.execute(known).first() is None:
            connection.execute(
                sa.insert(step).values(
                    task_row=row.id, kind=SLEPT, name=name, claim=row.claims, started_at=self.dialect.clock_sql,
                    finished_at=until,
                )
            )  # fmt: skip

    def _remember_tries(self, connection: sa.Connection, row: sa.Row[Any], name: str, count: int) -> None:
        """Remember how often a step has been tried."""
        step = self.t.step
        key = {"task_row": row.id, "kind": TRIES, "name": name}
        said = {"claim": row.claims, "result": str(count).encode(), "started_at": self.dialect.clock_sql}
        changed = sa.update(step).where(*(step.c[n] == v for n, v in key.items())).values(said)
        if connection.execute(changed).rowcount == 0:
            connection.execute(sa.insert(step).values(key | said))

    def failure(self, connection: sa.Connection, row_id: int, claim: int, failure: Failure) -> None:
        """Write a failure row."""
        self.failures(connection, [(row_id, claim, failure)])

    def failures(self, connection: sa.Connection, those: Sequence[tuple[int, int, Failure]]) -> None:
        """Write failure rows: of which row, of which claim."""
        rows = [
            {
                "task_row": row_id, "claim": claim, "kind": failure.kind, "exception": failure.exception[:255],
                "message": failure.message, "traceback": failure.traceback, "fingerprint": failure.fingerprint,
                "retryable": int(failure.retryable), "retry_at": failure.retry_at, "worker": failure.worker[:255],
                "pid": failure.pid, "host": failure.host, "verdict": failure.verdict, "causes": failure.causes,
                "arguments": failure.arguments, "runtime_micros": failure.runtime_micros,
                "memory_bytes": failure.memory_bytes, "code_version": failure.code_version,
                "exception_args": failure.exception_args,
            }
            for row_id, claim, failure in those
        ]  # fmt: skip
        connection.execute(sa.insert(self.t.failure).values(occurred_at=self.dialect.clock_sql), rows)

    def note(self, connection: sa.Connection, row_id: int, entry: Entry) -> None:
        """Write a history row."""
        connection.execute(
            sa.insert(self.t.event).values(
                task_row=row_id, verb=entry.verb, at=self.dialect.clock_sql, from_state=entry.source,
                to_state=entry.target, claim=entry.claim, actor=entry.actor[:255], reason=entry.reason,
            )
        )  # fmt: skip

    def logged(self, moved: sa.CTE, **event: Any) -> sa.CTE:
        """Write the history rows of a data-modifying CTE within the same statement (PostgreSQL)."""
        told = {"task_row": moved.c.id, "at": self.dialect.clock_sql, **event}
        columns = self.t.event.c
        picked = [
            value if isinstance(value, sa.ColumnElement) else sa.literal(value, columns[name].type)
            for name, value in told.items()
        ]
        rows = sa.select(*(p.label(n) for n, p in zip(told, picked, strict=True))).select_from(moved)
        return sa.insert(self.t.event).from_select(list(told), rows).returning(columns.id).cte("logged")


def queue_of(envelope: Any) -> str:
    """Name the queue that an envelope goes to, as an operator knows it."""
    for entity in envelope.declare:
        if entity.get("name"):
            return str(entity["name"])
    return str(envelope.routing_key or envelope.exchange)
