"""The ledger's tables, as SQLAlchemy Core describes them.

Times are BIGINT microseconds since the epoch and JSON is TEXT on every dialect: what drivers and
frameworks convert on the way differs, what is stored here does not. A view shows real timestamps.
The migrations make these tables; a test holds both equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from celery_durable.ledger.schema_beside import beside
from celery_durable.ledger.schema_rules import TASK_CHECKS, checks, guard
from celery_durable.ledger.schema_types import BigKey, Blob, Digest, Micros, text


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables under one prefix."""

    metadata: sa.MetaData
    ledger: sa.Table
    task: sa.Table
    failure: sa.Table
    event: sa.Table
    step: sa.Table
    signal: sa.Table
    pause: sa.Table
    worker: sa.Table
    result: sa.Table
    chord: sa.Table
    part: sa.Table
    prefix: str


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


def _prunable(name: str, column: sa.Column[int]) -> tuple[sa.Index, sa.Index, sa.Index]:
    """What is over, and what of that is pruned: partial where the database has that, led by ``pruned_at`` where not."""
    table = column.table
    over = sa.Index(name, column, **_where("finished_at IS NOT NULL AND pruned_at IS NULL"))
    over.ddl_if(callable_=_has_partial)
    pruned = sa.Index(f"{name}_pruned", column, **_where("pruned_at IS NOT NULL"))
    pruned.ddl_if(callable_=_has_partial)
    composite = sa.Index(f"{name}_prunable", table.c.pruned_at, column)
    composite.ddl_if(callable_=_lacks_partial)
    return over, pruned, composite


def _deadline(name: str, column: sa.Column[int]) -> tuple[sa.Index, sa.Index]:
    """Deadlines of what is not over: partial where the database has that, led by ``finished_at`` where not."""
    table = column.table
    partial = sa.Index(name, column, **_where("deadline_at IS NOT NULL AND finished_at IS NULL"))
    partial.ddl_if(callable_=_has_partial)
    composite = sa.Index(f"{name}_finished", table.c.finished_at, column)
    composite.ddl_if(callable_=_lacks_partial)
    return partial, composite


@lru_cache(maxsize=8)
def tables(prefix: str) -> Tables:
    """Describe the ledger's tables under a name prefix."""
    meta = sa.MetaData()
    column = sa.Column
    options: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}
    ledger = sa.Table(
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
        column("pruned_at", Micros),
        *checks(f"{prefix}task", prefix, TASK_CHECKS),
        **options,
    )  # fmt: skip
    c = task.c
    guard(task, prefix, TASK_CHECKS)
    sa.Index(f"{prefix}task_task_id", c.task_id, unique=True)
    sa.Index(f"{prefix}task_key_digest", c.key_digest, unique=True)
    sa.Index(f"{prefix}task_publish_at", c.publish_at, **_where("publish_at IS NOT NULL"))
    _prunable(f"{prefix}task_finished_at", c.finished_at)
    _deadline(f"{prefix}task_deadline_at", c.deadline_at)
    sa.Index(f"{prefix}task_duplicate_of", c.duplicate_of, **_where("duplicate_of IS NOT NULL"))
    sa.Index(f"{prefix}task_live", c.state, c.queue, c.id, **_where("finished_at IS NULL"))
    sa.Index(f"{prefix}task_key", c.idempotency_key)
    sa.Index(f"{prefix}task_parent_id", c.parent_id, **_where("parent_id IS NOT NULL"))
    sa.Index(f"{prefix}task_failure_kind", c.failure_kind, c.id, **_where("failure_kind IS NOT NULL"))
    _partial(f"{prefix}task_wake_at", c.wake_at, "waiting")
    _partial(f"{prefix}task_lease_expires_at", c.lease_expires_at, "running")
    failure = sa.Table(
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
    event = sa.Table(
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
    step = sa.Table(
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
    signal = sa.Table(
        f"{prefix}signal", meta,
        column("task_row", sa.BigInteger, primary_key=True, autoincrement=False),
        column("name", text(255), primary_key=True),
        column("payload", text(), nullable=False),
        column("sent_at", Micros, nullable=False),
        column("sent_by", text(255), nullable=False),
        **options,
    )  # fmt: skip
    pause = sa.Table(
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
    worker = sa.Table(
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
        column("lock_number", sa.Integer),
        column("lock_server", text(255)),
        **options,
    )  # fmt: skip
    result, chord, part = beside(meta, prefix, options)
    return Tables(
        meta, ledger, task, failure, event, step, signal, pause, worker, result, chord, part, prefix
    )  # fmt: skip


def _where(condition: str) -> dict[str, Any]:
    clause = sa.text(condition)
    return {"postgresql_where": clause, "sqlite_where": clause}
