"""Verbs of an operator, and of Celery in an operator's place: cancel, revoke, ring."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from celery_durable import failures, states
from celery_durable.errors import BadRequest
from celery_durable.ledger.replaying import Replaying

#: The pool whose tasks run in processes that can be ended one by one.
TERMINABLE = "prefork"


class Operating(Replaying):
    """Moves that a person or a program asks for."""

    def cancel_row(self, row_id: int, reason: str, *, actor: str, terminate: bool = False) -> str:
        """Cancel a live row; a running one is flagged and ends cancelled at its next check or move.

        ``terminate`` asks its worker to end its process; so it may for a row that was flagged before. Otherwise,
        cancelling what is over, or flagged already, changes nothing. Returns the state that stands.

        Raises:
            BadRequest: the task is only observed: Celery runs it, whatever its row says; or it runs in a pool that
                cannot end one task, and ``terminate`` asks for that.
        """

        def work(connection: sa.Connection) -> tuple[str, int]:
            row = self._locked(connection, row_id)
            flagged = row.cancel_requested_at is not None and (row.cancel_terminate or not terminate)
            if row.state in states.TERMINAL or flagged:
                return row.state, 0
            if row.observed:
                raise BadRequest(f"{row.task_id} is only observed: use 'celery control revoke' to stop it.")
            if terminate and row.state == states.RUNNING:
                self._terminable(connection, row)
            move = states.cancel(row, uuid4().hex, reason, terminate=terminate)
            self.writer.write(connection, row, move, actor=actor)
            return move.to, int(row.aliases)

        state, aliases = self.db.run(work)
        if aliases and state in states.TERMINAL:
            self.wake_aliases(row_id)
        return state

    def _terminable(self, connection: sa.Connection, row: sa.Row[Any]) -> None:
        w = self.t.worker.c
        owner = connection.execute(sa.select(w.hostname, w.pool).where(w.id == row.lease_owner)).first()
        if owner is not None and owner.pool not in {"", TERMINABLE}:
            raise BadRequest(
                f"{row.task_id} runs on {owner.hostname}, in a pool of {owner.pool}: only a {TERMINABLE} pool can end "
                "one running task. Cancel it without terminate: it ends at its next check() or move."
            )

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

    def due_now(self, *task_ids: str) -> None:
        """Ring queued rows at the next turn: their messages are known to be gone, or to lie where nobody takes them."""
        c = self.t.task.c
        update = (
            sa.update(self.t.task)
            .where(c.task_id.in_(task_ids), self.in_state(states.QUEUED))
            .values(publish_at=self.dialect.clock_sql, rings=0, deferrals=0)
        )
        self.db.run(lambda connection: connection.execute(update), autocommit=True)
