"""What the doctor asks a ledger: how its database is set up, and what is late. Nothing here writes."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger import migrating
from celery_durable.ledger.surveying import MANY, Surveying
from celery_durable.overview import Count, Setup, Standing

_POSTGRESQL = ("fsync", "synchronous_commit", "transaction_read_only", "default_transaction_isolation")
_MYSQL = ("innodb_flush_log_at_trx_commit", "sql_mode", "max_allowed_packet", "read_only", "version")


class Inspecting(Surveying):
    """Looks at the whole."""

    @property
    def file(self) -> str:
        """The path of a SQLite ledger's file, "" when it has none."""
        name = self.db.url.database or ""
        plain = self.dialect.name == "sqlite" and name != ":memory:" and not name.startswith("file:")
        return name if plain else ""

    def revision(self) -> str | None:
        """Return the schema's revision; None when there is none.

        Raises:
            LedgerUnavailable: the database did not answer.
        """
        return migrating.revision(self.db, self.t)

    def setup(self) -> Setup:
        """Ask the database how it is set up."""
        name = self.dialect.name
        if name == "sqlite":
            mode = str(self._ask(sa.select(sa.column("journal_mode")).select_from(_pragma()))[0][0])
            return Setup("SQLite", variables={"journal_mode": mode})
        before = time.time()
        now = self._ask(sa.select(self.dialect.clock_sql))[0][0] / 1e6
        ahead = now - (before + time.time()) / 2
        if name == "postgresql":
            told = self._told({n: sa.func.current_setting(n) for n in _POSTGRESQL})
            return Setup("PostgreSQL", variables=told, ahead=ahead)
        told = self._told({n: sa.literal_column(f"@@{n}") for n in _MYSQL})
        product = "MariaDB" if "mariadb" in told["version"].lower() else "MySQL"
        return Setup(product, _version(told["version"]), told, self._not_transactional(), ahead=ahead)

    def _told(self, variables: dict[str, sa.ColumnElement[Any]]) -> dict[str, str]:
        query: sa.Select[Any] = sa.select(*variables.values())
        return {name: str(value) for name, value in zip(variables, self._ask(query)[0], strict=True)}

    def _not_transactional(self) -> list[str]:
        columns: list[sa.ColumnClause[Any]] = [sa.column(n) for n in ("table_schema", "table_name", "engine")]
        known = sa.table("tables", *columns, schema="information_schema")
        names = [t.name for t in self.t.metadata.tables.values()]
        query = sa.select(known.c.table_name).where(
            known.c.table_schema == sa.func.database(), known.c.table_name.in_(names), known.c.engine != "InnoDB"
        )
        return [row[0] for row in self._ask(query)]

    def standing(self, broker: str) -> Standing:
        """Say what is due and late, of one broker's rows where that matters; counts end at ``MANY``."""
        c, now = self.t.task.c, self.dialect.instant_sql
        others = (states.DUPLICATE, states.UNREGISTERED, states.REPLACED)
        due = {
            "rings": (c.publish_at, (c.publish_at <= now, c.broker == broker)),
            "waits": (c.wake_at, (self.in_state(states.WAITING), c.wake_at <= now, c.wait_kind.not_in(others))),
            "leases": (c.lease_expires_at, (self.in_state(states.RUNNING), c.lease_expires_at <= now)),
        }
        wanted = {name: sa.select(c.id).where(*where) for name, (_, where) in due.items()}
        wanted["unregistered"] = sa.select(c.id).where(
            self.in_state(states.WAITING), c.wait_kind == states.UNREGISTERED, c.finished_at.is_(None)
        )
        counts = self._counted(wanted, MANY)
        oldest: list[Any] = [sa.select(sa.func.min(at)).where(*where).scalar_subquery() for at, where in due.values()]
        query: sa.Select[Any] = sa.select(now, *oldest)
        times: list[int | None] = list(self._ask(query)[0])
        late = max(((times[0] or 0) - at for at in times[1:] if at is not None), default=0)
        found = [counts[name] for name in due]
        return Standing(
            Count(sum(n.number for n in found), more=any(n.more for n in found)),
            late / 1e6, self._queued(), counts["unregistered"],
        )  # fmt: skip

    def _queued(self) -> list[tuple[str, int]]:
        c = self.t.task.c
        count = sa.func.count().label("n")
        query = sa.select(c.queue, count).where(self.in_state(states.QUEUED), c.finished_at.is_(None))
        return [(row.queue, row.n) for row in self._ask(query.group_by(c.queue).order_by(c.queue))]


def _pragma() -> sa.TableValuedAlias:
    return sa.func.pragma_journal_mode().table_valued("journal_mode")


def _version(text: str) -> tuple[int, ...]:
    """Take the numbers in front: ``10.11.6-MariaDB-1`` is 10, 11, 6."""
    numbers = []
    for part in text.partition("-")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


__all__ = ["Inspecting"]
