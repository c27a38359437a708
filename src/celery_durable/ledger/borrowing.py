"""The ledger's database within somebody else's transaction: each work of a verb is a savepoint in it."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc

from celery_durable.errors import LedgerSchemaError, LedgerUnavailable, SubmitError
from celery_durable.ledger import dialects, injecting
from celery_durable.ledger.database import Busy, Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.ledger.lending import Lender

T = TypeVar("T")


class Borrowed(Database):
    """The ledger's database, within somebody else's transaction: each work is a savepoint in it.

    Deadlocks and serialization failures are theirs to try again, from the beginning of the transaction: they pass
    through as SQLAlchemy's errors (PROTOCOL 20).
    """

    lent = True

    def __init__(self, origin: Database, lender: Lender, known: tuple[sa.Select[Any], str]) -> None:
        """Take the ledger's own database, who lends the transaction, and what the ledger is known by in it."""
        self.origin, self.lender, self.known = origin, lender, known
        self.url, self.dialect = origin.url, origin.dialect
        self._seen: sa.Connection | None = None

    @property
    def engine(self) -> sa.Engine:
        """The ledger's own engine."""
        return self.origin.engine

    def run(
        self, work: Callable[[sa.Connection], T], *, read_only: bool = False, task_id: str | None = None, **_: Any
    ) -> T:
        """Run ``work`` in a savepoint, waiting ``LOCK_TIMEOUT`` for a lock; read what others see when ``read_only``.

        Raises:
            Busy: somebody else holds a lock; the transaction can go on.
            LedgerSchemaError: this database has no ledger.
            LedgerUnavailable: the connection is lost, and the transaction with it; or SQLite is locked.
            SubmitError: there is no transaction, or it is another database's.
        """
        if read_only:
            return self.origin.run(work, read_only=True)
        connection = self._connection()
        gone: list[bool] = [True]
        try:
            with injecting.borrowed(connection, work), _savepoint(connection) as gone, self._patience(connection):
                self._check(connection)
                answer = work(connection)
                injecting.releasing(connection)
        except exc.DBAPIError as error:
            told = self._told(error, connection, kept=not gone, task_id=task_id)
            if told is None:
                raise
            raise told from error
        return answer

    def _connection(self) -> sa.Connection:
        try:
            connection = self.lender.connection()
        except exc.OperationalError as error:
            told = self._told(error, None, kept=False, task_id=None)
            raise told or error from error
        theirs = dialects.DIALECTS.get(connection.dialect.name)
        if theirs is not self.dialect:
            raise SubmitError(
                f"This transaction is on {connection.dialect.name}, the ledger is {self.origin}: a row cannot be "
                "part of it. Let durable_ledger_url name the same database, or submit outside of the block."
            )
        return connection

    def _check(self, connection: sa.Connection) -> None:
        """See that it is the ledger's own database, whatever name either of them knows it by."""
        if connection is self._seen:
            return
        query, ours = self.known
        theirs = connection.execute(query).scalar()
        if theirs != ours:
            raise SubmitError(
                f"This transaction is on {_place(connection)}, which has a ledger of its own ({theirs}); the app's is "
                f"{self.origin} ({ours}). Both have to be the same database: let durable_ledger_url name it, or submit "
                "outside of the block."
            )
        self._seen = connection

    @contextmanager
    def _patience(self, connection: sa.Connection) -> Iterator[None]:
        """Bound every lock wait; what the caller has set is set again afterwards."""
        if self.dialect.name == "postgresql":  # a savepoint that is rolled back takes it back as well
            before = connection.execute(sa.select(sa.func.current_setting("lock_timeout"), dialects.hasty())).scalar()
            yield
            connection.execute(sa.select(sa.func.set_config("lock_timeout", before, True)))
        elif self.dialect.name == "mysql":
            before = connection.execute(sa.text("SELECT @@SESSION.innodb_lock_wait_timeout")).scalar()
            connection.execute(sa.text(f"SET SESSION innodb_lock_wait_timeout = {dialects.LOCK_TIMEOUT}"))
            try:
                yield
            finally:
                with suppress(exc.SQLAlchemyError):  # also of a connection that is known to be lost
                    connection.execute(sa.text(f"SET SESSION innodb_lock_wait_timeout = {before}"))
        else:
            yield

    def _told(
        self, error: exc.DBAPIError, connection: sa.Connection | None, *, kept: bool, task_id: str | None
    ) -> Exception | None:
        """Say what an error means to somebody whose transaction it met; None where it is their own to handle."""
        fault = "lost" if error.connection_invalidated else self.dialect.faults(error)
        place = self.origin if connection is None else _place(connection)
        if fault == "busy" and kept:
            return Busy(str(error.orig))
        if fault == "schema":
            return LedgerSchemaError(
                f"The transaction's database {place} has no celery-durable tables; the ledger is {self.origin}. Both "
                "have to be the same database (and search path): submit on a connection to it, or outside of the block."
            )
        if "database is locked" in str(error.orig):
            return LedgerUnavailable(
                "SQLite: database is locked. A transaction that has read cannot take the write lock once another one "
                "has written: begin it with BEGIN IMMEDIATE, keep it short, and try it again from its beginning "
                "(docs/submitting.md shows how).",
                task_id=task_id,
            )
        if fault in {"lost", "unavailable"}:
            return LedgerUnavailable(
                f"The transaction was lost ({type(error).__name__}: {str(error.orig).strip()}): nothing of it was "
                "recorded; begin it again.",
                task_id=task_id,
            )
        return None


def _place(connection: sa.Connection) -> str:
    return connection.engine.url.render_as_string(hide_password=True)


@contextmanager
def _savepoint(connection: sa.Connection) -> Iterator[list[bool]]:
    """A savepoint; its list is no longer empty where the whole transaction is gone with it."""
    gone: list[bool] = []
    nested = connection.begin_nested()
    try:
        yield gone
    except BaseException:
        try:
            nested.rollback()
        except exc.DBAPIError:  # InnoDB takes the transaction back after a deadlock, savepoints included
            gone.append(True)
        raise
    nested.commit()
