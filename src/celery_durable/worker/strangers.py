"""Rows whose task no worker knew: released by a worker that does (rolling deployments)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kombu.serialization import loads, prepare_accept_content

from celery_durable import failures, submission
from celery_durable.errors import LedgerError
from celery_durable.task import DurableTask

if TYPE_CHECKING:
    from celery_durable.ledger import Stranger
    from celery_durable.records import Submission
    from celery_durable.wiring import Plugin

logger = logging.getLogger(__name__)

BATCH = 100


class Strangers:
    """Looks after them in one worker's sweep."""

    def __init__(self, side: Plugin, actor: str) -> None:
        """Bind to a worker."""
        self._side, self._ledger, self._actor = side, side.ledger, actor

    def arrive(self) -> None:
        """Tell, once, that a worker is here which knows these tasks."""
        self._ledger.strangers_return(frozenset(self._side.app.tasks))

    def sweep(self) -> None:
        """Release what is due and known here; the others look again later.

        Raises:
            LedgerError: the ledger did not answer.
        """
        while True:
            due = self._ledger.strangers(BATCH)
            known = [s for s in due if s.broker == self._side.broker and s.task in self._side.app.tasks]
            for stranger in known:
                self._release(stranger)
            self._ledger.put_off([s for s in due if s not in known])
            if len(known) < BATCH:
                return

    def _release(self, stranger: Stranger) -> None:
        task = self._side.app.tasks[stranger.task]
        if not isinstance(task, DurableTask):
            self._ledger.welcome(stranger.row_id, None, actor=self._actor)
            return
        try:
            sub = self._read(stranger, task)
        except LedgerError:
            raise
        except Exception as exc:  # noqa: BLE001 - its arguments do not fit the task, or cannot be read here
            failure = failures.describe(exc, "undecodable", worker=self._actor)
            self._ledger.turn_away(stranger.row_id, failure, actor=self._actor)
            logger.warning("Task %s[%s] is known now, but cannot be run: %s", stranger.task, stranger.task_id, exc)
            return
        self._ledger.welcome(stranger.row_id, sub, actor=self._actor)

    def _read(self, stranger: Stranger, task: DurableTask) -> Submission:
        envelope = stranger.envelope
        accepted = prepare_accept_content(self._side.app.conf.accept_content)
        body = loads(envelope.body, envelope.content_type, envelope.content_encoding, accept=accepted)
        return submission.compose(task, envelope, body)
