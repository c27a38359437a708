"""The ledger as user code sees it: ``celery_durable.ledger(app)``."""

from __future__ import annotations

import getpass
import os
import socket
from typing import TYPE_CHECKING, Any

from celery_durable.wiring import plugin

if TYPE_CHECKING:
    from celery import Celery

    from celery_durable.ledger import Ledger
    from celery_durable.records import Record


class LedgerView:
    """Questions and moves from anywhere: a web process, a shell, a test.

    Every method may raise ``LedgerUnavailable``. A REF is a task id, an idempotency key, or
    ``task_name/key`` where several tasks use the same key.
    """

    def __init__(self, app: Celery) -> None:
        """Bind to an app; connects at first use."""
        self._side = plugin(app)

    @property
    def _ledger(self) -> Ledger:
        return self._side.ledger

    def get(self, ref: str) -> Record:
        """Return the record of a REF.

        Raises:
            NoSuchTask: nothing fits, or several tasks use that key.
        """
        return self._ledger.get(ref)

    def find(
        self, *, state: str | None = None, task: str | None = None, queue: str | None = None, limit: int = 50
    ) -> list[Record]:
        """List records, newest first, up to ``limit``."""
        return self._ledger.find(state=state, task=task, queue=queue, limit=limit)

    def cancel(self, ref: str, reason: str) -> str:
        """Cancel a task and return the state that stands: a running one ends cancelled at its next move.

        Cancelling what is over changes nothing. After a crash it is either cancelled or untouched.
        """
        return self._ledger.cancel_row(self.get(ref).id, reason, actor=actor())

    def replay(self, ref: str, reason: str = "") -> bool:
        """Queue a dead or cancelled task again; False when it is in another state.

        Its retries and losses start from 0; its key, history and fence go on.
        """
        return self._ledger.replay_row(self.get(ref).id, reason, actor=actor())

    def stats(self) -> dict[str, Any]:
        """Count tasks by state (``states``), and queued ones by queue with the oldest's age in seconds (``queues``)."""
        return self._ledger.stats()


def ledger(app: Celery) -> LedgerView:
    """Return the ledger of an app."""
    return LedgerView(app)


def actor() -> str:
    """Name who acts, for the history: user, host, process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a process without a passwd entry
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}:{os.getpid()}"
