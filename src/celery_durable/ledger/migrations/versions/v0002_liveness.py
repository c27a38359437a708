"""The lock by which a worker shows that it lives: its number, and the server that keeps it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"


def upgrade(prefix: str) -> None:
    """Add two columns, empty in the rows of workers that hold none."""
    table = f"{prefix}worker"
    server = mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin")
    columns = (
        sa.Column("lock_number", sa.Integer),
        sa.Column("lock_server", sa.String(255).with_variant(server, "mysql", "mariadb")),
    )
    # MySQL commits DDL by itself: after a crash half-way this runs again over what is there.
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}
    for column in columns:
        if column.name not in there:
            op.add_column(table, column)
