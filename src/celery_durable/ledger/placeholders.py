"""Rows that hold an id without holding work: what was merely observed, and messages that nobody could read.

They give way to a submission or message that comes under their id; their history stays.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from celery_durable import keys, states
from celery_durable.ledger.base import Room
from celery_durable.ledger.moves import Entry

UNDECODABLE = "undecodable"


def gives_way(row: sa.Row[Any]) -> bool:
    """Whether a row holds no work of its own."""
    unread = row.state == states.DEAD and row.failure_kind == UNDECODABLE and row.claims == 0
    return bool(row.observed) or bool(unread)


class Placeholders(Room):
    """How they give way."""

    def make_way(self, connection: sa.Connection, row: sa.Row[Any], values: dict[str, Any], actor: str) -> int | None:
        """Let work take the place of a locked placeholder; None when its id is free now, and nothing was written.

        An observed row becomes the row of the work (``values``). A message that could not be read keeps a row, under
        an id of its own.
        """
        c = self.t.task.c
        update = sa.update(self.t.task).where(c.id == row.id)
        held = sa.select(c.id).where(c.key_digest == values["key_digest"], c.id != row.id)
        if not row.observed or connection.execute(held).first() is not None:
            aside = str(uuid4())
            changes: dict[str, Any] = {"task_id": aside, "key_digest": keys.digest(row.task, aside)}
            if row.state in states.LIVE:
                changes |= self.writer.values(states.into_terminal(states.CANCELLED, owed=None))
                changes["cancel_reason"] = "it goes on as a durable task"
                self._seen(connection, row, states.CANCELLED, actor)
            connection.execute(update.values(changes))
            return None
        connection.execute(update.values(self.writer.values(values) | {"observed": 0, "claims": 0, "started_at": None}))
        self._seen(connection, row, str(values["state"]), actor)
        return int(row.id)

    def _seen(self, connection: sa.Connection, row: sa.Row[Any], target: str, actor: str) -> None:
        entry = Entry("observe", row.state, target, row.claims, actor, "it goes on as a durable task")
        self.writer.note(connection, row.id, entry)
