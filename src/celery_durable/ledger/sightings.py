"""Rows of tasks that are merely observed: what was seen of them is told, nothing is promised.

No sweep sees such a row: the times at which others are due are empty (CHECK ``observed_unpromised``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import keys, states
from celery_durable.ledger.moves import Entry
from celery_durable.ledger.submitting import Submitting
from celery_durable.records import Envelope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.records import Failure

SEEN = "observe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """Something that a signal of Celery told about a stock task: the state that it is in since."""

    task_id: str
    task: str
    state: str
    reason: str = ""
    queue: str = ""
    broker: str = ""
    priority: int | None = None
    root_id: str | None = None
    parent_id: str | None = None
    retries: int = 0
    worker: str = ""
    pid: int | None = None
    submitted_by: str = ""
    failure: Failure | None = None


class Sightings(Submitting):
    """What is seen becomes rows that look like the others."""

    def observe(self, sightings: Sequence[Sighting]) -> None:
        """Write sightings, in one transaction, in the order in which they are given for each task.

        A task that has a row of its own making is left alone.

        Raises:
            LedgerUnavailable: the database did not answer.
        """
        ordered = sorted(sightings, key=lambda s: s.task_id)  # others lock in the same order

        def work(connection: sa.Connection) -> None:
            for seen in ordered:
                self._observe(connection, seen)

        self.db.run(work)

    def _observe(self, connection: sa.Connection, seen: Sighting) -> None:
        c = self.t.task.c
        found = self._stored(connection, seen)
        if found is None:
            if self._insert(connection, self._first_seen(seen), SEEN, seen.worker or seen.submitted_by, seen.reason):
                row = self._stored(connection, seen)
                if row is not None and seen.failure is not None:
                    self.writer.failure(connection, row.id, row.claims, seen.failure)
            return
        # A publisher's word may come after the worker's.
        if not found.observed or seen.state == states.QUEUED:
            return
        claims = found.claims + 1 if seen.state == states.RUNNING else max(found.claims, 1)
        changes: dict[str, Any] = {"claims": claims}
        # So may what one process saw, after what another saw of the next attempt.
        late = _attempt(seen) < _attempt(found)
        if not late:
            changes |= self.writer.values(_columns(seen)) | {"retries": seen.retries}
        connection.execute(sa.update(self.t.task).where(c.id == found.id).values(changes))
        if seen.failure is not None:
            self.writer.failure(connection, found.id, _attempt(seen), seen.failure)
        target = found.state if late else seen.state
        reason = f"late: {seen.state} {seen.reason}".rstrip() if late else seen.reason
        self.writer.note(connection, found.id, Entry(SEEN, found.state, target, claims, seen.worker, reason))

    def _stored(self, connection: sa.Connection, seen: Sighting) -> sa.Row[Any] | None:
        rows = self.writer.lock(connection, self.t.task.c.task_id == seen.task_id)
        return next((r for r in rows if r.task_id == seen.task_id), None)

    def _first_seen(self, seen: Sighting) -> dict[str, Any]:
        nothing = Envelope(b"", "", "", {}, {}, "", seen.queue)
        values = {
            "task_id": seen.task_id, "task": seen.task, "key_digest": keys.digest(seen.task, seen.task_id),
            "idempotency_key": seen.task_id, "queue": seen.queue, "priority": seen.priority, "broker": seen.broker,
            "root_id": seen.root_id, "parent_id": seen.parent_id, "envelope_no": 1, "envelope": nothing.meta(),
            "body": b"", "max_losses": 1, "on_loss": "dead", "owes": 0, "retries": seen.retries,
            "submitted_at": states.After(), "submitted_by": seen.submitted_by, "observed": 1,
            "claims": 0 if seen.state == states.QUEUED else 1,
        }  # fmt: skip
        return values | _columns(seen)


def _attempt(seen: Any) -> int:
    """Number the attempt that a sighting or row tells of: who waits for its first retry has been tried once."""
    return int(seen.retries) + (0 if seen.state == states.WAITING else 1)


def _columns(seen: Sighting) -> dict[str, Any]:
    """Columns of a row in the state that was seen, due at no time."""
    if seen.state == states.QUEUED:
        return states.into_queued() | {"publish_at": None}
    if seen.state == states.WAITING:
        return states.into_waiting(states.RETRY, seen.reason or "to be tried again", states.After()) | {"wake_at": None}
    if seen.state == states.RUNNING:
        left = states.into_queued() | {"publish_at": None, "state": states.RUNNING, "started_at": states.After()}
        return left | {"lease_owner": seen.worker or "an unknown worker", "lease_pid": seen.pid}
    kind = seen.failure.kind if seen.failure is not None else "unclassified"
    return states.into_terminal(seen.state, owed=None, failure_kind=kind if seen.state == states.DEAD else None)
