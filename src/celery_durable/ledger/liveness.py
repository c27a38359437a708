"""The lock by which a worker shows that it lives: the system releases it when the process dies, whatever kills it.

In PostgreSQL and MySQL/MariaDB it belongs to a session of its own, with SQLite to an open file beside the database. A
row of the registry says which lock its worker holds. Where that is free, its worker is gone, or has lost the session: a
sign of death, not a proof.
"""

from __future__ import annotations

import os
import random
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

if TYPE_CHECKING:
    from celery_durable.ledger.database import Database

try:
    import fcntl as _fcntl
except ImportError:  # on Windows
    _fcntl = None  # type: ignore[assignment]

fcntl: Any = _fcntl
#: Numbers of locks are drawn from so many.
NUMBERS = 2**31


class Held(NamedTuple):
    """A lock as the registry tells of it: its number, and which server keeps it since which start."""

    number: int
    server: str


class Peer(NamedTuple):
    """Another worker that says it holds a lock.

    ``free`` tells that nobody holds it now, ``here`` that the worker spoke of this server as it was started last.
    """

    id: str
    number: int
    free: bool
    here: bool


class LivenessLock(ABC):
    """One worker's lock. Used by one thread at a time; nothing connects before ``acquire``."""

    def __init__(self, database: Database, worker: sa.Table) -> None:
        """Bind to a ledger's database and its table of workers."""
        self._db, self._table = database, worker
        self.held: Held | None = None
        #: Why it cannot be had; "" where it can.
        self.refused = ""

    @abstractmethod
    def acquire(self) -> Held | None:
        """Take a lock that nobody has had; None where there is none to be had, and ``refused`` says why.

        It is never the one that was held before: whoever saw that one free judges another worker.
        """

    @abstractmethod
    def lost(self) -> bool:
        """Say whether it is lost, as far as can be told without asking; costs no statement as a rule."""

    @abstractmethod
    def stands(self) -> bool:
        """Ask whether it is held still."""

    @abstractmethod
    def peers(self, me: str) -> list[Peer]:
        """Look at the locks of the other workers; ``me`` is one's own id.

        Raises:
            LedgerError: the ledger did not answer.
            sqlalchemy.exc.SQLAlchemyError: the session is lost, and the lock with it.
        """

    @abstractmethod
    def release(self) -> None:
        """Let go of it; does not raise."""

    @abstractmethod
    def leave_to_parent(self) -> None:
        """Close, in a forked child, what it has inherited: the lock is its parent's, and ends with that."""

    def forget(self, number: int) -> None:  # noqa: B027 - a session leaves nothing behind
        """Remove what the lock of a worker that is gone has left."""


def _number() -> int:
    return random.SystemRandom().randrange(NUMBERS)


class FileLock(LivenessLock):
    """A lock on a file beside the SQLite database: ``ledger.db-worker-0123abcd``."""

    _file: int | None = None

    def acquire(self) -> Held | None:
        """Make a file and lock it."""
        self.release()
        place = str(self._db.url.database or "")
        if fcntl is None or not place or place.startswith((":memory:", "file:")):
            self.refused = f"{self._db} is no file beside which another could be locked"
            return None
        held = Held(_number(), "")
        try:
            self._file = os.open(self._path(held.number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            self.refused = f"no file can be locked beside {self._db}: {error}"
            return None
        self.held, self.refused = held, ""
        return held

    def _path(self, number: int) -> Path:
        return Path(f"{self._db.url.database}-worker-{number:08x}")

    def lost(self) -> bool:
        """Nobody can take it away."""
        return self.held is None

    def stands(self) -> bool:
        """Nobody can take it away."""
        return self.held is not None

    def peers(self, me: str) -> list[Peer]:
        """Read who says so, and try the files."""
        c = self._table.c
        query = sa.select(c.id, c.lock_number).where(c.lock_number.is_not(None), c.id != me)
        rows = self._db.run(lambda connection: connection.execute(query).all(), read_only=True)
        return [Peer(row.id, row.lock_number, self._free(row.lock_number), here=True) for row in rows]

    def _free(self, number: int) -> bool:
        """Whether a file is there that nobody has locked; one that is gone tells nothing."""
        try:
            file = os.open(self._path(number), os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look are not in each other's way
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(file)

    def release(self) -> None:
        """Remove the file and close it."""
        if self.held is not None:
            self.forget(self.held.number)
        if self._file is not None:
            os.close(self._file)
        self.held = self._file = None

    def leave_to_parent(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def forget(self, number: int) -> None:
        """Remove a file."""
        with suppress(OSError):
            self._path(number).unlink()
