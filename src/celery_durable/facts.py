"""What is looked up about a task before its standing can be explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from celery_durable import states

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.records import Event, Failure, Pause, Record, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was looked up about a record. ``now`` is on the database's clock, in microseconds.

    ``ahead`` counts the tasks queued before it, ``depth`` the messages its queue holds in the broker;
    each is None when nobody counted. ``events`` and ``failures`` are oldest first.
    """

    now: int
    workers: Sequence[Worker] = ()
    ahead: int | None = None
    depth: int | None = None
    holder: Record | None = None
    events: Sequence[Event] = ()
    failures: Sequence[Failure] = ()
    max_retries: int | None = None
    pauses: Sequence[Pause] = ()

    @property
    def live(self) -> list[Worker]:
        """The workers that reported themselves lately."""
        return [w for w in self.workers if w.live]

    def last(self, *verbs: str) -> Event | None:
        """Return the last event with one of these verbs."""
        return next((e for e in reversed(self.events) if e.verb in verbs), None)


class Source(Protocol):
    """What can be asked for facts: a ledger."""

    def workers(self) -> list[Worker]:
        """List the registered workers."""

    def ahead_of(self, record: Record) -> int:
        """Count the rows queued before this one."""

    def holder_of(self, record: Record) -> Record | None:
        """Return the row that an alias follows."""

    def pauses(self) -> list[Pause]:
        """List what is held back."""

    def events(self, row_id: int) -> list[Event]:
        """Return the history."""

    def failures(self, row_id: int) -> list[Failure]:
        """Return the failed attempts."""


def look_up(ledger: Source, record: Record, *, max_retries: int | None = None) -> Facts:
    """Collect what ``explain`` needs to know about a record; asks only what bears on its state."""
    return Facts(
        now=record.now,
        workers=ledger.workers() if record.state in states.LIVE else (),
        ahead=ledger.ahead_of(record) if record.state == states.QUEUED else None,
        holder=ledger.holder_of(record),
        events=ledger.events(record.id),
        failures=ledger.failures(record.id),
        max_retries=max_retries,
        pauses=ledger.pauses() if record.state == states.QUEUED or record.wait_kind == states.PAUSED else (),
    )
