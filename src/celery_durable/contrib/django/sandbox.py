"""Django in a sandbox: one of its databases is a SQLite file for as long as that is open."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.management import call_command
from django.db import connections
from django.db.backends.signals import connection_created

if TYPE_CHECKING:
    from collections.abc import Callable

_empty: dict[str, bytes] = {}


class DjangoSandbox:
    """The database that holds the ledger is a file at ``path``, whatever it is in the settings."""

    def __init__(self, alias: str, path: Path) -> None:
        """Take its alias; nothing is changed yet."""
        self._alias, self._path = alias, path
        self._kept: dict[str, Any] = {}
        self._set_clock: Callable[[Any, object], None] = lambda _connection, _record: None

    def empty(self) -> bytes:
        """Return what the file holds before anything is done: the tables of every app, and the ledger's."""
        if self._alias not in _empty:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "empty.db")
                kept = self._point(path)
                try:
                    call_command("migrate", database=self._alias, run_syncdb=True, interactive=False, verbosity=0)
                finally:
                    self._restore(kept)
                _empty[self._alias] = path.read_bytes()
        return _empty[self._alias]

    def open(self, set_clock: Callable[[Any, object], None]) -> None:
        """Have Django use the file; ``set_clock`` is called with each connection of the driver's that it makes."""
        self._set_clock = set_clock
        connection_created.connect(self._created)
        self._kept = self._point(self._path)

    def close(self) -> None:
        """Have Django use its own database again."""
        connection_created.disconnect(self._created)
        self._restore(self._kept)

    def dispose(self) -> None:
        """Close this thread's connection: a process is to be forked, or the file written anew."""
        connections[self._alias].close()

    def _created(self, connection: Any, **_: Any) -> None:
        if connection.alias == self._alias:
            self._set_clock(connection.connection, None)

    def _point(self, path: Path) -> dict[str, Any]:
        kept: dict[str, Any] = connections.databases[self._alias]
        # One writer at a time, who takes the lock as the transaction begins.
        file = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": {"timeout": 20}}
        self._restore(connections.configure_settings({"default": file, self._alias: file})[self._alias])
        return kept

    def _restore(self, told: dict[str, Any]) -> None:
        connections[self._alias].close()
        connections.databases[self._alias] = told
        del connections[self._alias]


__all__ = ["DjangoSandbox"]
