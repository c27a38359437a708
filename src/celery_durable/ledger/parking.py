"""Verbs of messages that cannot run where they arrived: kept with their reason, until somebody can do better."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import exc

from celery_durable import failures, keys, states
from celery_durable.ledger.moves import micros
from celery_durable.ledger.placeholders import gives_way
from celery_durable.ledger.registry import Registry
from celery_durable.ledger.submitting import Submitting
from celery_durable.records import Envelope

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from celery_durable.records import Failure, Submission


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message, as far as it could be read, and why it cannot run.

    Without a ``failure`` its task is merely unknown here. ``row`` is the task id and envelope number that its mark
    names, None for a message without one.
    """

    submission: Submission
    failure: Failure | None = None
    row: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Stranger:
    """A due row that waits for a worker which knows its task."""

    row_id: int
    task_id: str
    task: str
    key: str
    broker: str
    envelope: Envelope


#: What became of a message: it has a row, or its row stands as it is.
PARKED, KNOWN = "parked", "known"


class Parking(Submitting, Registry):
    """Nothing that arrives is dropped without a row that says why."""

    def take_in(self, parcels: Sequence[Parcel], *, actor: str) -> list[str]:
        """Keep messages in one transaction; say for each ``parked``, or ``known`` where its row stands as it is.

        A recorded message moves its own row, while that is queued. Others get a row: dead when they cannot be read,
        else waiting, kind ``unregistered``.

        Raises:
            LedgerUnavailable: the database did not answer; nothing was kept, or all of it.
        """
        try:
            return self.db.run(lambda connection: self._take_all(connection, parcels, actor))
        except exc.IntegrityError:  # somebody took one of the ids meanwhile
            return self.db.run(lambda connection: [self._take_in(connection, p, actor) for p in parcels])

    def _take_all(self, connection: sa.Connection, parcels: Sequence[Parcel], actor: str) -> list[str]:
        """Write what needs no look at other rows with a few statements for all, and the others one by one."""
        t, simple = self.t.task, [p for p in parcels if p.failure is not None and p.row is None]
        ids = [p.submission.task_id for p in simple]
        taken = set(connection.execute(sa.select(t.c.task_id).where(t.c.task_id.in_(ids))).scalars()) if ids else set()
        new: dict[str, Parcel] = {}
        for parcel in simple:
            if parcel.submission.task_id not in taken:
                new.setdefault(parcel.submission.task_id, parcel)
        if new:
            self._take_new(connection, list(new.values()), actor)
        one_by_one = (p for p in parcels if new.get(p.submission.task_id) is not p)
        outcomes = {id(p): self._take_in(connection, p, actor) for p in one_by_one}
        return [outcomes.get(id(p), PARKED) for p in parcels]

    def _take_new(self, connection: sa.Connection, parcels: Sequence[Parcel], actor: str) -> None:
        t, values = self.t.task, [self.writer.values(self._parked(p)) for p in parcels]
        clock = {k: v for k, v in values[0].items() if isinstance(v, sa.ColumnElement)}
        plain = [{k: v for k, v in row.items() if k not in clock} for row in values]
        connection.execute(sa.insert(t).values(clock), plain)
        ids = [p.submission.task_id for p in parcels]
        query = sa.select(t.c.task_id, t.c.id).where(t.c.task_id.in_(ids))
        row_of = {r.task_id: r.id for r in connection.execute(query)}
        dead = [(row_of[p.submission.task_id], 0, p.failure) for p in parcels if p.failure is not None]
        self.writer.failures(connection, dead)
        notes = [
            {
                "task_row": row_of[p.submission.task_id], "verb": "park", "from_state": None, "to_state": states.DEAD,
                "claim": 0, "actor": actor[:255], "reason": _reason(p),
            }
            for p in parcels
        ]  # fmt: skip
        connection.execute(sa.insert(self.t.event).values(at=self.dialect.clock_sql), notes)

    def _take_in(self, connection: sa.Connection, parcel: Parcel, actor: str) -> str:
        if parcel.row is not None:
            moved = self._move_own(connection, parcel, parcel.row, actor)
            if moved:
                return moved
            parcel = replace(parcel, failure=parcel.failure or _row_missing(actor))
        sub, failure = parcel.submission, parcel.failure
        row_id = self._insert(connection, self._parked(parcel), "park", actor, _reason(parcel))
        if row_id is None and failure is None:
            found = self.writer.lock(connection, self.t.task.c.task_id == sub.task_id)
            if found and not gives_way(found[0]):
                if found[0].state != states.QUEUED or found[0].task != sub.task:
                    return KNOWN
                self.writer.write(connection, found[0], states.unregistered(sub.task), actor=actor)
                return PARKED
            if found:
                row_id = self.make_way(connection, found[0], self._parked(parcel), actor)
                row_id = row_id or self._insert(connection, self._parked(parcel), "park", actor, _reason(parcel))
        if row_id is None and failure is not None and self._is_kept(connection, sub):
            return KNOWN
        if row_id is None:
            # Its id belongs to somebody else: the row is found by its key all the same.
            apart = str(uuid4())
            digest = keys.digest(sub.task, apart)
            values = self._parked(parcel) | {"task_id": apart, "key_digest": digest}
            row_id = self._insert(connection, values, "park", actor, _reason(parcel))
        if failure is not None and row_id is not None:
            self.writer.failure(connection, row_id, 0, failure)
        return PARKED

    def _is_kept(self, connection: sa.Connection, sub: Submission) -> bool:
        """Whether this very message has its row already: it was delivered again, or the reply was lost."""
        found = self.writer.lock(connection, self.t.task.c.task_id == sub.task_id)
        if not found or (found[0].task_id, found[0].task) != (sub.task_id, sub.task):
            return False
        return Envelope.load(found[0].envelope, found[0].body).body == sub.envelope.body

    def _move_own(self, connection: sa.Connection, parcel: Parcel, mark: tuple[str, int], actor: str) -> str | None:
        """Move the row that a message belongs to; None when there is no such row (PROTOCOL 6)."""
        rows = [r for r in self.writer.lock(connection, self.t.task.c.task_id == mark[0]) if r.task_id == mark[0]]
        if not rows:
            return None
        row = rows[0]
        if row.state != states.QUEUED or row.envelope_no != mark[1] or row.observed:
            return KNOWN
        move = states.unregistered(row.task) if parcel.failure is None else states.undecodable(parcel.failure)
        self.writer.write(connection, row, move, actor=actor)
        return PARKED

    def _parked(self, parcel: Parcel) -> dict[str, Any]:
        if parcel.failure is None:
            columns = states.unregistered(parcel.submission.task).changes
        else:
            columns = states.into_terminal(states.DEAD, owed=None, failure_kind=parcel.failure.kind)
        never = {"rings": 0, "publish_count": 0, "published_at": None}
        return self._values(parcel.submission) | columns | never

    def hand_over(self, task_id: str, envelope_no: int, *, actor: str) -> bool:
        """End a queued row whose task Celery runs without us; False when its message must not run.

        True again for the same message: it may be delivered twice, as any message of a stock task.
        """

        def work(connection: sa.Connection) -> bool:
            rows = self.writer.lock(connection, self.t.task.c.task_id == task_id)
            if not rows or rows[0].envelope_no != envelope_no:
                return False
            if rows[0].observed:
                return True
            if rows[0].state != states.QUEUED:
                return False
            self.writer.write(connection, rows[0], states.hand_over(rows[0].task), actor=actor)
            return True

        return self.db.run(work)

    # Strangers ----------------------------------------------------------------------------------------

    def strangers_return(self, tasks: Collection[str]) -> int:
        """Make the rows due that waited for one of these tasks: a worker that knows them has just come."""
        c, due = self.t.task.c, self.dialect.clock_sql
        where = (self.in_state(states.WAITING), c.wait_kind == states.UNREGISTERED, c.wake_at > due)
        query = sa.select(c.id, c.task).where(*where)

        def work(connection: sa.Connection) -> int:
            ids = [row.id for row in connection.execute(query) if row.task in tasks]
            for start in range(0, len(ids), 500):
                update = sa.update(self.t.task).where(c.id.in_(ids[start : start + 500]), *where)
                connection.execute(update.values(wake_at=due))
            return len(ids)

        return self.db.run(work)

    def strangers(self, limit: int) -> list[Stranger]:
        """Return due rows that wait for a worker which knows their task, the longest due first."""
        c = self.t.task.c
        query = (
            sa.select(c.id, c.task_id, c.task, c.idempotency_key, c.broker, c.envelope, c.body)
            .where(
                self.in_state(states.WAITING), c.wake_at <= self.dialect.instant_sql,
                c.wait_kind == states.UNREGISTERED,
            )
            .order_by(c.wake_at)
            .limit(limit)
        )  # fmt: skip
        rows = self.db.run(lambda connection: connection.execute(query).all(), read_only=True)
        return [
            Stranger(r.id, r.task_id, r.task, r.idempotency_key, r.broker, Envelope.load(r.envelope, r.body))
            for r in rows
        ]

    def put_off(self, strangers: Sequence[Stranger]) -> None:
        """Look at these again later, but for those that a live worker of their broker knows: it takes them itself."""
        known = {(w.broker, task) for w in self.workers() if w.live for task in w.tasks}
        ids = [s.row_id for s in strangers if (s.broker, s.task) not in known]
        if not ids:
            return
        c = self.t.task.c
        update = sa.update(self.t.task).where(
            c.id.in_(ids), self.in_state(states.WAITING), c.wait_kind == states.UNREGISTERED
        )
        later = self.dialect.clock_sql + micros(states.UNREGISTERED_INTERVAL)
        self.db.run(lambda connection: connection.execute(update.values(wake_at=later)))

    def welcome(self, row_id: int, sub: Submission | None, *, actor: str) -> None:
        """Queue a row whose task is known now; ``sub`` is its message as that task reads it, None for a stock task.

        Only now its own idempotency key can be told: where that is taken, the row follows the one that holds it.
        """

        def work(connection: sa.Connection) -> None:
            rows = self.writer.lock(connection, self.t.task.c.id == row_id)
            if not rows or rows[0].wait_kind != states.UNREGISTERED:
                return
            row, changes = rows[0], states.into_queued()
            reason = f"a worker that knows {row.task} is here"
            if sub is not None:
                changes |= {"owes": int(sub.owes), "max_losses": sub.max_losses, "on_loss": sub.on_loss}
            if sub is not None and sub.key != row.idempotency_key and row.idempotency_key == row.task_id:
                digest = keys.digest(sub.task, sub.key)
                held = self.writer.lock(connection, self.t.task.c.key_digest == digest)
                changes["idempotency_key"] = sub.key
                if held:
                    self._follow_holder(connection, row, held[0], sub, changes, actor)
                    return
                changes["key_digest"] = digest
            self.writer.write(connection, row, states.Move("release", states.QUEUED, changes, reason), actor=actor)

        self.db.run(work)

    def _follow_holder(
        self, connection: sa.Connection, row: sa.Row[Any], holder: sa.Row[Any], sub: Submission,
        changes: dict[str, Any], actor: str,
    ) -> None:  # fmt: skip
        """Make a row an alias of the one that holds its key; a dead or cancelled one is brought back (PROTOCOL 4)."""
        if holder.state in {states.DEAD, states.CANCELLED} and not holder.observed:
            self._resubmit(connection, holder, sub.alone or sub, actor)
        c = self.t.task.c
        connection.execute(sa.update(self.t.task).where(c.id == holder.id).values(aliases=c.aliases + 1))
        reason = f"{holder.task_id} holds the same key"
        wake = states.After(0 if holder.state in states.TERMINAL else states.FOLLOW_INTERVAL)
        changes |= states.into_waiting(states.DUPLICATE, reason, wake) | {"key_digest": None, "duplicate_of": holder.id}
        self.writer.write(connection, row, states.Move("follow", states.WAITING, changes, reason), actor=actor)

    def turn_away(self, row_id: int, failure: Failure, *, actor: str) -> None:
        """End a row whose message its task, known at last, cannot take."""

        def work(connection: sa.Connection) -> None:
            rows = self.writer.lock(connection, self.t.task.c.id == row_id)
            if rows and rows[0].wait_kind == states.UNREGISTERED:
                self.writer.write(connection, rows[0], states.undecodable(failure), actor=actor)

        self.db.run(work)


def _reason(parcel: Parcel) -> str:
    if parcel.failure is not None:
        return parcel.failure.message
    return states.unregistered(parcel.submission.task).reason


def _row_missing(actor: str) -> Failure:
    return failures.loss(
        "rejected", "celery_durable.RowMissing",
        "the message is marked as recorded, but the ledger has no such row, and no worker that got it knows its task",
        worker=actor, pid=None, claim=0,
    )  # fmt: skip
