"""A transaction lent to a function of the user's: it may write in it, but neither commit it nor roll it back."""

from __future__ import annotations

import inspect
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.orm import Session

from celery_durable.errors import StepError, StepResultError
from celery_durable.ledger.dialects import transaction_aborted, transaction_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from celery_durable.ledger.database import Database

T = TypeVar("T")

_SAVEPOINT = "durable_lent"


class Enclosure(Protocol):
    """The transaction that a step is done in: one of the ledger's connection, or of a framework that has its own."""

    def run_once(self, work: Callable[[sa.Connection], T], task_id: str | None) -> T:
        """Run ``work`` in a transaction and commit it; what goes wrong with the database is SQLAlchemy's error.

        Raises:
            StepError: there is a transaction already that the step's cannot be apart from.
        """

    def lend(self, connection: sa.Connection) -> AbstractContextManager[tuple[Any, ...]]:
        """Give what the step's function is called with, while that function runs."""

    def alone(self, call: Callable[..., T]) -> T:
        """Call something in a transaction as a step's function is called, outside of a run: nothing is recorded."""


@dataclass(frozen=True, slots=True)
class Own:
    """A transaction on the ledger's own connection, which the function gets as it is or as a Session."""

    db: Database
    session: type[Session] | None

    def run_once(self, work: Callable[[sa.Connection], T], task_id: str | None) -> T:
        """Run it as ``Database.run_once`` does."""
        return self.db.run_once(work, task_id)

    @contextmanager
    def lend(self, connection: sa.Connection) -> Iterator[tuple[Any, ...]]:
        """Lend the transaction."""
        with lent(connection, self.session) as given:
            yield (given,)

    def alone(self, call: Callable[..., T]) -> T:
        """Do it in a transaction of its own."""
        with self.db.connection() as connection, self.lend(connection) as given:
            return call(*given)


def session_class(fn: Callable[..., Any]) -> type[Session] | None:
    """Return the class of Session that a function asks for, None where it takes a Connection.

    It asks by its first parameter: annotated as a ``Session``, or named ``session`` without an annotation.
    """
    try:
        parameter = next(iter(inspect.signature(fn).parameters.values()))
    except (StopIteration, TypeError, ValueError):
        return None
    asked = parameter.annotation
    if asked is parameter.empty:
        return Session if parameter.name == "session" else None
    if isinstance(asked, str):  # `from __future__ import annotations`
        return Session if asked.rpartition(".")[2] == "Session" else None
    return asked if isinstance(asked, type) and issubclass(asked, Session) else None


@contextmanager
def lent(connection: sa.Connection, session: type[Session] | None) -> Iterator[sa.Connection | Session]:
    """Lend the open transaction of a connection, as it is or as a session.

    When the block ends, what it wrote has been sent and the transaction is open. When it raises, the transaction is
    rolled back, or the connection is given up.

    Raises:
        StepError: the block tried to end the transaction, or ended it behind SQLAlchemy's back.
    """
    guard = _Guard(connection)
    with guard:
        if session is None:
            yield connection
            return
        with guard.session(session) as opened:
            yield opened


class _Guard:
    """Sees to it that a transaction outlives the block."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._refused: StepError | None = None

    def __enter__(self) -> None:
        # It is gone when the transaction is, whoever ended it: raw SQL, the driver, MySQL before a DDL statement.
        self._connection.exec_driver_sql(f"SAVEPOINT {_SAVEPOINT}")
        event.listen(self._connection, "commit", self._refuse)
        event.listen(self._connection, "rollback", self._refuse)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        event.remove(self._connection, "commit", self._refuse)
        event.remove(self._connection, "rollback", self._refuse)
        if error is None and self._refused is None:
            self._still_open()
            return
        self._roll_back()
        if self._refused is not None and error is not self._refused:
            raise self._refused from error

    @contextmanager
    def session(self, cls: type[Session]) -> Iterator[Session]:
        """Open a session whose own rollback goes back to where it began."""
        session = cls(bind=self._connection, join_transaction_mode="create_savepoint")
        event.listen(session, "before_commit", self._refuse)
        try:
            yield session
            event.remove(session, "before_commit", self._refuse)
            session.commit()  # into the transaction that was lent
        finally:
            with suppress(Exception):  # what is wrong with it shows in the transaction
                session.close()

    def _refuse(self, ended: sa.Connection | Session) -> None:
        if isinstance(ended, Session) and ended.in_nested_transaction():
            return
        self._refused = StepError(
            "A transactional step neither commits nor rolls back: what it writes is committed together with its row. "
            "Raise to have all of it rolled back; begin_nested() makes a part that can be rolled back alone."
        )
        raise self._refused

    def _still_open(self) -> None:
        try:
            self._connection.exec_driver_sql(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        except exc.DBAPIError as error:
            self._roll_back()
            if transaction_over(error):
                raise StepResultError(
                    "A transactional step has ended its transaction (COMMIT or ROLLBACK as SQL, a statement that MySQL "
                    "commits by itself, or a deadlock that it caught): what it wrote and its row cannot be committed "
                    "together any more."
                ) from error
            if transaction_aborted(error):
                raise StepError(
                    "A transactional step has caught an error of the database, which refuses the rest of the "
                    "transaction then: let it pass, or use begin_nested() for a part that may fail."
                ) from error
            raise

    def _roll_back(self) -> None:
        """Roll back; a connection that cannot (the function was interrupted in the middle of a statement) is cut."""
        transaction = self._connection.get_transaction()
        try:
            if transaction is None:  # a refused commit or rollback has left SQLAlchemy without one
                raise exc.InvalidRequestError("no transaction")  # noqa: TRY301 - the same end
            transaction.rollback()
        except Exception:  # noqa: BLE001 - whatever it is, cutting the connection ends the transaction
            with suppress(Exception):
                self._connection.invalidate()
