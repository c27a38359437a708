"""What is pruned: since when, that it is over, and the indexes that find what is next."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from celery_durable.ledger.migrations.versions import v0001_initial
from celery_durable.ledger.schema_rules import function

revision = "0003"
down_revision = "0002"

RULE = "pruned_at IS NULL OR (finished_at IS NOT NULL AND continuation_pending IS NULL)"


def upgrade(prefix: str) -> None:
    """Add a column with its rule, and index what is over by whether it is pruned."""
    bind = op.get_bind()
    table, rule, name = f"{prefix}task", f"{prefix}pruned_over", f"{prefix}task_finished_at"
    # MySQL commits DDL by itself: after a crash half-way this runs again over what is there.
    seen = sa.inspect(bind)
    columns = {column["name"] for column in seen.get_columns(table)}
    indexes = {index["name"] for index in seen.get_indexes(table)}
    if bind.dialect.name == "sqlite":  # it takes a rule with a column only
        bind.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN pruned_at BIGINT CONSTRAINT {rule} CHECK ({RULE})")
    else:
        if "pruned_at" not in columns:
            op.add_column(table, sa.Column("pruned_at", sa.BigInteger))
        if bind.dialect.name == "postgresql":
            task = v0001_initial.description(prefix).tables[table]
            task.append_column(sa.Column("pruned_at", sa.BigInteger))
            bind.exec_driver_sql(function(task, prefix, v0001_initial.TASK_CHECKS | {"pruned_over": RULE}))
        elif rule not in {check["name"] for check in seen.get_check_constraints(table)}:
            op.create_check_constraint(rule, table, RULE)
    if bind.dialect.name in {"sqlite", "postgresql"}:
        op.drop_index(name, table)
        for index, condition in (
            (name, "finished_at IS NOT NULL AND pruned_at IS NULL"),
            (f"{name}_pruned", "pruned_at IS NOT NULL"),
        ):
            where = sa.text(condition)
            op.create_index(index, table, ["finished_at"], postgresql_where=where, sqlite_where=where)
        return
    if f"{name}_prunable" not in indexes:
        op.create_index(f"{name}_prunable", table, ["pruned_at", "finished_at"])
    if name in indexes:
        op.drop_index(name, table)
