"""How a running body learns that it shall stop: by its worker's board, or, where it cannot see one, from the ledger."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from celery_durable.board import NO_LINE
from celery_durable.control import Cancelled, Draining
from celery_durable.errors import LeaseLost, LedgerError

if TYPE_CHECKING:
    from celery_durable.delivery import Delivery

logger = logging.getLogger(__name__)

#: Seconds between two looks into the ledger by a body that sees no board.
LOOK_EVERY = 1.0


class Watch:
    """One attempt's eye on what is asked of it."""

    def __init__(self, delivery: Delivery, lease: float, since: float) -> None:
        """``since`` is the monotonic time before the claim was asked for, ``lease`` is in seconds."""
        self._delivery, self._lease = delivery, lease
        self._until = since + lease
        keeper = delivery.side.keeper
        self._green = keeper is not None and keeper.green
        self._board = keeper.board if keeper is not None else None
        self._look_at = since + LOOK_EVERY
        self._drains = False

    @property
    def draining(self) -> bool:
        """Whether the worker shuts down."""
        if self._board is None:
            self._look()
        elif self._board.draining:
            self._drains = True
        return self._drains

    def refusal(self) -> LeaseLost | None:
        """Return what says that the lease has passed without being renewed, as far as this process knows."""
        note, now = self._delivery.note, time.monotonic()
        if now <= self._until:
            return None
        told = self._board.read(note.line, note.token) if self._board is not None else None
        if told is not None:
            self._until = max(self._until, told.until)
        elif self._board is None or note.line == NO_LINE:
            self._look()
        if now <= self._until:
            return None
        return LeaseLost(
            f"{self._delivery.uuid}: the lease of {self._lease:g} s passed {now - self._until:.3g} s ago without being "
            "renewed: the worker was stopped or starved, or the ledger was away. Another one may run the task by now."
        )

    def stop(self) -> Cancelled | Draining | LeaseLost | None:
        """Return what the body has to be left with; None to go on. A cancellation comes before a shutdown."""
        if self._green:
            time.sleep(0)  # or a body that only computes would never let the keeper hear of anything
        refusal = self.refusal()
        if refusal is not None:
            return refusal
        note = self._delivery.note
        told = self._board.read(note.line, note.token) if self._board is not None else None
        if told is not None:
            if told.cancelled:
                return self._cancelled()
        elif self._board is None or note.line == NO_LINE:
            stop = self._look()
            if stop is not None:
                return stop
        return Draining(f"the worker {note.worker} shuts down") if self.draining else None

    def _cancelled(self) -> Cancelled:
        note = self._delivery.note
        try:
            reason = self._delivery.side.ledger.asked(self._delivery.uuid, note.token).reason
        except LedgerError:
            reason = ""
        return Cancelled(reason or "the task was cancelled")

    def _look(self) -> Cancelled | LeaseLost | None:
        """Ask the ledger, at most once a second."""
        now = time.monotonic()
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_EVERY
        note = self._delivery.note
        try:
            asked = self._delivery.side.ledger.asked(self._delivery.uuid, note.token)
        except LedgerError as exc:
            logger.debug("Task %s: %s", self._delivery.uuid, exc)
            return None
        if not asked.live:
            return LeaseLost(f"{self._delivery.uuid}: the claim is over; another worker may run the task by now.")
        self._until = now + self._lease
        self._drains = self._drains or asked.draining
        return Cancelled(asked.reason or "the task was cancelled") if asked.cancelled else None
