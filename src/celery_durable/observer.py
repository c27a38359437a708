"""Carries sightings of stock tasks to the ledger, without their noticing: a bounded queue and a thread.

A thread starts in a process when that has its first sighting, so after any fork. A ledger that is slow or down costs
the record, nothing else: what does not fit into the queue is dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from celery_durable.errors import DurableError
from celery_durable.worker.forkgate import before_fork, gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.ledger import Ledger, Sighting

logger = logging.getLogger(__name__)

#: Sightings kept for the thread before more are dropped, and how many it writes at a time.
LIMIT, BATCH = 2_000, 100
#: Seconds: between two tries while the ledger is down, and for what is left when the process ends.
PAUSE, FAREWELL = 1.0, 2.0

_all: weakref.WeakSet[Observer] = weakref.WeakSet()


class Observer:
    """One per app and process."""

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        """``ledger`` opens it; called in the thread only."""
        self._open = ledger
        #: Sightings that were dropped.
        self.dropped = 0
        self._anew()
        _all.add(self)

    def _anew(self) -> None:
        """Begin without a thread: the one there was belongs to another process."""
        self._queue: SimpleQueue[Sighting] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._idle = threading.Event()
        self._idle.set()
        self.down = False

    def saw(self, sighting: Sighting) -> None:
        """Take a sighting; returns at once, whatever the ledger does."""
        if self._queue.qsize() >= LIMIT:
            self.dropped += 1
            return
        self._idle.clear()
        self._queue.put(sighting)
        if self._thread is None or not self._thread.is_alive():
            self._start()

    def flush(self, timeout: float = FAREWELL) -> bool:
        """Wait until everything seen so far is written; False when that took too long, or the ledger is down."""
        until = time.monotonic() + timeout
        while not self._idle.is_set() and not self.down and time.monotonic() < until:
            self._idle.wait(0.05)
        return self._idle.is_set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._live, name="celery-durable-observer", daemon=True)
                self._thread.start()

    def _live(self) -> None:
        queue = self._queue
        forks_close = False
        while True:
            batch = [queue.get()]
            try:
                while len(batch) < BATCH:
                    batch.append(queue.get_nowait())
            except Empty:
                pass
            while not self._written(batch):
                time.sleep(PAUSE)
            if not forks_close and not self.down:
                before_fork(self._open().db.dispose)
                forks_close = True
            if queue.empty():
                self._idle.set()

    def _written(self, batch: list[Sighting]) -> bool:
        """Write a batch; False while the ledger is down."""
        try:
            with gate():
                self._open().observe(batch)
        except DurableError as exc:
            if not self.down:
                logger.warning("celery-durable observes nothing for now: %s", exc)
            self.down = True
            return False
        except Exception as exc:  # noqa: BLE001 - one that the database refuses shall not keep the others
            if len(batch) > 1:
                return all(self._written([one]) for one in batch)
            self.dropped += 1
            logger.warning("A sighting of %s was dropped (%s: %s)", batch[0].task, type(exc).__name__, exc)
        if self.down:
            logger.warning("celery-durable observes again; %d sightings were dropped so far", self.dropped)
        self.down = False
        return True


def farewell() -> None:
    """Write what is left before the process ends, within a bound."""
    for observer in list(_all):
        observer.flush()


def _in_child() -> None:
    for observer in list(_all):
        observer._anew()  # noqa: SLF001 - its own module


atexit.register(farewell)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
