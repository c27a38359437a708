"""One process's way to the ledger's database: engine per process, bounded retries, one place for faults."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc

from celery_durable import failpoints
from celery_durable.errors import LedgerSchemaError, LedgerUnavailable, SettingsError
from celery_durable.ledger import injecting
from celery_durable.ledger.dialects import DIALECTS, POSTGRESQL, READ_ONLY, SQLITE, Dialect, create_engine
from celery_durable.ledger.prepared import DIRECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

#: How often work is tried again after a deadlock, and after a connection that turned out to be dead.
CONTENTION_TRIES, CONNECTION_TRIES = 8, 3
TRIES = {"retry": CONTENTION_TRIES, "busy": CONTENTION_TRIES, "lost": CONNECTION_TRIES}

#: How many autocommitting connections a process keeps at hand while nobody uses them.
KEPT = 8

_inherited: list[Any] = []


class Busy(Exception):
    """Somebody else holds a lock, and has held it for longer than this work was to wait."""


class Database:
    """Runs work against the ledger's database.

    Connections never cross a fork: a child makes its own engine and leaves its parent's untouched.
    """

    #: Whether work is done within somebody else's transaction.
    lent = False
    #: The command that makes its tables, where that is not ours.
    migrated_by = ""

    def __init__(self, url: str) -> None:
        """Take a SQLAlchemy URL; nothing connects yet.

        Raises:
            SettingsError: the URL cannot be read, names a database we do not serve, or its driver is missing.
        """
        try:
            self.url = sa.make_url(url)
            backend = self.url.get_backend_name()
        except exc.ArgumentError:
            raise SettingsError(
                f"durable_ledger_url is {_masked(url)!r}, which is no database URL; it looks like "
                "postgresql+psycopg://user:password@host/name or sqlite:///celery-durable.db."
            ) from None
        if backend not in DIALECTS:
            raise SettingsError(
                f"durable_ledger_url names the database {backend!r}; "
                "celery-durable keeps its ledger in sqlite, postgresql, mysql or mariadb."
            )
        self.url = _with_driver(self.url, backend)
        self.dialect: Dialect = DIALECTS[backend]
        self._engine: sa.Engine | None = None
        self._kept: deque[sa.Connection] = deque()
        self._pid = 0
        _ = self.engine  # a missing driver shows here, not in the middle of work

    def __str__(self) -> str:
        """Return the URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def engine(self) -> sa.Engine:
        """The engine of this process."""
        if self._engine is None or self._pid != os.getpid():
            if self._engine is not None:
                # Closing them here would end the parent's connections.
                _inherited.extend((self._engine, self._kept))
                self._kept = deque()
            try:
                self._engine = create_engine(self.url, self.dialect)
            except exc.NoSuchModuleError:
                raise SettingsError(f"durable_ledger_url is {str(self)!r}: SQLAlchemy knows no such driver.") from None
            except ModuleNotFoundError as error:
                extra = {"postgresql": "postgres", "mysql": "mysql"}.get(self.dialect.name, "")
                raise SettingsError(
                    f"durable_ledger_url is {str(self)!r}, but the driver {error.name!r} is not installed: "
                    f'pip install "celery-durable[{extra}]".'
                ) from None
            self._pid = os.getpid()
            if failpoints.armed():
                injecting.listen(self._engine)
        return self._engine

    def dispose(self) -> None:
        """Close every connection of this process that nobody uses."""
        if self._engine is not None and self._pid == os.getpid():
            while self._kept:
                with suppress(IndexError, exc.SQLAlchemyError):
                    self._kept.pop().close()
            self._engine.dispose()

    @contextmanager
    def connection(self, *, autocommit: bool = False, read_only: bool = False) -> Iterator[sa.Connection]:
        """Lend a connection: in a transaction, or committing each statement by itself."""
        if self.dialect is POSTGRESQL and (autocommit or read_only):
            with self._autocommitting() as connection:
                yield connection
            return
        options: dict[str, Any] = {}
        if read_only:
            options[READ_ONLY] = True
        if autocommit or read_only:
            options["isolation_level"] = "AUTOCOMMIT"
        engine = self.engine.execution_options(**options) if options else self.engine
        with engine.connect() as connection:
            with connection.begin():
                yield connection
            if failpoints.armed():
                injecting.committed(connection)

    @contextmanager
    def _autocommitting(self) -> Iterator[sa.Connection]:
        """Lend a connection that stays as it is afterwards: checking one out and in costs as much as a statement."""
        engine = self.engine  # first: after a fork nothing is kept
        try:
            connection = self._kept.pop()
        except IndexError:
            options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
            if engine.dialect.driver == "psycopg":
                options[DIRECT] = True
            connection = engine.execution_options(**options).connect()
        kept = False
        try:
            yield connection
            if connection.in_transaction():
                connection.commit()
            else:
                connection.dispatch.commit(connection)
            if failpoints.armed():
                injecting.committed(connection)
            kept = len(self._kept) < KEPT and not connection.closed and not connection.invalidated
        finally:
            if kept:
                self._kept.append(connection)
            else:
                connection.close()

    def run(
        self,
        work: Callable[[sa.Connection], T],
        *,
        autocommit: bool = False,
        read_only: bool = False,
        impatient: bool = False,
        task_id: str | None = None,
    ) -> T:
        """Run ``work`` on a connection; again after a deadlock or a connection that had died.

        ``work`` has to be idempotent under a lost reply: it may have been committed before it runs again.

        Raises:
            Busy: it waited for a lock until the database gave up, and is ``impatient``.
            LedgerUnavailable: the database did not answer after bounded retries.
            LedgerSchemaError: its tables are missing.
        """
        if failpoints.armed():
            with injecting.during(work):
                return self._run(work, task_id, autocommit=autocommit, read_only=read_only, impatient=impatient)
        return self._run(work, task_id, autocommit=autocommit, read_only=read_only, impatient=impatient)

    def _run(
        self, work: Callable[[sa.Connection], T], task_id: str | None, *, autocommit: bool, read_only: bool,
        impatient: bool,
    ) -> T:  # fmt: skip
        autocommit = autocommit and self.dialect is not SQLITE
        tries = 0
        reached = False
        while True:
            tries += 1
            try:
                with self.connection(autocommit=autocommit, read_only=read_only) as connection:
                    reached = True
                    return work(connection)
            except exc.TimeoutError as error:
                raise self.unavailable(error, task_id, reached=False) from error
            except exc.DBAPIError as error:
                fault = self.fault(error)
                if fault == "lost":
                    self.dispose()  # those at hand have died with it
                self._refuse(fault, error, impatient=impatient)
                if tries >= TRIES.get(fault or "", 1):
                    raise self.unavailable(error, task_id, reached=reached) from error
            except self.driver_error as error:
                # Raw: SQLAlchemy met a dead connection while it set it up for autocommit.
                self.dispose()
                if tries >= CONNECTION_TRIES:
                    raise self.unavailable(error, task_id, reached=False) from error
            if tries > 1:
                time.sleep(random.uniform(0, 0.02 * 2**tries))  # noqa: S311 - spreading, not secrecy

    def _refuse(self, fault: str | None, error: exc.DBAPIError, *, impatient: bool) -> None:
        """Raise what is not to be tried again."""
        if fault is None:
            raise error
        if fault == "schema":
            raise LedgerSchemaError(missing_tables(self)) from error
        if fault == "busy" and impatient:
            raise Busy(str(error.orig)) from error

    def run_once(self, work: Callable[[sa.Connection], T], task_id: str | None = None) -> T:
        """Run ``work`` in a transaction, and not again: what the database raises is raised, ``fault`` names it.

        Raises:
            LedgerUnavailable: no connection was free.
        """
        try:
            with injecting.during(work), self.connection() as connection:
                return work(connection)
        except exc.TimeoutError as error:
            raise self.unavailable(error, task_id, reached=False) from error
        except self.driver_error:
            self.dispose()
            raise

    @property
    def driver_error(self) -> type[Exception]:
        """The class of the driver's own errors."""
        found: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        return found

    def fault(self, error: Exception) -> str | None:
        """Name what an error means: ``retry``, ``lost``, ``unavailable``, ``schema``; None: nothing that passes."""
        if isinstance(error.__cause__, self.driver_error) and not isinstance(error, exc.DBAPIError):
            error = told(error, self.driver_error)  # a framework's own error, with the driver's behind it
        if not isinstance(error, exc.DBAPIError):
            return "lost" if isinstance(error, self.driver_error) else None
        return "lost" if error.connection_invalidated else self.dialect.faults(error)

    def unavailable(self, error: Exception, task_id: str | None, *, reached: bool) -> LedgerUnavailable:
        """Make the error that users meet; ``reached`` tells that something may have been done."""
        cause = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        outcome = "unknown" if reached else "not recorded"
        return LedgerUnavailable(
            f"The ledger {self} did not answer ({type(error).__name__}: {cause}).",
            task_id=task_id,
            outcome=outcome,
        )


def missing_tables(database: Database) -> str:
    """Say what to do about a database without our tables."""
    return f"The ledger {database} has no celery-durable tables: run '{migrate(database)}' once."


def migrate(database: Database) -> str:
    """Name the command that makes the tables."""
    return database.migrated_by or "celery -A <app> durable migrate"


def told(error: Exception, driver_error: type[Exception], *, lost: bool = False) -> Exception:
    """Make SQLAlchemy's error of a driver's, or of the one behind a framework's own; ``lost``: with its connection."""
    behind = error if isinstance(error, driver_error) else error.__cause__
    if not isinstance(behind, driver_error):
        return error
    return exc.DBAPIError.instance(None, None, behind, driver_error, connection_invalidated=lost)


def _with_driver(url: sa.URL, backend: str) -> sa.URL:
    """Use the drivers we test with where the URL names none."""
    if "+" in url.drivername:
        return url
    default = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
    return url.set(drivername=default.get(backend, url.drivername))


def _masked(url: str) -> str:
    """Hide what may be a password in a URL that could not be read."""
    scheme, sep, rest = str(url).partition("://")
    return f"{scheme}{sep}***@{rest.rpartition('@')[2]}" if sep and "@" in rest else str(url)
