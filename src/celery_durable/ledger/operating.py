"""Verbs of an operator, and of Celery in an operator's place: cancel, revoke, ring."""

from __future__ import annotations

from uuid import uuid4

import sqlalchemy as sa

from celery_durable import failures, states
from celery_durable.errors import BadRequest
from celery_durable.ledger.replaying import Replaying


class Operating(Replaying):
    """Moves that a person or a program asks for."""

    def cancel_row(self, row_id: int, reason: str, *, actor: str) -> str:
        """Cancel a live row; a running one is flagged and ends cancelled at its next move.

        Cancelling what is over, or flagged already, changes nothing. Returns the state that stands.

        Raises:
            BadRequest: the task is only observed: Celery runs it, whatever its row says.
        """

        def work(connection: sa.Connection) -> tuple[str, int]:
            row = self._locked(connection, row_id)
            if row.state in states.TERMINAL or row.cancel_requested_at is not None:
                return row.state, 0
            if row.observed:
                raise BadRequest(f"{row.task_id} is only observed: use 'celery control revoke' to stop it.")
            move = states.cancel(row, uuid4().hex, reason)
            self.writer.write(connection, row, move, actor=actor)
            return move.to, int(row.aliases)

        state, aliases = self.db.run(work)
        if aliases and state in states.TERMINAL:
            self.wake_aliases(row_id)
        return state

    def revoke(self, task_id: str, token: str, *, expired: bool, reason: str, actor: str) -> str | None:
        """Carry out what Celery decided about a delivery: a stock revoke, a terminate, an expiry (PROTOCOL 14).

        The outcome stays owed, so that whoever waits for it is told. None when there is no such row.
        """
        c = self.t.task.c

        def work(connection: sa.Connection) -> str | None:
            rows = self.writer.lock(connection, c.task_id == task_id)
            if not rows or rows[0].state in states.TERMINAL:
                return rows[0].state if rows else None
            row = rows[0]
            if row.state == states.RUNNING and row.claim_token == token:
                failure = failures.loss(
                    "worker_lost", "celery.exceptions.Terminated", reason, worker=row.lease_owner or "",
                    pid=row.lease_pid, claim=row.claims,
                )  # fmt: skip
                move = states.terminate(row, failure, uuid4().hex, reason)
            elif expired and row.state != states.RUNNING:
                gone = failures.loss(
                    "expired",
                    "celery.exceptions.TaskRevokedError",
                    reason,
                    worker="",
                    pid=None,
                    claim=row.claims,
                )
                move = states.expire(row, uuid4().hex, gone)
            elif expired or row.cancel_requested_at is not None:
                return str(row.state)
            else:
                move = states.cancel(row, uuid4().hex, reason)
            self.writer.write(connection, row, move, actor=actor)
            return move.to

        return self.db.run(work)

    def due_now(self, task_id: str) -> None:
        """Ring a queued row at the next turn: its message is known to be gone."""
        c = self.t.task.c
        update = (
            sa.update(self.t.task)
            .where(c.task_id == task_id, self.in_state(states.QUEUED))
            .values(publish_at=self.dialect.clock_sql, rings=0, deferrals=0)
        )
        self.db.run(lambda connection: connection.execute(update), autocommit=True)
