"""Ledgers with many finished rows, and how much the database does for one call of a verb."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from tests.ledger.kit import (
    BROKER,
    QUEUE,
    SECOND,
    captured,
    claimed,
    gone,
    make_due,
    queued,
    running,
    submission,
    succeed,
    succeeded,
    waiting,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.ledger import Ledger

_PARAMETER = r"%\(([^)]+)\)s"
_NOW = 1_700_000_000_000_000
_COLUMNS = (
    "task_id, task, key_digest, idempotency_key, state, queue, broker, envelope, body, claims, max_losses, on_loss,"
    " owes, submitted_at, submitted_by, started_at, finished_at, deadline_at, failure_kind, result, result_type"
)
# One in twenty is dead, every second one had a deadline that has long passed.
_ROW = (
    "{id}, 'shop.charge', {digest}, {key}, CASE WHEN n % 20 = 0 THEN 'dead' ELSE 'succeeded' END, 'celery', 'broker-a',"
    f" '{{{{}}}}', {{blob}}, 1, 3, 'retry', 0, {_NOW} + n, 'shop', {_NOW} + n, {_NOW} + n,"
    f" CASE WHEN n % 2 = 0 THEN {_NOW} + n END, CASE WHEN n % 20 = 0 THEN 'permanent' END, {{blob}}, 'application/json'"
)
_FILL = {
    "postgresql": "FROM generate_series({first}, {last}) AS n",
    "mysql": "FROM (SELECT seq AS n FROM seq_{first}_to_{last}) AS numbers",
    "sqlite": (
        "FROM (WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})"
        " SELECT n FROM numbers)"
    ),
}
_WORDS = {
    "postgresql": {
        "id": "'done-' || n", "key": "'k' || n", "blob": "'x'::bytea",
        "digest": "decode(md5(n::text) || md5('k' || n), 'hex')",
    },
    "mysql": {"id": "concat('done-', n)", "key": "concat('k', n)", "blob": "'x'", "digest": "unhex(sha2(n, 256))"},
    "sqlite": {"id": "'done-' || n", "key": "'k' || n", "blob": "x'78'", "digest": "randomblob(32)"},
}  # fmt: skip
_CHUNK = 50_000  # rows that one statement adds well within its time limit
_STATISTICS = {"postgresql": "VACUUM ANALYZE durable_task", "mysql": "ANALYZE TABLE durable_task"}


def fill(ledger: Ledger, finished: int, live: int = 40) -> None:
    """Add finished rows by SQL, then live ones of every kind that are not due."""
    name = ledger.dialect.name
    for first in range(1, finished + 1, _CHUNK):
        numbers = _FILL[name].format(first=first, last=min(finished, first + _CHUNK - 1))
        insert = f"INSERT INTO durable_task ({_COLUMNS}) SELECT {_ROW.format(**_WORDS[name])} {numbers}"
        with ledger.db.connection() as connection:
            connection.execute(sa.text(insert.replace("::", "\\:\\:")))
    for number in range(live):
        (queued, waiting, running, _owing)[number % 4](ledger)
    if name in _STATISTICS:  # SQLite's users run no ANALYZE, its plans have to do without
        with ledger.db.connection(autocommit=True) as connection:
            connection.exec_driver_sql(_STATISTICS[name])


def crowd(ledger: Ledger, number: int, *, due: bool = False) -> None:
    """Add rows that wait for a condition: due now, or in the far future."""
    rows = [
        {
            "task_id": f"wait-{n}", "idempotency_key": f"wait-{n}", "key_digest": n.to_bytes(32, "big"), "task": "work",
            "state": "waiting", "queue": QUEUE, "broker": BROKER, "envelope": "{}", "body": b"x", "claims": 1,
            "max_losses": 3, "on_loss": "retry", "owes": 0, "submitted_at": _NOW, "submitted_by": "shop",
            "started_at": _NOW, "wait_kind": "condition", "wait_reason": "rates are late", "wait_since": _NOW,
            "wake_at": _NOW + (n if due else 10**15 + n),
        }
        for n in range(1, number + 1)
    ]  # fmt: skip
    ledger.db.run(lambda c: c.execute(sa.insert(ledger.t.task), rows))
    if ledger.dialect.name in _STATISTICS:
        with ledger.db.connection(autocommit=True) as connection:
            connection.exec_driver_sql(_STATISTICS[ledger.dialect.name])


def _owing(ledger: Ledger) -> Any:
    return succeeded(ledger, owes=True)


class Act(NamedTuple):
    """One call of a verb that has something to do."""

    prepare: Callable[[Ledger], Any]
    call: Callable[[Ledger, Any], Any]


def _due(make: Callable[[Ledger], Any], column: str) -> Callable[[Ledger], Any]:
    def prepare(ledger: Ledger) -> Any:
        row = make(ledger)
        make_due(ledger, row.row_id, column)
        return row

    return prepare


def _alias(ledger: Ledger) -> Any:
    first = succeeded(ledger)
    return queued(ledger, ledger.get(first.task_id).key, awaited=True)


ACTS = {
    "glance": Act(lambda _: None, lambda ledger, _: ledger.glance(BROKER)),
    "release": Act(_due(waiting, "wake_at"), lambda ledger, _: ledger.release(100, actor="s")),
    "follow": Act(_due(_alias, "wake_at"), lambda ledger, _: ledger.follow(100, actor="s")),
    "expire_leases": Act(_due(running, "lease_expires_at"), lambda ledger, _: ledger.expire_leases(100, actor="s")),
    "expire_deadlines": Act(_due(queued, "deadline_at"), lambda ledger, _: ledger.expire_deadlines(100, actor="s")),
    "rung_before": Act(_due(queued, "publish_at"), lambda ledger, _: ledger.rung_before(BROKER, 100)),
    "take_rings": Act(
        _due(queued, "publish_at"), lambda ledger, _: ledger.take_rings(BROKER, 100, depths={QUEUE: 0})
    ),
    "submit": Act(lambda _: submission(), lambda ledger, sub: ledger.submit(sub)),
    "submit_again": Act(
        lambda ledger: (queued(ledger, "taken"), submission("taken"))[1], lambda ledger, sub: ledger.submit(sub)
    ),
    "claim": Act(queued, lambda ledger, row: claimed(ledger, row.task_id)),
    "refused_claim": Act(
        running, lambda ledger, claim: ledger.claim(claim.task_id, "other", owner="w", pid=1, lease=30)
    ),
    "renew": Act(
        lambda ledger: [running(ledger) for _ in range(8)],
        lambda ledger, claims: ledger.renew({c.task_id: c.token for c in claims}, 30),
    ),
    "succeed": Act(running, succeed),
    "lose": Act(running, lambda ledger, c: ledger.lose(c.task_id, c.token, gone(), owed_token="o", actor="k")),
    "clear_continuations": Act(
        _owing, lambda ledger, claim: ledger.clear_continuations({claim.task_id: claim.token})
    ),
}  # fmt: skip


def sent_by(ledger: Ledger, act: Act) -> list[tuple[str, Any]]:
    """The statements that one call sends, without those that begin, end or set something."""
    prepared = act.prepare(ledger)
    with captured(ledger) as sent:
        act.call(ledger, prepared)
    return [(s, p) for s, p in sent if s.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "INSERT", "WITH"))]


#: Tables that hold a handful of rows, whatever there is to do.
SMALL = ("durable_ledger", "durable_pause", "durable_worker")


# How a database says that it reads a table from end to end.


def full_scans(connection: sa.Connection, statement: str, parameters: Any) -> list[str]:
    """What this statement would read without an index that narrows it down."""
    scans = _PLANS[connection.dialect.name](connection, statement, parameters)
    return [scan for scan in scans if not any(table in scan for table in SMALL)]


def _postgresql(connection: sa.Connection, statement: str, parameters: Any) -> list[str]:
    # The plan for these very parameters, and the one that a prepared statement gets after some calls.
    connection.exec_driver_sql("SET plan_cache_mode = force_custom_plan")
    plans = [connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar()]
    names = list(dict.fromkeys(re.findall(_PARAMETER, statement)))
    prepared = re.sub(_PARAMETER, lambda m: f"${names.index(m[1]) + 1}", statement).replace("%%", "%")
    raw = connection.connection.driver_connection
    given = ", ".join(_literal(raw, parameters[n]) for n in names)
    connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
    with raw.cursor() as cursor:
        cursor.execute(f"PREPARE looked_at AS {prepared}".encode())
        explained = f"EXPLAIN (FORMAT JSON) EXECUTE looked_at{f'({given})' if names else ''}"
        plans.append(cursor.execute(explained.encode()).fetchone()[0])
        cursor.execute("DEALLOCATE looked_at")
    nodes = [
        node for plan in plans for node in _nodes((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
    ]
    # An index that is read without a condition is read from end to end, too.
    return [f"Seq Scan on {n['Relation Name']}" for n in nodes if n["Node Type"] == "Seq Scan"]


def whole_indexes(connection: sa.Connection, statement: str, parameters: Any) -> list[str]:
    """Indexes that PostgreSQL would read from end to end, being asked for nothing that narrows them down."""
    (plan,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar()
    nodes = _nodes(plan["Plan"])
    return [n["Index Name"] for n in nodes if "Index Name" in n and "Index Cond" not in n]


def _literal(raw: Any, value: Any) -> str:
    from psycopg import sql

    return sql.Literal(value).as_string(raw)


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan] + [node for child in plan.get("Plans", []) for node in _nodes(child)]


def _mariadb(connection: sa.Connection, statement: str, parameters: Any) -> list[str]:
    if statement.startswith("INSERT"):
        return []
    rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).mappings().all()
    return [
        f"{r['type']} on {r['table']} by {r['key']}"
        for r in rows
        if r["table"] and not r["table"].startswith("<") and (r["type"] in {"ALL", "index"} or r["key"] is None)
    ]


def _sqlite(connection: sa.Connection, statement: str, parameters: Any) -> list[str]:
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).mappings().all()
    return [r["detail"] for r in rows if re.match(r"SCAN durable", r["detail"])]


_PLANS = {"postgresql": _postgresql, "mysql": _mariadb, "sqlite": _sqlite}


# How much work a call is, in a unit of each database's own.


def calm(ledger: Ledger) -> None:
    """Leave nothing due of what earlier calls left behind."""
    c = ledger.t.task.c
    hour = ledger.dialect.clock_sql + 3600 * SECOND
    later = {n: sa.case((c[n].is_not(None), hour)) for n in ("publish_at", "wake_at", "lease_expires_at")}
    live = c.finished_at.is_(None) | c.publish_at.is_not(None)
    ledger.db.run(lambda connection: connection.execute(sa.update(ledger.t.task).where(live).values(later)))


def work(ledger: Ledger, act: Act) -> int:
    """Pages touched (PostgreSQL), rows read (MariaDB), steps of the virtual machine (SQLite) for one call."""
    calm(ledger)
    return _WORK[ledger.dialect.name](ledger, act)


def _pages(ledger: Ledger, act: Act) -> int:
    prepared = act.prepare(ledger)
    c = ledger.t.task.c
    live = sa.select(ledger.t.task).where(c.finished_at.is_(None) | c.publish_at.is_not(None))

    def seen(query: sa.Select[Any]) -> dict[int, dict[str, Any]]:
        found = ledger.db.run(lambda connection: connection.execute(query).mappings().all(), read_only=True)
        return {row["id"]: dict(row) for row in found}

    before = seen(live)
    with captured(ledger) as sent:
        act.call(ledger, prepared)
    after = seen(sa.select(ledger.t.task).where(c.id.in_(list(before))))
    changed = [row for row in before.values() if after[row["id"]] != row]
    total = 0
    with ledger.db.engine.connect() as connection:  # put things back, look at the same statements, undo all
        for row in changed:
            connection.execute(sa.update(ledger.t.task).where(c.id == row["id"]).values(row))
        connection.execute(sa.delete(ledger.t.task).where(c.id > max(before)))
        for statement, parameters in sent:
            (plan,) = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
            ).scalar()
            total += plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        connection.rollback()
    return total


def _rows_read(ledger: Ledger, act: Act) -> int:
    prepared = act.prepare(ledger)

    def counted() -> int:
        found = ledger.db.run(lambda c: c.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'").all())
        return sum(int(value) for _, value in found)

    before = counted()
    idle = counted() - before
    before = counted()
    act.call(ledger, prepared)
    return counted() - before - idle


def _steps(ledger: Ledger, act: Act) -> int:
    prepared = act.prepare(ledger)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with ledger.db.engine.connect() as connection:
        connection.connection.driver_connection.set_progress_handler(count, 1)
    act.call(ledger, prepared)
    with ledger.db.engine.connect() as connection:
        connection.connection.driver_connection.set_progress_handler(None, 1)
    return steps


_WORK = {"postgresql": _pages, "mysql": _rows_read, "sqlite": _steps}
#: What a B-tree that is a level deeper adds, in the same units: PostgreSQL alone counts pages on the way down.
SLACK = {"postgresql": 8}
