"""The workers that watch each other: whoever is gone is buried by the next one that looks, and its tasks run again."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

from celery_durable.errors import LedgerError
from celery_durable.worker.evidence import Evidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.ledger import Held, Peer
    from celery_durable.wiring import Plugin

logger = logging.getLogger(__name__)

#: Seconds between two looks, while no more than so many workers share them.
LOOK_EVERY, LOOKERS = 0.4, 4
#: Seconds until a lock is asked for again that could not be had; and how long nobody is judged after one was lost.
AGAIN, PATIENCE = 0.5, 10.0
#: Rows of one worker that are moved in one transaction.
BATCH = 100


class Peers:
    """One worker's lock, and its eye on the others'. For the keeper's thread, and for the main one before and after."""

    def __init__(self, side: Plugin, worker_id: str, report: Callable[[], None]) -> None:
        """``report`` tells the registry at once what this worker holds."""
        self._ledger, self._me, self._report = side.ledger, worker_id, report
        self._patience = min(PATIENCE, side.settings.lease / 3)
        self.lock = side.ledger.liveness_lock()
        self._evidence = Evidence()
        self._next = float("-inf")
        self._told = ""

    @property
    def held(self) -> Held | None:
        """The lock that this worker holds."""
        return self.lock.held

    def hold(self) -> None:
        """Take a lock, if there is one to be had."""
        if self.lock.acquire() is None and self.lock.refused != self._told:
            self._told = self.lock.refused
            logger.warning(
                "celery-durable: if this worker is killed, its tasks run again only when their leases have passed: %s",
                self._told,
            )
        self._next = time.monotonic() + (LOOK_EVERY if self.held is not None else AGAIN) * random.random()  # noqa: S311

    def until_next(self) -> float:
        """Return the seconds until ``turn`` has something to do."""
        return max(0.0, self._next - time.monotonic())

    def turn(self) -> bool:
        """Mend what is broken of our own, and look at the others if it is time; say whether one was buried."""
        if self.lock.held is not None and self.lock.lost():
            self._mend()
        if time.monotonic() < self._next:
            return False
        if self.held is None:
            self._mend()
            return False
        try:
            return self._look()
        except LedgerError as error:
            logger.debug("celery-durable: %s", error)
            self._next = time.monotonic() + AGAIN
        return False

    def renew(self) -> None:
        """See, from time to time, that the lock is there still, whatever its session says."""
        if self.held is not None and not self.lock.stands():
            self.lock.release()

    def _mend(self) -> None:
        """Take another lock, and say so before somebody acts on the loss of the old one."""
        self.lock.release()
        self._evidence.distrust(time.monotonic() + self._patience)
        self.hold()
        if self.held is None:
            self._next = time.monotonic() + AGAIN
            return
        try:
            self._report()
        except LedgerError as error:
            logger.debug("celery-durable: %s", error)
            self.lock.release()  # nobody knows of it

    def _look(self) -> bool:
        self._next = time.monotonic() + LOOK_EVERY
        try:
            peers = self.lock.peers(self._me)
        except LedgerError:
            raise
        except Exception as error:  # noqa: BLE001 - of the driver's: the session is lost, and mended at the next turn
            logger.debug("celery-durable: the session of the lock is lost: %s", error)
            self._mend()
            return False
        now = time.monotonic()
        gone = self._evidence.gone(peers, now)
        for peer in gone:
            self._bury(peer)
        # However many watch, they look ten times a second together.
        pause = LOOK_EVERY * max(1.0, len(peers) / LOOKERS) * random.uniform(0.8, 1.0)  # noqa: S311 - spreading
        ripe = self._evidence.next_look()
        self._next = now + pause if ripe is None or ripe <= now else min(now + pause, ripe)
        return bool(gone)

    def _bury(self, peer: Peer) -> None:
        while True:
            burial = self._ledger.bury(peer.id, peer.number, BATCH, actor=self._me)
            for task_id in burial.task_ids:
                logger.warning("Task %s: its worker %s is gone", task_id, peer.id)
            if burial.over:
                self.lock.forget(peer.number)
            if burial.over or not burial.task_ids:  # somebody holds a row of it: the next look finds that free
                return

    def end(self) -> None:
        """Let go of the lock, after the registry was told."""
        self.lock.release()
