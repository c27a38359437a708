"""The tables beside the rows of tasks: results that have no row, and chords that are counted."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from celery_durable.ledger.schema_types import Blob, Micros, text


def beside(meta: sa.MetaData, prefix: str, options: dict[str, Any]) -> tuple[sa.Table, sa.Table, sa.Table]:
    """Describe results, chords, and the parts of chords."""
    column = sa.Column
    result = sa.Table(
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
    chord = sa.Table(
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
    part = sa.Table(
        f"{prefix}chord_part", meta,
        column("group_id", text(255), primary_key=True),
        column("task_id", text(255), primary_key=True),
        column("position", sa.Integer),
        column("state", text(64)),
        column("content", Blob),
        column("content_type", text(255)),
        **options,
    )  # fmt: skip
    return result, chord, part
