"""Runs of a task within the test: what a pool process does with a delivery, without a worker around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from celery.app.trace import build_tracer

from celery_durable import failures
from tests.worker.kit import alter, record, the_ledger

if TYPE_CHECKING:
    from celery import Celery

    from celery_durable.ledger import Ledger
    from celery_durable.records import Record


class Killed(BaseException):
    """Ends a body as SIGKILL would: nothing is recorded, the row goes on running."""


def run(app: Celery, result: Any, *args: Any) -> Record:
    """Deliver the message of a task to its tracer, and return the record as it stands then."""
    row = record(app, result)
    task = app.tasks[row.task]
    if task.__trace__ is None:
        task.__trace__ = build_tracer(task.name, task, app=app)
    request = {"id": row.task_id, "task": row.task, "hostname": "w@test", "delivery_info": {}, "retries": row.retries}
    try:
        task.__trace__(row.task_id, args, {}, request)
    except Killed:
        lose(app, result)
    return record(app, result)


def lose(app: Celery, result: Any) -> str | None:
    """Record that the process of a running task is gone."""
    row = record(app, result)
    gone = failures.loss("worker_lost", "WorkerLostError", "signal 9", worker="w@test", pid=1, claim=row.claims)
    return the_ledger(app).lose(row.task_id, row.claim_token or "", gone, owed_token="owed", actor="test")


def wake(app: Celery, result: Any) -> None:
    """Let a waiting task be due, and queue it."""
    alter(app, result, wake_at=the_ledger(app).dialect.clock_sql)
    the_ledger(app).release(10, actor="test")


def steps_of(app: Celery, result: Any) -> dict[str, Any]:
    """Name and result of every recorded step, as `show` tells them."""
    return {s.name: s.as_json()["result"] for s in the_ledger(app).steps(record(app, result).id)}


def witnesses(ledger: Ledger) -> sa.Table:
    """A table of the user's in the ledger's database."""
    table = sa.Table(
        "witness", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("what", sa.String(100))
    )
    ledger.db.run(lambda connection: table.create(connection, checkfirst=True))
    return table


def seen(ledger: Ledger, table: sa.Table) -> list[str]:
    """What is in that table, oldest first."""
    query = sa.select(table.c.what).order_by(table.c.id)
    return ledger.db.run(lambda connection: list(connection.execute(query).scalars()), read_only=True)
