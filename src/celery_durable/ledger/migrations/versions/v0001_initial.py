"""The first schema: tasks, failures, history, workers, and a view with readable times.

A migration describes the tables as they were at its revision and is never edited once released.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from celery_durable.ledger.dialects import DIALECTS
from celery_durable.ledger.schema_rules import checks, guard

revision = "0001"
down_revision = None

#: Columns that the view shows as timestamps, in UTC.
TIMES = (
    "submitted_at", "published_at", "publish_at", "started_at", "finished_at", "deadline_at", "lease_expires_at",
    "wait_since", "wake_at", "cancel_requested_at",
)  # fmt: skip
READABLE = {
    "postgresql": "to_timestamp({} / 1000000.0)",
    "mysql": "TIMESTAMPADD(MICROSECOND, {}, '1970-01-01 00:00:00')",
    "mariadb": "TIMESTAMPADD(MICROSECOND, {}, '1970-01-01 00:00:00')",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', {} / 1000000.0, 'unixepoch')",
}
PLAIN = (
    "id", "task_id", "task", "idempotency_key", "state", "queue", "claims", "losses", "retries", "publish_count",
    "submitted_by", "lease_owner", "lease_pid", "wait_kind", "wait_reason", "failure_kind",
)  # fmt: skip


def upgrade(prefix: str) -> None:
    """Create everything."""
    bind = op.get_bind()
    meta = description(prefix)
    meta.create_all(bind)
    clock = DIALECTS[bind.dialect.name].clock
    # MySQL commits DDL by itself: after a crash half-way this runs again over what is there.
    if bind.exec_driver_sql(f"SELECT count(*) FROM {prefix}ledger").scalar() == 0:  # noqa: S608
        bind.execute(
            sa.text(f"INSERT INTO {prefix}ledger (id, uuid, created_at) VALUES (1, :uuid, {clock})"),  # noqa: S608
            {"uuid": str(uuid4())},
        )
    shown = [*PLAIN, *(f"{READABLE[bind.dialect.name].format(name)} AS {name}" for name in TIMES)]
    create = "CREATE VIEW" if bind.dialect.name == "sqlite" else "CREATE OR REPLACE VIEW"
    view = f"{create} {prefix}task_readable AS SELECT {', '.join(shown)} FROM {prefix}task"  # noqa: S608
    bind.exec_driver_sql(view.replace("%", "%%") if bind.dialect.paramstyle in {"format", "pyformat"} else view)


BigKey = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Micros = sa.BigInteger()
Digest = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
Blob = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def text(length: int | None = None) -> sa.types.TypeEngine[str]:
    """Text that MySQL compares byte by byte, as the other databases do."""
    binary = {"charset": "utf8mb4", "collation": "utf8mb4_bin"}
    if length is None:
        return sa.Text().with_variant(mysql.LONGTEXT(**binary), "mysql", "mariadb")
    return sa.String(length).with_variant(mysql.VARCHAR(length, **binary), "mysql", "mariadb")


#: Rows the database itself refuses to hold, whoever writes them.
TASK_CHECKS = {
    "state_known": "state IN ('queued','running','waiting','succeeded','dead','cancelled')",
    "running_leased": (
        "(state = 'running' AND lease_owner IS NOT NULL AND started_at IS NOT NULL"
        " AND (observed = 1 OR (lease_expires_at IS NOT NULL AND claim_token IS NOT NULL)))"
        " OR (state <> 'running' AND lease_owner IS NULL AND lease_expires_at IS NULL)"
    ),
    "waiting_explained": (
        "(state = 'waiting' AND wait_kind IS NOT NULL AND wait_reason IS NOT NULL AND wait_reason <> ''"
        " AND wait_since IS NOT NULL AND (wake_at IS NOT NULL OR observed = 1))"
        " OR (state <> 'waiting' AND wait_kind IS NULL AND wake_at IS NULL)"
    ),
    "dead_has_kind": ("(state = 'dead' AND failure_kind IS NOT NULL) OR (state <> 'dead' AND failure_kind IS NULL)"),
    "terminal_finished": (
        "(state IN ('succeeded','dead','cancelled') AND finished_at IS NOT NULL)"
        " OR (state IN ('queued','running','waiting') AND finished_at IS NULL)"
    ),
    "queued_rung": "state <> 'queued' OR publish_at IS NOT NULL OR observed = 1",
    "owing_rung": "continuation_pending IS NULL OR (finished_at IS NOT NULL AND publish_at IS NOT NULL)",
    "rung_for_a_reason": "publish_at IS NULL OR state = 'queued' OR continuation_pending IS NOT NULL",
    "keyed_or_alias": (
        "(key_digest IS NOT NULL AND duplicate_of IS NULL) OR (key_digest IS NULL AND duplicate_of IS NOT NULL)"
    ),
    "counters": (
        "claims >= 0 AND losses >= 0 AND retries >= 0 AND publish_count >= 0 AND rings >= 0"
        " AND deferrals >= 0 AND envelope_no >= 1 AND max_losses >= 1"
    ),
    "on_loss_known": "on_loss IN ('retry','dead')",
    # What is merely observed is due at no time: no sweep sees it.
    "observed_unpromised": (
        "observed = 0 OR (observed = 1 AND lease_expires_at IS NULL AND wake_at IS NULL AND publish_at IS NULL"
        " AND deadline_at IS NULL AND continuation_pending IS NULL AND claim_token IS NULL)"
    ),
}


def _has_partial(*_: Any, dialect: sa.Dialect, **__: Any) -> bool:
    return dialect.name in {"postgresql", "sqlite"}


def _lacks_partial(*_: Any, dialect: sa.Dialect, **__: Any) -> bool:
    return dialect.name not in {"postgresql", "sqlite"}


def _partial(name: str, column: sa.Column[int], state: str) -> tuple[sa.Index, sa.Index]:
    """One sweep's index: partial where the database has that, led by ``state`` where not."""
    table = column.table
    where = sa.text(f"state = '{state}'")
    partial = sa.Index(name, column, postgresql_where=where, sqlite_where=where)
    partial.ddl_if(callable_=_has_partial)
    composite = sa.Index(f"{name}_state", table.c.state, column)
    composite.ddl_if(callable_=_lacks_partial)
    return partial, composite


def _deadline(name: str, column: sa.Column[int]) -> tuple[sa.Index, sa.Index]:
    """Deadlines of what is not over: partial where the database has that, led by ``finished_at`` where not."""
    table = column.table
    partial = sa.Index(name, column, **_where("deadline_at IS NOT NULL AND finished_at IS NULL"))
    partial.ddl_if(callable_=_has_partial)
    composite = sa.Index(f"{name}_finished", table.c.finished_at, column)
    composite.ddl_if(callable_=_lacks_partial)
    return partial, composite


def description(prefix: str) -> sa.MetaData:
    """Describe the tables of this revision."""
    meta = sa.MetaData()
    column = sa.Column
    options: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
    sa.Table(
        f"{prefix}ledger", meta,
        column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        column("uuid", text(36), nullable=False),
        column("created_at", Micros, nullable=False),
        sa.CheckConstraint("id = 1", name=f"{prefix}ledger_single"),
        **options,
    )  # fmt: skip
    task = sa.Table(
        f"{prefix}task", meta,
        column("id", BigKey, primary_key=True, autoincrement=True),
        column("task_id", text(255), nullable=False),
        column("task", text(255), nullable=False),
        column("key_digest", Digest),
        column("idempotency_key", text(255), nullable=False),
        column("duplicate_of", sa.BigInteger),
        column("aliases", sa.Integer, nullable=False, server_default="0"),
        column("state", text(16), nullable=False),
        column("queue", text(255), nullable=False),
        column("priority", sa.Integer),
        column("broker", text(255), nullable=False),
        column("root_id", text(255)),
        column("parent_id", text(255)),
        column("envelope_no", sa.Integer, nullable=False, server_default="1"),
        column("envelope", text(), nullable=False),
        column("body", Blob, nullable=False),
        column("claims", sa.Integer, nullable=False, server_default="0"),
        column("losses", sa.Integer, nullable=False, server_default="0"),
        column("retries", sa.Integer, nullable=False, server_default="0"),
        column("max_losses", sa.Integer, nullable=False),
        column("on_loss", text(8), nullable=False),
        column("owes", sa.SmallInteger, nullable=False),
        column("publish_count", sa.Integer, nullable=False, server_default="0"),
        column("rings", sa.Integer, nullable=False, server_default="0"),
        column("deferrals", sa.Integer, nullable=False, server_default="0"),
        column("publish_at", Micros),
        column("published_at", Micros),
        column("submitted_at", Micros, nullable=False),
        column("submitted_by", text(255), nullable=False),
        column("started_at", Micros),
        column("finished_at", Micros),
        column("deadline_at", Micros),
        column("claim_token", text(36)),
        column("lease_owner", text(255)),
        column("lease_expires_at", Micros),
        column("lease_pid", sa.Integer),
        column("wait_kind", text(32)),
        column("wait_reason", text()),
        column("wait_since", Micros),
        column("wake_at", Micros),
        column("wait_event", text(255)),
        column("waiting_from", Micros),
        column("give_up_at", Micros),
        column("waits", sa.Integer, nullable=False, server_default="0"),
        column("progressed", sa.SmallInteger, nullable=False, server_default="0"),
        column("replaces", sa.Integer, nullable=False, server_default="0"),
        column("failure_kind", text(32)),
        column("continuation_pending", text(36)),
        column("cancel_requested_at", Micros),
        column("cancel_reason", text()),
        column("cancel_terminate", sa.SmallInteger, nullable=False, server_default="0"),
        column("progress", text()),
        column("progress_at", Micros),
        column("result", Blob),
        column("result_type", text(255)),
        column("observed", sa.SmallInteger, nullable=False, server_default="0"),
        *checks(f"{prefix}task", prefix, TASK_CHECKS),
        **options,
    )  # fmt: skip
    c = task.c
    guard(task, prefix, TASK_CHECKS)
    sa.Index(f"{prefix}task_task_id", c.task_id, unique=True)
    sa.Index(f"{prefix}task_key_digest", c.key_digest, unique=True)
    sa.Index(f"{prefix}task_publish_at", c.publish_at, **_where("publish_at IS NOT NULL"))
    sa.Index(f"{prefix}task_finished_at", c.finished_at, **_where("finished_at IS NOT NULL"))
    _deadline(f"{prefix}task_deadline_at", c.deadline_at)
    sa.Index(f"{prefix}task_duplicate_of", c.duplicate_of, **_where("duplicate_of IS NOT NULL"))
    sa.Index(f"{prefix}task_live", c.state, c.queue, c.id, **_where("finished_at IS NULL"))
    sa.Index(f"{prefix}task_key", c.idempotency_key)
    sa.Index(f"{prefix}task_parent_id", c.parent_id, **_where("parent_id IS NOT NULL"))
    sa.Index(f"{prefix}task_failure_kind", c.failure_kind, c.id, **_where("failure_kind IS NOT NULL"))
    _partial(f"{prefix}task_wake_at", c.wake_at, "waiting")
    _partial(f"{prefix}task_lease_expires_at", c.lease_expires_at, "running")
    sa.Table(
        f"{prefix}failure", meta,
        column("id", BigKey, primary_key=True, autoincrement=True),
        column("task_row", sa.BigInteger, nullable=False),
        column("claim", sa.Integer, nullable=False),
        column("kind", text(32), nullable=False),
        column("exception", text(255), nullable=False),
        column("message", text(), nullable=False),
        column("traceback", text(), nullable=False),
        column("fingerprint", text(32), nullable=False),
        column("retryable", sa.SmallInteger, nullable=False),
        column("retry_at", Micros),
        column("worker", text(255), nullable=False),
        column("pid", sa.Integer),
        column("host", text(255)),
        column("verdict", text()),
        column("causes", text()),
        column("arguments", text()),
        column("runtime_micros", sa.BigInteger),
        column("memory_bytes", sa.BigInteger),
        column("code_version", text(255)),
        column("exception_args", text()),
        column("occurred_at", Micros, nullable=False),
        sa.Index(f"{prefix}failure_task_row", "task_row"),
        sa.Index(f"{prefix}failure_fingerprint", "fingerprint", "id"),
        sa.Index(f"{prefix}failure_occurred_at", "occurred_at"),
        **options,
    )  # fmt: skip
    sa.Table(
        f"{prefix}event", meta,
        column("id", BigKey, primary_key=True, autoincrement=True),
        column("task_row", sa.BigInteger, nullable=False),
        column("verb", text(16), nullable=False),
        column("at", Micros, nullable=False),
        column("from_state", text(16)),
        column("to_state", text(16), nullable=False),
        column("claim", sa.Integer, nullable=False),
        column("actor", text(255), nullable=False),
        column("reason", text(), nullable=False),
        sa.Index(f"{prefix}event_task_row", "task_row"),
        **options,
    )  # fmt: skip
    sa.Table(
        f"{prefix}step", meta,
        column("task_row", sa.BigInteger, primary_key=True, autoincrement=False),
        column("kind", text(16), primary_key=True),
        column("name", text(255), primary_key=True),
        column("claim", sa.Integer, nullable=False),
        column("result", Blob),
        column("result_type", text(255)),
        column("started_at", Micros, nullable=False),
        column("finished_at", Micros),
        **options,
    )  # fmt: skip
    sa.Table(
        f"{prefix}signal", meta,
        column("task_row", sa.BigInteger, primary_key=True, autoincrement=False),
        column("name", text(255), primary_key=True),
        column("payload", text(), nullable=False),
        column("sent_at", Micros, nullable=False),
        column("sent_by", text(255), nullable=False),
        **options,
    )  # fmt: skip
    sa.Table(
        f"{prefix}pause", meta,
        column("kind", text(8), primary_key=True),
        column("target", text(255), primary_key=True),
        column("reason", text(), nullable=False),
        column("actor", text(255), nullable=False),
        column("since", Micros, nullable=False),
        column("until", Micros),
        sa.CheckConstraint("kind IN ('task','queue')", name=f"{prefix}pause_kind"),
        **options,
    )  # fmt: skip
    sa.Table(
        f"{prefix}worker", meta,
        column("id", text(255), primary_key=True),
        column("hostname", text(255), nullable=False),
        column("pid", sa.Integer, nullable=False),
        column("queues", text(), nullable=False),
        column("tasks", text(), nullable=False),
        column("broker", text(255), nullable=False),
        column("started_at", Micros, nullable=False),
        column("heartbeat_at", Micros, nullable=False),
        column("phase", text(16), nullable=False),
        column("running", sa.Integer, nullable=False),
        column("lease_micros", sa.BigInteger, nullable=False),
        column("pool", text(32), nullable=False),
        **options,
    )  # fmt: skip
    sa.Table(
        f"{prefix}result", meta,
        column("kind", text(8), primary_key=True),
        column("ref", text(255), primary_key=True),
        column("state", text(64), nullable=False),
        column("content", Blob),
        column("content_type", text(255)),
        column("stored_at", Micros, nullable=False),
        sa.CheckConstraint("kind IN ('task','group')", name=f"{prefix}result_kind"),
        sa.Index(f"{prefix}result_stored_at", "stored_at"),
        **options,
    )  # fmt: skip
    sa.Table(
        f"{prefix}chord", meta,
        column("group_id", text(255), primary_key=True),
        column("state", text(8), nullable=False),
        column("size", sa.Integer),
        column("added", sa.Integer, nullable=False),
        column("arrived", sa.Integer, nullable=False),
        column("driver", text(255)),
        column("began_at", Micros, nullable=False),
        sa.CheckConstraint("state IN ('open','sent','failed')", name=f"{prefix}chord_state"),
        sa.CheckConstraint("added >= 0 AND arrived >= 0", name=f"{prefix}chord_counters"),
        sa.Index(f"{prefix}chord_began_at", "began_at"),
        **options,
    )  # fmt: skip
    sa.Table(
        f"{prefix}chord_part", meta,
        column("group_id", text(255), primary_key=True),
        column("task_id", text(255), primary_key=True),
        column("position", sa.Integer),
        column("state", text(64)),
        column("content", Blob),
        column("content_type", text(255)),
        **options,
    )  # fmt: skip
    return meta


def _where(condition: str) -> dict[str, Any]:
    clause = sa.text(condition)
    return {"postgresql_where": clause, "sqlite_where": clause}
