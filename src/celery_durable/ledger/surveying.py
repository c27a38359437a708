"""Looks at a ledger of any size that take as long as what is shown, not as what is stored: counts end at a limit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger.base import Room
from celery_durable.ledger.reporting import failure_of
from celery_durable.overview import Count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.records import Failure

#: Where counts end: of rows, of failures that are alike, of dead tasks whose failures are looked at.
MANY, ALIKE, DEAD = 10_000, 1_000, 2_000
#: How many fingerprints are told.
FINGERPRINTS = 500


@dataclass(frozen=True, slots=True)
class Likeness:
    """The failures of one fingerprint: the latest one, whose task it was, when the first was, how many, how many dead.

    ``dead`` counts the tasks that died of it and are dead still. Times are microseconds.
    """

    fingerprint: str
    latest: Failure
    task: str
    first_seen: int
    last_seen: int
    count: Count
    dead: Count
    now: int


class Surveying(Room):
    """Bounded looks; nothing here writes."""

    def count_live(self) -> dict[str, Count]:
        """Count what is queued, running, waiting and dead, each up to ``MANY``."""
        c = self.t.task.c
        wanted: dict[str, sa.ColumnElement[bool]] = {
            state: sa.and_(self.in_state(state), c.finished_at.is_(None))
            for state in (states.QUEUED, states.RUNNING, states.WAITING)
        }
        wanted[states.DEAD] = c.failure_kind.is_not(None)
        return self._counted({state: sa.select(c.id).where(where) for state, where in wanted.items()}, MANY)

    def count_all(self) -> Count:
        """Say about how many tasks there are; exactly, where there are few."""
        c = self.t.task.c
        found = self._counted({"": sa.select(c.id)}, MANY)[""]
        if not found.more:
            return found
        return Count(max(found.number, self._estimate()), about=True)

    def _estimate(self) -> int:
        """Ask the database what it believes; SQLite believes nothing, and is asked for the highest number."""
        if self.dialect.name == "sqlite":
            query: sa.Select[Any] = sa.select(sa.func.max(self.t.task.c.id))
        elif self.dialect.name == "postgresql":
            name = sa.func.to_regclass(self.t.task.name)
            query = sa.select(sa.cast(sa.column("reltuples"), sa.BigInteger)).select_from(sa.table("pg_class"))
            query = query.where(sa.column("oid") == name)
        else:
            query = sa.select(sa.column("table_rows")).select_from(sa.table("tables", schema="information_schema"))
            query = query.where(
                sa.column("table_schema") == sa.func.database(), sa.column("table_name") == self.t.task.name
            )
        rows = self._ask(query)
        return int(rows[0][0] or 0) if rows else 0

    def likenesses(self) -> list[Likeness]:
        """List the fingerprints, up to ``FINGERPRINTS``, the one that failed last first."""
        f, c = self.t.failure.c, self.t.task.c
        ends = self._fingerprints()
        if not ends:
            return []
        counts = self._counted(
            {e.fingerprint: sa.select(f.id).where(f.fingerprint == e.fingerprint) for e in ends}, ALIKE
        )
        dead = self._dead_of()
        none = Count(0, more=any(count.more for count in dead.values()))
        firsts = {e.first: e.fingerprint for e in ends}
        first_seen = {
            firsts[row.id]: row.occurred_at
            for row in self._ask(sa.select(f.id, f.occurred_at).where(f.id.in_(list(firsts))))
        }
        named = (c.task.label("task"), self.dialect.instant_sql.label("now"))
        joined = self.t.failure.join(self.t.task, c.id == f.task_row)
        latest = sa.select(*f, *named).select_from(joined).where(f.id.in_([e.last for e in ends]))
        return [
            Likeness(
                r.fingerprint, failure_of(r), r.task, first_seen.get(r.fingerprint, r.occurred_at), r.occurred_at,
                counts[r.fingerprint], dead.get(r.fingerprint, none), r.now,
            )
            for r in self._ask(latest.order_by(f.id.desc()))
        ]  # fmt: skip

    def _fingerprints(self) -> Sequence[sa.Row[Any]]:
        """Tell each fingerprint with its first and last failure, by seeking from one to the next in its index."""
        f = self.t.failure.c
        if self.dialect.skips_in_groups:
            ends = sa.select(f.fingerprint, sa.func.min(f.id).label("first"), sa.func.max(f.id).label("last"))
            return self._ask(ends.group_by(f.fingerprint).limit(FINGERPRINTS))
        walk = sa.select(sa.func.min(f.fingerprint).label("fingerprint")).cte("walk", recursive=True)
        following = sa.select(sa.func.min(f.fingerprint)).where(f.fingerprint > walk.c.fingerprint)
        more = sa.select(following.correlate(walk).scalar_subquery()).where(walk.c.fingerprint.is_not(None))
        walk = walk.union_all(more)

        def end(of: sa.Function[int]) -> sa.ColumnElement[int]:
            return sa.select(of).where(f.fingerprint == walk.c.fingerprint).correlate(walk).scalar_subquery()

        ends = sa.select(
            walk.c.fingerprint, end(sa.func.min(f.id)).label("first"), end(sa.func.max(f.id)).label("last")
        )
        return self._ask(ends.where(walk.c.fingerprint.is_not(None)).limit(FINGERPRINTS))

    def _dead_of(self) -> dict[str, Count]:
        """Count the dead by the fingerprint that they died of, up to ``DEAD`` on the whole."""
        f, c = self.t.failure.c, self.t.task.c
        dead = sa.select(c.id).where(c.failure_kind.is_not(None), self.in_state(states.DEAD), c.observed == 0)
        some = dead.order_by(c.failure_kind, c.id).limit(DEAD).subquery()
        # One look for each: a join would be planned as if all failures were asked for.
        last = sa.select(f.fingerprint).where(f.task_row == some.c.id).order_by(f.id.desc()).limit(1)
        found = [row[0] for row in self._ask(sa.select(last.correlate(some).scalar_subquery()).select_from(some))]
        counted = Counter(fingerprint for fingerprint in found if fingerprint is not None)
        return {fingerprint: Count(number, more=len(found) >= DEAD) for fingerprint, number in counted.items()}

    def _counted(self, queries: dict[str, sa.Select[Any]], limit: int) -> dict[str, Count]:
        """Count the rows of several queries at once, none further than the limit."""
        parts = [
            sa.select(sa.literal(name).label("name"), sa.func.count().label("n")).select_from(
                query.limit(limit + 1).subquery(f"part_{number}")
            )
            for number, (name, query) in enumerate(queries.items())
        ]
        found = {row.name: row.n for row in self._ask_all(sa.union_all(*parts))}
        return {name: Count(min(found[name], limit), more=found[name] > limit) for name in queries}

    def _ask_all(self, query: sa.CompoundSelect[Any]) -> Sequence[sa.Row[Any]]:
        return self.db.run(lambda connection: connection.execute(query).all(), read_only=True)


__all__ = ["ALIKE", "DEAD", "FINGERPRINTS", "MANY", "Count", "Likeness", "Surveying"]
