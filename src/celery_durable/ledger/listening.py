"""Waiting for a result: PostgreSQL tells when one is there, elsewhere time is slept away between two looks."""

from __future__ import annotations

import inspect
import os
import threading
import time
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc

from celery_durable.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from celery_durable.ledger.database import Database

#: How many connections of one process may listen at a time; whoever comes later looks more often instead.
MAX_EARS = 8
#: Seconds of waiting from which on it is worth to listen.
WORTHWHILE = 0.02

_inherited: list[Any] = []


def lock_of(channel: str) -> int:
    """Return the number of the advisory lock that is shared by whoever waits for a hint: nobody else need be told."""
    return zlib.crc32(channel.encode())


class Ears:
    """Connections that listen for hints; a fork leaves its parent's untouched."""

    def __init__(self, database: Database, channel: str) -> None:
        """Bind to a database; an empty ``channel`` means that it tells nothing."""
        self._db, self._channel = database, channel
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        self._pid, self._idle, self._lent = os.getpid(), [], 0

    @contextmanager
    def listen(self) -> Iterator[Callable[[float, Collection[str]], bool]]:
        """Lend a way to wait so many seconds for one of some ids; it says whether one was told of.

        Listening begins with the first wait that is worth it, which returns at once. Not to be told is no promise
        that nothing happened: look all the same.
        """
        ear, broken, asked = None, False, False

        def hear(seconds: float, ids: Collection[str]) -> bool:
            nonlocal ear, broken, asked
            if not asked and seconds >= WORTHWHILE:
                asked, ear = True, self._borrow()
                if ear is not None:
                    return False  # look once more: what came before it listened, nobody has told
            if ear is None or broken:
                time.sleep(seconds)
                return False
            try:
                return any(note.payload in ids for note in _until(ear, seconds, ids))
            except Exception:  # noqa: BLE001 - the hint is gone, not the result
                broken = True
                return False

        try:
            yield hear
        finally:
            if ear is not None:
                self._give_back(ear, broken=broken)

    def _borrow(self) -> Any:
        """Return a connection that listens, and is known to; None when there is none to be had."""
        ear = self._taken() if self._channel else None
        if ear is None:
            return None
        try:
            ear.driver_connection.execute(f"SELECT pg_advisory_lock_shared({lock_of(self._channel)})")
        except Exception:  # noqa: BLE001 - look more often instead
            self._give_back(ear, broken=True)
            return None
        return ear

    def _taken(self) -> Any:
        with self._lock:
            if self._pid != os.getpid():
                _inherited.extend(self._idle)  # closing them would speak on the parent's sockets
                self._reset()
            if self._idle:
                self._lent += 1
                return self._idle.pop()
            if self._lent >= MAX_EARS:
                return None
            self._lent += 1
        ear = self._made()
        if ear is None:
            with self._lock:
                self._lent -= 1
        return ear

    def _made(self) -> Any:
        try:
            lent = self._db.engine.raw_connection()
        except (exc.SQLAlchemyError, LedgerError):
            return None
        driver: Any = lent.driver_connection
        try:
            if not _can_wait(driver):
                lent.close()
                return None
            driver.autocommit = True
            driver.execute(f'LISTEN "{self._channel}"')
        except Exception:  # noqa: BLE001 - whatever the driver raises: look more often instead
            lent.invalidate()
            return None
        return lent

    def _give_back(self, ear: Any, *, broken: bool) -> None:
        if not broken and self._pid == os.getpid():
            try:
                ear.driver_connection.execute(f"SELECT pg_advisory_unlock_shared({lock_of(self._channel)})")
            except Exception:  # noqa: BLE001 - the lock ends with the connection
                broken = True
        with self._lock:
            if self._pid != os.getpid():
                _inherited.append(ear)
                return
            self._lent -= 1
            if not broken:
                self._idle.append(ear)
                return
        ear.invalidate()


def _can_wait(driver: Any) -> bool:
    """Whether hints of this driver can be waited for, and so long: psycopg 3.2 or later."""
    notifies = getattr(driver, "notifies", None)
    return callable(notifies) and "timeout" in inspect.signature(notifies).parameters


def _until(ear: Any, seconds: float, ids: Collection[str]) -> Iterator[Any]:
    """Yield hints until one concerns us or the time is over."""
    notes = ear.driver_connection.notifies(timeout=seconds)
    try:
        for note in notes:
            yield note
            if note.payload in ids:
                return
    finally:
        notes.close()
