"""The ledger's tables told without SQLAlchemy's words, for those who describe them in a framework of their own."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from celery_durable.ledger.schema import tables

#: Kinds of columns, the first that a type is an instance of.
_KINDS = (
    (sa.SmallInteger, "small"), (sa.BigInteger, "big"), (sa.Integer, "integer"), (sa.Text, "text"),
    (sa.String, "string"), (sa.LargeBinary, "bytes"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its kind is ``small``, ``big``, ``integer``, ``text``, ``string`` (with a length) or ``bytes``."""

    name: str
    kind: str
    length: int | None
    nullable: bool
    key: bool


def columns(prefix: str, table: str) -> tuple[str, list[Column]]:
    """Return a table's name in the database and its columns; ``table`` is what ``Tables`` calls it."""
    described: sa.Table = getattr(tables(prefix), table)
    return described.name, [
        Column(c.name, _kind(c.type), getattr(c.type, "length", None), bool(c.nullable), c.primary_key)
        for c in described.columns
    ]


def _kind(type_: sa.types.TypeEngine[object]) -> str:
    return next(kind for cls, kind in _KINDS if isinstance(type_, cls))
