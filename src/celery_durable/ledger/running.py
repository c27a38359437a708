"""Verbs of what runs: what is asked of it, how far it says it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger.base import Room

if TYPE_CHECKING:
    from celery_durable.records import Claim


class Asked(NamedTuple):
    """What is asked of an attempt. ``live`` is false when the claim is over."""

    live: bool
    cancelled: bool
    terminate: bool
    reason: str
    draining: bool


class Running(Room):
    """Questions and notes of live attempts."""

    def asked(self, task_id: str, token: str) -> Asked:
        """Say whether a claim is live, whether its task is cancelled and why, and whether its worker shuts down."""
        c, w = self.t.task.c, self.t.worker.c
        query = (
            sa.select(c.state, c.claim_token, c.cancel_requested_at, c.cancel_terminate, c.cancel_reason, w.phase)
            .select_from(self.t.task.outerjoin(self.t.worker, w.id == c.lease_owner))
            .where(c.task_id == task_id)
        )
        row = self.db.run(lambda connection: connection.execute(query).first(), read_only=True)
        if row is None or row.state != states.RUNNING or row.claim_token != token:
            return Asked(live=False, cancelled=False, terminate=False, reason="", draining=False)
        return Asked(
            live=True,
            cancelled=row.cancel_requested_at is not None,
            terminate=bool(row.cancel_terminate),
            reason=row.cancel_reason or "",
            draining=row.phase in {"stopping", "stopped"},
        )

    def progress(self, claim: Claim, content: str) -> None:
        """Note how far an attempt is, as JSON: one statement. Nothing is written for a claim that is over."""
        c = self.t.task.c
        mine = (
            c.id == claim.row_id, self.in_state(states.RUNNING), c.claims == claim.claims, c.claim_token == claim.token
        )  # fmt: skip
        noted = sa.update(self.t.task).where(*mine).values(progress=content, progress_at=self.dialect.clock_sql)
        self.db.run(lambda connection: connection.execute(noted), autocommit=True)
