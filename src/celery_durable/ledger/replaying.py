"""Verbs that bring back what is dead: one row, or all that a filter finds, in small batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.errors import BadRequest, NoSuchTask
from celery_durable.ledger.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Rows per transaction of a bulk replay, and candidates looked up at a time.
BATCH, PAGE = 100, 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Casualties:
    """Which dead tasks: those that died of this fingerprint, of this kind, and have this task name.

    What a task died of is its last failure; earlier ones play no part. At least one of the three is given.
    """

    fingerprint: str | None = None
    kind: str | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        """Refuse a filter that would mean everything: hardly anybody asks for that on purpose."""
        if not (self.fingerprint or self.kind or self.task):
            raise BadRequest("Which dead tasks? Give a fingerprint, a failure kind or a task name.")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction of a bulk replay did; ``passed_over`` rows are locked by others and still dead."""

    replayed: int
    passed_over: int = 0


class Replaying(Waiting):
    """Replays: what they bring back keeps its key, its steps and its whole history."""

    def replay_row(self, row_id: int, reason: str, *, actor: str, fresh: bool = False) -> bool:
        """Queue a dead or cancelled row again; False when it is in another state (replayed already).

        It goes on where it stopped; ``fresh`` forgets its steps, sleeps and received events.

        Raises:
            BadRequest: the task was only observed, or pruned: the ledger does not hold its message.
        """

        def work(connection: sa.Connection) -> bool:
            row = self._locked(connection, row_id)
            if row.state not in {states.DEAD, states.CANCELLED}:
                return False
            if row.observed:
                raise BadRequest(
                    f"{row.task_id} was only observed: the ledger does not hold its message. Submit it anew."
                )
            if row.pruned_at is not None:
                raise BadRequest(f"The message of {row.task_id} was pruned: there is nothing to run. Submit it anew.")
            self._bring_back(connection, [row], reason, actor=actor, fresh=fresh)
            return True

        return self.db.run(work)

    def replay_all(
        self, which: Casualties, reason: str, *, actor: str, fresh: bool = False, limit: int | None = None,
        batch: int = BATCH,
    ) -> Iterator[Batch]:  # fmt: skip
        """Queue dead rows again, up to ``batch`` in a transaction, and tell after each what it did.

        The next batch is begun when the next item is asked for. Each row is replayed once, also by several that do
        this at the same time, and one that dies again meanwhile is left alone. After a crash each batch stands whole
        or not at all; what was replayed is no longer dead, so that running it again goes on with the rest.
        """
        left = limit
        for page in self._candidates(which):
            for start in range(0, len(page), batch):
                if left is not None and left <= 0:
                    return
                chosen = page[start : start + (batch if left is None else min(batch, left))]
                done = self._replay_batch(chosen, reason, actor=actor, fresh=fresh)
                if left is not None:
                    left -= done.replayed
                yield done

    def count_dead(self, which: Casualties) -> int:
        """Count the rows that ``replay_all`` would replay now."""
        return int(self._ask(self._dead(which, sa.func.count()))[0][0])

    def sample_dead(self, which: Casualties, limit: int) -> list[int]:
        """Return the row ids of some of them, those that would be replayed first."""
        ids: list[int] = []
        for page in self._candidates(which):
            ids += [row.id for row in page[: limit - len(ids)]]
            if len(ids) >= limit:
                break
        return ids

    # How it is done -----------------------------------------------------------------------------------

    def _dead(self, which: Casualties, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        """Select from the dead rows; with a fingerprint by the failure that they died of."""
        c, f = self.t.task.c, self.t.failure.c
        # "Dead" is "has a failure kind": that much is indexed on every database.
        where = [c.failure_kind.is_not(None) if which.kind is None else c.failure_kind == which.kind]
        where += [self.in_state(states.DEAD), c.observed == 0, c.pruned_at.is_(None)]
        if which.task is not None:
            where.append(c.task == which.task)
        if which.fingerprint is None:
            return sa.select(*columns).select_from(self.t.task).where(*where)
        joined = self.t.failure.join(self.t.task, c.id == f.task_row)
        return sa.select(*columns).select_from(joined).where(f.fingerprint == which.fingerprint, self.is_last(), *where)

    def is_last(self) -> sa.ColumnElement[bool]:
        """Return the condition that a failure is the last one of its task."""
        later = self.t.failure.alias("later")
        f = self.t.failure.c
        return ~sa.exists().where(later.c.task_row == f.task_row, later.c.id > f.id)

    def _candidates(self, which: Casualties) -> Iterator[Sequence[sa.Row[Any]]]:
        """Pages of what is dead now, by a cursor that never comes back to what it has passed."""
        c, f = self.t.task.c, self.t.failure.c
        begun = self._ask(sa.select(self.dialect.instant_sql))[0][0]
        cursor = c.id if which.fingerprint is None else f.id
        kinds: Sequence[str | None] = [which.kind]
        if which.fingerprint is None and which.kind is None:
            kind = c.failure_kind
            kinds = [r[0] for r in self._ask(sa.select(kind).where(kind.is_not(None)).distinct().order_by(kind))]
        for kind_now in kinds:
            query = self._dead(replace(which, kind=kind_now), c.id, c.finished_at, cursor.label("place"))
            last = 0
            # Who is replayed and dies again has a later death: not this time.
            while page := self._ask(query.where(c.finished_at <= begun, cursor > last).order_by(cursor).limit(PAGE)):
                yield page
                last = page[-1].place

    def _replay_batch(self, chosen: Sequence[sa.Row[Any]], reason: str, *, actor: str, fresh: bool) -> Batch:
        c = self.t.task.c
        columns = (c.id, c.state, c.claims, c.duplicate_of, c.finished_at)
        deaths = {row.id: row.finished_at for row in chosen}
        dead = (c.id.in_(list(deaths)), self.in_state(states.DEAD), c.observed == 0, c.pruned_at.is_(None))

        def work(connection: sa.Connection) -> Batch:
            found = self.writer.lock(connection, *dead, columns=columns, limit=len(deaths), order=c.id)
            rows = [row for row in found if deaths[row.id] == row.finished_at]  # the same death
            self._bring_back(connection, rows, reason, actor=actor, fresh=fresh)
            left = connection.execute(sa.select(c.id, c.finished_at).where(*dead)).all()
            return Batch(len(rows), sum(deaths[row.id] == row.finished_at for row in left))

        return self.db.run(work)

    def _bring_back(
        self, connection: sa.Connection, rows: Sequence[sa.Row[Any]], reason: str, *, actor: str, fresh: bool
    ) -> None:
        if fresh and rows:
            self.forget(connection, [row.id for row in rows])
        firsts = [row for row in rows if row.duplicate_of is None]
        aliases = [row for row in rows if row.duplicate_of is not None]
        self.writer.write_all(connection, firsts, states.replay(reason), actor=actor)
        self.writer.write_all(connection, aliases, states.replay_alias(reason), actor=actor)

    def _locked(self, connection: sa.Connection, row_id: int) -> sa.Row[Any]:
        rows = self.writer.lock(connection, self.t.task.c.id == row_id)
        if not rows:
            raise NoSuchTask(f"No task with the row id {row_id}.")
        return rows[0]
