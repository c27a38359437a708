"""Many failures, made by SQL: what questions about them cost shows only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from celery_durable.ledger import Ledger

#: The fingerprint of one in 500 tasks that are over, all of them dead.
RARE = "rare"


def add_failures(ledger: Ledger) -> None:
    """Give each task that is over a failure, a minute apart: what is dead died of it, the rest had it before."""
    c, number = ledger.t.task.c, ledger.t.task.c.id % 100
    common = sa.literal("f").op("||")(number) if ledger.dialect.name == "sqlite" else sa.func.concat("f", number)
    columns: dict[str, Any] = {
        "task_row": c.id, "claim": c.claims, "kind": sa.func.coalesce(c.failure_kind, "transient"),
        "exception": sa.literal("ValueError"), "message": sa.literal("x"), "traceback": sa.literal(""),
        "retryable": sa.literal(0), "worker": sa.literal("w"), "occurred_at": c.finished_at + c.id * 60_000_000,
        "fingerprint": sa.case((c.id % 500 == 0, RARE), else_=common),
    }  # fmt: skip
    chosen = sa.select(*columns.values()).where(c.finished_at.is_not(None))
    with ledger.db.connection() as connection:
        connection.execute(sa.insert(ledger.t.failure).from_select(list(columns), chosen))
    verb = {"postgresql": "VACUUM ANALYZE", "mysql": "ANALYZE TABLE"}.get(ledger.dialect.name)
    if verb is not None:
        with ledger.db.connection(autocommit=True) as connection:
            connection.exec_driver_sql(f"{verb} durable_failure")
