"""Locks that belong to a session of a database server: advisory locks in PostgreSQL, named ones in MySQL/MariaDB.

The session is a connection of its own that does nothing else. Looks at other workers' locks are taken on it as well: so
they concern the server that keeps one's own, and who has lost that one judges nobody.
"""

from __future__ import annotations

import os
import select
import zlib
from abc import abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc

from celery_durable.errors import LedgerError
from celery_durable.ledger.liveness import FileLock, Held, LivenessLock, Peer, _number

if TYPE_CHECKING:
    from celery_durable.ledger.database import Database

#: Seconds within which the start of a MySQL server is told exactly enough to be the same.
SAME_START = 2

_inherited: list[Any] = []


class SessionLock(LivenessLock):
    """What is alike of both."""

    _connection: sa.Connection | None = None
    _driver: Any = None

    def acquire(self) -> Held | None:
        """Open a session and take a lock in it."""
        self.release()
        try:
            self._connection = connection = self._db.engine.connect()
            connection.execution_options(isolation_level="AUTOCOMMIT")
            self._driver = connection.connection.driver_connection
            connection.detach()
            held = self._take(connection)
        except (exc.SQLAlchemyError, LedgerError, self._db.driver_error) as error:
            self.refused = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            held = None
        if held is None:
            self.release()
            return None
        self.held, self.refused = held, ""
        return held

    @abstractmethod
    def _take(self, connection: sa.Connection) -> Held | None:
        """Take a lock; None where another process stands between us and the server."""

    def _direct(self, driver_says: object, server_says: int) -> bool:
        """Say whether the session is our connection's own, and not one that a pooler lends to it."""
        if driver_says in {None, server_says}:
            return True
        self.refused = (
            f"the connection to {self._db} goes through a pooler (session {driver_says} there, {server_says} in the "
            "database), which does not end a session with the process that uses it"
        )
        return False

    def lost(self) -> bool:
        """Look whether the server has said anything: unasked, it says little but that the session is over."""
        descriptor = self._descriptor() if self.held is not None else None
        if descriptor is None:
            return self.held is None
        if descriptor < 0:
            return True
        watch = select.poll()
        watch.register(descriptor, select.POLLIN)
        return bool(watch.poll(0)) and not self.stands()

    def _descriptor(self) -> int | None:
        driver = self._driver
        speaks = driver if hasattr(driver, "fileno") else getattr(driver, "_sock", None)
        try:
            return int(speaks.fileno()) if speaks is not None else None
        except Exception:  # noqa: BLE001 - a closed connection says so in its driver's way
            return -1

    def stands(self) -> bool:
        """Ask the server."""
        if self._connection is None or self.held is None:
            return False
        try:
            return self._holds(self._connection, self.held.number)
        except (exc.SQLAlchemyError, self._db.driver_error):
            return False

    @abstractmethod
    def _holds(self, connection: sa.Connection, number: int) -> bool: ...

    def peers(self, me: str) -> list[Peer]:
        """Look at all of them in one statement, in the session that holds our own."""
        if self._connection is None or self.held is None:
            return []
        try:
            rows = self._look(self._connection, me)
        except self._db.driver_error as error:
            raise exc.OperationalError("look", {}, error) from error
        return [Peer(row.id, row.lock_number, bool(row.free), self._here(row.lock_server)) for row in rows]

    @abstractmethod
    def _look(self, connection: sa.Connection, me: str) -> Any: ...

    def _here(self, server: str | None) -> bool:
        return self.held is not None and server == self.held.server

    def release(self) -> None:
        """Close the session."""
        connection, self._connection, self._driver, self.held = self._connection, None, None, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def leave_to_parent(self) -> None:
        """Close the socket beneath the driver, which must not speak on it."""
        if self._connection is None:
            return
        driver, descriptor = self._driver, self._descriptor()
        _inherited.append(self._connection)
        socket = getattr(driver, "_sock", None)
        if socket is not None and hasattr(
            socket, "detach"
        ):  # else Python would close the number again, whosever it is by then
            descriptor = socket.detach()
        if descriptor is not None and descriptor >= 0:
            os.close(descriptor)


class PostgresLock(SessionLock):
    """An advisory lock, of the kind that has two numbers."""

    def __init__(self, database: Database, worker: sa.Table) -> None:
        """Name the ledger among others of the database."""
        super().__init__(database, worker)
        space, free = zlib.crc32(worker.name.encode()) % 2**31, "pg_try_advisory_xact_lock_shared"
        self._taking = sa.text(
            "SELECT pg_try_advisory_lock(CAST(:space AS integer), CAST(:number AS integer)) AS got,"
            " pg_backend_pid() AS session,"
            " CAST(extract(epoch FROM pg_postmaster_start_time()) * 1000000 AS bigint) AS server"
        ).bindparams(space=space)
        self._holding = sa.text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()"
            " AND classid = CAST(:space AS oid) AND objid = CAST(:number AS oid) AND objsubid = 2"
        ).bindparams(space=space)
        # Held by nobody else for longer than the statement: who wants it alone has it already, or draws another.
        self._looking = sa.text(
            f"SELECT id, lock_number, lock_server, {free}({space}, lock_number) AS free"  # noqa: S608 - names of ours
            f" FROM {worker.name} WHERE lock_number IS NOT NULL AND id <> :me"
        )

    def _take(self, connection: sa.Connection) -> Held | None:
        while True:
            number = _number()
            row = connection.execute(self._taking, {"number": number}).one()
            info = getattr(self._driver, "info", None)
            if not self._direct(getattr(info, "backend_pid", None), row.session):
                return None
            if row.got:
                return Held(number, str(row.server))

    def _holds(self, connection: sa.Connection, number: int) -> bool:
        return bool(connection.execute(self._holding, {"number": number}).scalar())

    def _look(self, connection: sa.Connection, me: str) -> Any:
        return connection.execute(self._looking, {"me": me}).all()


class MySQLLock(SessionLock):
    """A named lock; names are known to the whole server."""

    _space = ""

    def _take(self, connection: sa.Connection) -> Held | None:
        place = connection.execute(sa.text("SELECT DATABASE(), CONCAT(@@hostname, ':', @@port), UNIX_TIMESTAMP()"))
        database, server, now = place.one()
        uptime = connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Uptime'").one()[1]
        self._space = f"durable-{zlib.crc32(f'{database}.{self._table.name}'.encode()):08x}-"
        while True:
            number = _number()
            taking = sa.text("SELECT GET_LOCK(:name, 0), CONNECTION_ID()")
            got, session = connection.execute(taking, {"name": f"{self._space}{number}"}).one()
            said = getattr(self._driver, "thread_id", None)
            if not self._direct(said() if callable(said) else None, session):
                return None
            if got:
                return Held(number, f"{server}:{int(now) - int(uptime)}")

    def _holds(self, connection: sa.Connection, number: int) -> bool:
        holding = sa.text("SELECT IS_USED_LOCK(:name) = CONNECTION_ID()")
        return bool(connection.execute(holding, {"name": f"{self._space}{number}"}).scalar())

    def _look(self, connection: sa.Connection, me: str) -> Any:
        looking = sa.text(
            "SELECT id, lock_number, lock_server, IS_USED_LOCK(CONCAT(:space, lock_number)) IS NULL AS free"  # noqa: S608
            f" FROM {self._table.name} WHERE lock_number IS NOT NULL AND id <> :me"
        )
        return connection.execute(looking, {"space": self._space, "me": me}).all()

    def _here(self, server: str | None) -> bool:
        """The start is told in whole seconds, by two clocks."""
        if self.held is None or server is None:
            return False
        ours, theirs = self.held.server.rpartition(":"), server.rpartition(":")
        return ours[0] == theirs[0] and abs(int(ours[2]) - int(theirs[2])) <= SAME_START


def liveness_lock(database: Database, worker: sa.Table) -> LivenessLock:
    """Return the kind of lock that a ledger's database has."""
    kinds = {"postgresql": PostgresLock, "mysql": MySQLLock}
    return kinds.get(database.dialect.name, FileLock)(database, worker)


__all__ = ["MySQLLock", "PostgresLock", "SessionLock", "liveness_lock"]
