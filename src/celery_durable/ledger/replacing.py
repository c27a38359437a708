"""Rows that a canvas stands in for (``self.replace`` with a chain, chord or group), until its last part takes over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger.placeholders import Placeholders
from celery_durable.records import Envelope

if TYPE_CHECKING:
    from celery_durable.records import Submission


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a submission.

    ``outcome`` is ``new``, ``own`` (this very submission was there already), ``existing`` (the key is
    taken), ``replayed`` (a dead or cancelled row came back), ``alias`` (a row of its own that waits
    for the holder of the key) or ``replacing`` (the last part of a canvas became the row that it stood in for).
    ``publish`` says whether a message has to be sent now.
    """

    outcome: str
    row_id: int
    task_id: str
    state: str
    envelope_no: int = 1
    publish: bool = False
    result: bytes | None = None
    result_type: str | None = None


class Replacing(Placeholders):
    """The last part of a canvas comes under the id of the row that it replaces: once, whatever is sent twice."""

    def replaced_by(self, connection: sa.Connection, row: sa.Row[Any], sub: Submission, actor: str) -> Submitted | None:
        """Let a submission be the new message of the locked row that has its id; None when it replaces nothing.

        The same replacement that comes again changes nothing, nor does one of a row that somebody has cancelled
        meanwhile. A row that ended because a part of the canvas failed is brought back: that part was replayed.
        """
        reason = states.replacement(sub.task, sub.nesting)
        events = self._replacements(connection, row)
        own = Submitted(
            "own", row.id, row.task_id, row.state, row.envelope_no, result=row.result, result_type=row.result_type
        )
        if reason in events:
            return own
        if not events or events[0] != states.STAND_IN:
            return None
        if _same_call(row, sub):  # by a client that never learned that it was recorded
            return own
        if row.state in states.TERMINAL and self._ended_by(connection, row) != "follow":
            return own
        if row.state in {states.DEAD, states.CANCELLED}:
            move = states.replay(reason, sub.wake)
        elif row.wait_kind == states.REPLACED:
            move = states.go_on_as(reason, sub.wake)
        else:
            return None
        publish = move.to == states.QUEUED
        changes = move.changes | {
            "deadline_at": sub.deadline_at, "owes": int(sub.owes), "max_losses": sub.max_losses,
            "on_loss": sub.on_loss, "broker": sub.broker, "retries": 0,
        }  # fmt: skip
        if publish:
            changes |= {"publish_at": states.After(self.republish_after), "rings": 1}
            changes |= {"publish_count": row.publish_count + 1, "published_at": states.After()}
        self.writer.write(connection, row, replace(move, envelope=sub.envelope, changes=changes), actor=actor)
        return Submitted("replacing", row.id, row.task_id, move.to, row.envelope_no + 1, publish=publish)

    def _ended_by(self, connection: sa.Connection, row: sa.Row[Any]) -> str | None:
        e = self.t.event.c
        query = sa.select(e.verb).where(e.task_row == row.id, e.to_state == row.state, e.from_state != row.state)
        verb: str | None = connection.execute(query.order_by(e.id.desc()).limit(1)).scalar()
        return verb

    def _replacements(self, connection: sa.Connection, row: sa.Row[Any]) -> list[str]:
        """By what a row was replaced so far, the latest first."""
        e = self.t.event.c
        query = sa.select(e.reason).where(e.task_row == row.id, e.verb.in_(("replace", "replay")))
        told = [event.reason for event in connection.execute(query.order_by(e.id.desc()))]
        return [reason for reason in told if reason == states.STAND_IN or reason.startswith(states.REPLACEMENT)]


def _same_call(row: sa.Row[Any], sub: Submission) -> bool:
    """Say whether a submission is the call that made the row, come again, and not the last part of its canvas."""
    if (row.task, row.parent_id) != (sub.task, sub.parent_id):
        return False
    held = Envelope.load(row.envelope, row.body)
    nesting = int(held.headers.get("replaced_task_nesting") or 0)
    return nesting == sub.nesting and held.body == sub.envelope.body
