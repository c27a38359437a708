"""A wire that loses replies: what was sent is done, and nobody hears of it.

For PostgreSQL and MariaDB a proxy on loopback forwards everything and, when armed, cuts the connection instead of
forwarding the reply to the statement that committed. SQLite has no wire: its commit succeeds and then raises.
"""

from __future__ import annotations

import socket
import sqlite3
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable

_PG_IDLE = b"Z\x00\x00\x00\x05I"  # ReadyForQuery, outside a transaction: whatever was sent is committed
_COM_QUERY = 3
_WRITES = ("INSERT", "UPDATE", "DELETE")


class Wire:
    """Counts replies to commits (and on PostgreSQL all replies), and loses the ones it is told to."""

    def __init__(self) -> None:
        self.commits = self.replies = 0
        self.down = False
        self._lost, self._for_good = 0, False
        self._guard = threading.Lock()

    def lose(self, number: int, *, for_good: bool = False) -> None:
        """Lose the reply to the `number`-th commit from now on (0: to none), and with it all that follow."""
        with self._guard:
            self.commits, self.down = 0, False
            self._lost, self._for_good = number, for_good

    def loses_next(self) -> bool:
        """Called at each reply to a commit."""
        with self._guard:
            self.commits += 1
            lost = self.commits == self._lost
            self.down = self.down or (lost and self._for_good)
            return lost or self.down


class Proxy:
    """A loopback port in front of a server."""

    def __init__(self, wire: Wire, url: sa.URL) -> None:
        self.wire, self.url = wire, url
        self._postgres = url.get_backend_name() == "postgresql"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def proxied_url(self) -> str:
        """The server's URL through this proxy, without encryption."""
        url = self.url.set(port=self._listener.getsockname()[1])
        if self._postgres:
            url = url.update_query_dict({"sslmode": "disable", "gssencmode": "disable"})
        return url.render_as_string(hide_password=False)

    def close(self) -> None:
        self._listener.close()
        for end in self._open:
            _cut(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self.url.host, self.url.port))
            self._open += [client, server]
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Postgres(self.wire) if self._postgres else _MySQL(self.wire)
            for source, target, look in ((client, server, link.asked), (server, client, link.answered)):
                threading.Thread(target=_pump, args=(source, target, look), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, look: Callable[[bytes], bool]) -> None:
    with suppress(OSError):
        while (data := source.recv(65536)) and look(data):
            target.sendall(data)
    _cut(source)
    _cut(target)


def _cut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class _Postgres:
    """Replies end with the state of the transaction."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._tail = b""

    def asked(self, _data: bytes) -> bool:
        return True

    def answered(self, data: bytes) -> bool:
        self._tail = (self._tail + data)[-len(_PG_IDLE) :]
        self.wire.replies += self._tail.startswith(_PG_IDLE[:-1])
        return not (self.wire.down or (self._tail == _PG_IDLE and self.wire.loses_next()))


class _MySQL:
    """Requests tell by their text whether they commit."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._buffer = b""
        self._autocommit = self._written = self._commits = False

    def asked(self, data: bytes) -> bool:
        self._buffer += data
        while len(self._buffer) >= 4:  # three bytes of length, one of number
            end = 4 + int.from_bytes(self._buffer[:3], "little")
            if len(self._buffer) < end:
                break
            packet, self._buffer = self._buffer[4:end], self._buffer[end:]
            if packet[:1] == bytes([_COM_QUERY]):
                self._statement(packet[1:60].decode(errors="replace").upper())
        return True

    def _statement(self, sql: str) -> None:
        if sql.startswith("SET AUTOCOMMIT"):
            self._autocommit = sql.rstrip().endswith("1")
        writes = sql.startswith(_WRITES)
        self._commits = (writes and self._autocommit) or (sql.startswith("COMMIT") and self._written)
        self._written = (writes or self._written) and not self._commits and not sql.startswith("ROLLBACK")

    def answered(self, _data: bytes) -> bool:
        if not self._commits:
            return not self.wire.down
        self._commits = False
        return not self.wire.loses_next()


def lose_commits_of_sqlite(engine: sa.Engine, wire: Wire) -> None:
    """Have commits that wrote raise after they took place."""

    class Lossy(sqlite3.Connection):
        def commit(self) -> None:
            before, self.seen = getattr(self, "seen", 0), self.total_changes
            super().commit()
            if wire.down or (self.total_changes > before and wire.loses_next()):
                raise sqlite3.OperationalError("disk I/O error")

    def connect(_dialect: Any, _record: Any, args: list[Any], options: dict[str, Any]) -> sqlite3.Connection:
        return sqlite3.connect(*args, **(options | {"factory": Lossy}))

    sa.event.listen(engine, "do_connect", connect)
