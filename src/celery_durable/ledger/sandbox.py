"""A ledger for tests: a SQLite file that can be wiped at once, with a clock that can be moved."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from sqlalchemy import event

from celery_durable import states
from celery_durable.ledger import Ledger, Ring
from celery_durable.ledger.database import Database
from celery_durable.records import Envelope

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from celery_durable.settings import Settings

#: The file in the folder.
FILE = "ledger.db"
#: Julian day of the epoch, and the seconds of a day.
_EPOCH, _DAY = 2440587.5, 86400.0


class HostSandbox(Protocol):
    """The framework's database is a file, from ``open`` to ``close``."""

    def empty(self) -> bytes:
        """Return what the file holds before anything is done: the project's tables and the ledger's."""

    def open(self, set_clock: Callable[[Any, object], None]) -> None:
        """Have the framework use the file; ``set_clock`` is called with each connection that it makes."""

    def close(self) -> None:
        """Have it use its own database again."""

    def dispose(self) -> None:
        """Close its connection: a process is to be forked, or the file written anew."""


class _Clocked(Database):
    """A SQLite database whose clock runs ahead by what stands in a file, for every process that has it open."""

    def __init__(self, url: str, ahead: Path, host: HostSandbox | None) -> None:
        self._ahead, self._host = ahead, host
        super().__init__(url)

    def dispose(self) -> None:
        super().dispose()
        if self._host is not None:
            self._host.dispose()

    @property
    def engine(self) -> sa.Engine:
        engine = super().engine
        if not event.contains(engine, "connect", self.set_clock):
            event.listen(engine, "connect", self.set_clock)
        return engine

    def set_clock(self, connection: sqlite3.Connection, _record: object) -> None:
        # The dialect's clock is julianday('now'): a function of ours takes its place.
        connection.create_function("julianday", 1, lambda _now: _EPOCH + (time.time() + self.ahead) / _DAY)

    @property
    def ahead(self) -> float:
        """Seconds by which the clock runs ahead."""
        return float(self._ahead.read_text()) if self._ahead.exists() else 0.0


class SandboxLedger(Ledger):
    """A ledger in a folder of its own; what was asked of an app's ledger is asked of this one."""

    def __init__(self, settings: Settings, folder: Path, host: HostSandbox | None = None) -> None:
        """Make an empty one, in place of what the folder held; ``host`` is a framework that uses the file as well."""
        self._path, self._ahead = folder / FILE, folder / "clock"
        self._nothing = _empty(settings.table_prefix) if host is None else host.empty()
        self._fill()
        database = _Clocked(f"sqlite:///{self._path}", self._ahead, host)
        if host is not None:
            host.open(database.set_clock)
        super().__init__(database, prefix=settings.table_prefix, republish_after=settings.republish_after)

    @property
    def url(self) -> str:
        """Where it is, for SQLAlchemy."""
        return str(self.db)

    def wipe(self) -> None:
        """Forget every task, and set the clock right."""
        self.db.dispose()
        self._fill()

    def _fill(self) -> None:
        for name in ("-wal", "-shm", "-journal"):
            Path(f"{self._path}{name}").unlink(missing_ok=True)
        self._ahead.unlink(missing_ok=True)
        self._path.write_bytes(self._nothing)

    def advance(self, seconds: float) -> None:
        """Move the clock on."""
        ahead = self.db.ahead if isinstance(self.db, _Clocked) else 0.0
        self._ahead.write_text(repr(ahead + seconds))

    def due(self) -> list[Ring]:
        """Return the messages of the rows that are to run, or owe their outcome, oldest first; moves nothing."""
        c = self.t.task.c
        query = sa.select(self.t.task).where(c.publish_at.is_not(None)).order_by(c.id)
        return [
            Ring(
                r.id, r.task_id, r.envelope_no, r.retries, r.deadline_at, 0, r.state, Envelope.load(r.envelope, r.body)
            )
            for r in self._ask(query)
        ]

    def running(self) -> list[tuple[str, str, int]]:
        """Return task id, token and claim of what is running."""
        c = self.t.task.c
        query = sa.select(c.task_id, c.claim_token, c.claims).where(c.state == states.RUNNING)
        return [(r.task_id, r.claim_token, r.claims) for r in self._ask(query)]

    def next_wake(self) -> float | None:
        """Return in how many seconds the next waiting task is looked at again; None when none waits for a time."""
        c = self.t.task.c
        waits = (c.state == states.WAITING, c.wake_at.is_not(None), c.wait_kind != states.DUPLICATE)
        query = sa.select(c.wake_at, self.dialect.clock_sql.label("now")).where(*waits).order_by(c.wake_at).limit(1)
        found = self._ask(query)
        return (found[0].wake_at - found[0].now) / 1e6 if found else None


@cache
def _empty(prefix: str) -> bytes:
    """What an empty ledger looks like: migrating one takes half a second, and a crash test wipes many."""
    from celery_durable.settings import Settings  # pure, and only needed here

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.db")
        made = Ledger.open(replace(Settings(), ledger_url=f"sqlite:///{path}", table_prefix=prefix))
        made.migrate()
        made.db.dispose()
        return path.read_bytes()


__all__ = ["FILE", "HostSandbox", "SandboxLedger"]
