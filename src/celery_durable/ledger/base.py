"""What every room of the ledger shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger.moves import Writer
from celery_durable.ledger.schema import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from celery_durable.ledger.database import Database

T = TypeVar("T")


class Room:
    """A group of verbs over one database and one set of tables."""

    def __init__(self, database: Database, *, prefix: str = "durable_", republish_after: float = 30.0) -> None:
        """Bind to a database; nothing connects yet. ``republish_after`` is in seconds."""
        self.db = database
        self.dialect = database.dialect
        self.t = tables(prefix)
        self.writer = Writer(self.t, self.dialect)
        self.republish_after = republish_after
        self._statements: dict[Hashable, Any] = {}

    def _statement(self, form: Hashable, build: Callable[[], T]) -> T:
        """Return the statement of this form, built when it is first asked for."""
        found: T | None = self._statements.get(form)
        if found is None:
            found = self._statements[form] = build()
        return found

    @property
    def channel(self) -> str:
        """The channel on which PostgreSQL tells that a result is there; "" where the database has none."""
        return f"{self.t.prefix}result" if self.dialect.name == "postgresql" else ""

    def in_state(self, state: str) -> sa.ColumnElement[bool]:
        """Compare ``state`` with a literal: a bound value could not be matched with a partial index."""
        return self.t.task.c.state == sa.literal_column(f"'{state}'")

    def wake_aliases(self, row_id: int) -> None:
        """Have the rows that wait for this one look at once; they look by themselves all the same."""
        c = self.t.task.c
        self.db.run(
            lambda connection: connection.execute(
                sa.update(self.t.task)
                .where(c.duplicate_of == row_id, self.in_state(states.WAITING), c.wait_kind == states.DUPLICATE)
                .values(wake_at=self.dialect.clock_sql)
            ),
            autocommit=True,
        )

    def _ask(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """Read, without a transaction."""
        return self.db.run(lambda connection: connection.execute(query).all(), read_only=True)
