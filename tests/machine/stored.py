"""What stands in the ledger, in the reference's words, and a clock for its statements that tests set."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger.moves import Writer
from tests.machine.reference import SECOND, Row

if TYPE_CHECKING:
    from celery_durable.ledger import Ledger

BEGIN = 1_800_000_000 * SECOND
COLUMNS = [f.name for f in fields(Row) if f.name not in {"events", "failures", "steps"}]


class Clock:
    """The time, as a database's statements see it."""

    SQL = "(SELECT micros FROM machine_clock)"

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._run("DROP TABLE IF EXISTS machine_clock")
        self._run("CREATE TABLE machine_clock (micros BIGINT NOT NULL)")
        self._run(f"INSERT INTO machine_clock VALUES ({BEGIN})")

    def set(self, micros: int) -> None:
        self._run(f"UPDATE machine_clock SET micros = {micros}")

    def _run(self, sql: str) -> None:
        self.ledger.db.run(lambda connection: connection.exec_driver_sql(sql))

    @classmethod
    def rules(cls, ledger: Ledger) -> None:
        """Have every statement of a ledger, none of which is built yet, ask this clock."""
        ledger.dialect = replace(ledger.dialect, clock=cls.SQL, instant=cls.SQL)
        ledger.writer = Writer(ledger.t, ledger.dialect)


def stored_rows(ledger: Ledger) -> list[Row]:
    """Read every row with its history, failures and steps."""
    t = ledger.t

    def read(c: sa.Connection) -> tuple[Any, ...]:
        return tuple(c.execute(sa.select(x).order_by(x.c[0])).all() for x in (t.task, t.event, t.failure, t.step))

    tasks, events, failures, steps = ledger.db.run(read, read_only=True)
    ids = {r.id: r.task_id for r in tasks}
    rows = {}
    for r in tasks:
        told = {n: getattr(r, n) for n in COLUMNS}
        told |= {"duplicate_of": ids.get(r.duplicate_of), "owes": bool(r.owes)}
        told |= {"progressed": bool(r.progressed), "result": None if r.result is None else bytes(r.result)}
        rows[r.id] = Row(**told)
    for e in events:
        rows[e.task_row].events.append((e.verb, e.from_state, e.to_state, e.claim))
    for f in failures:
        rows[f.task_row].failures.append((f.claim, f.kind))
    for s in steps:
        if s.kind == states.STEP:
            rows[s.task_row].steps[s.name] = s.claim
    return list(rows.values())
