"""Somebody else's transaction: rows are written in it, and are there or not with everything else in it.

A ``Lender`` lends it: it executes statements in it, and may say when it was committed. ``borrowing`` makes of that a
database which the verbs of the ledger work on as on their own.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from sqlalchemy import event, exc, orm

from celery_durable.errors import BadRequest, SubmitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: How many rows of one transaction its committer sends at once; sweeps send the others.
MAX_TOLD = 10_000

_INFO = "celery_durable"  # where a Session's info keeps what is to be done after its commit


class Lender(Protocol):
    """Who lends a transaction: for SQLAlchemy below, for a framework with connections of its own elsewhere."""

    def connection(self) -> sa.Connection:
        """Return what executes statements and makes savepoints in the transaction as it stands now.

        It has a Connection's ``dialect.name``, ``execute`` and ``begin_nested``; more is not asked of it.

        Raises:
            SubmitError: there is no transaction in which a row could be written.
        """

    def after_commit(self, work: Callable[[list[int]], None], row_ids: Iterable[int]) -> None:
        """Have ``work(row ids)`` called after the transaction was committed, once for all rows of the same work.

        Not before the database has committed, and not within a transaction. What it does must be worth nothing to
        correctness: a sweep does it where it is never called, or called for rows that are not there.
        """


def lend(given: Any, table: sa.Table) -> Lender:
    """Make a lender of what the caller has.

    Raises:
        BadRequest: it is neither a Session nor a Connection of SQLAlchemy, or an asynchronous one.
    """
    if isinstance(given, orm.scoped_session):
        given = given()
    if isinstance(given, orm.Session):
        return SessionLender(given, table)
    if isinstance(given, sa.Connection):
        return ConnectionLender(given)
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    if hasattr(given, "run_sync"):
        raise BadRequest(
            f"transaction() got a {kind}, which is asynchronous, and .delay() cannot await it. Submit on its plain "
            "side: await session.run_sync(submit), where submit(session) opens the block."
        )
    raise BadRequest(f"transaction() got a {kind}: it takes a Session or a Connection of SQLAlchemy.")


class ConnectionLender:
    """A Connection: nobody tells of its COMMIT, SQLAlchemy's event comes before it (PROTOCOL 21)."""

    def __init__(self, connection: sa.Connection) -> None:
        """Borrow it; nothing is executed yet."""
        self._connection = connection
        self._used = False

    def connection(self) -> sa.Connection:
        """Return it, within a transaction."""
        _not_over(self._connection.in_transaction(), used=self._used)
        self._used = True
        return _begun(self._connection)

    def after_commit(self, work: Callable[[list[int]], None], row_ids: Iterable[int]) -> None:
        """Leave it to the sweep."""


class SessionLender:
    """A Session; its ``after_commit`` comes after COMMIT, unless it takes part in the transaction of a Connection."""

    def __init__(self, session: orm.Session, table: sa.Table) -> None:
        """Borrow it; nothing is executed yet. ``table`` is what a Session with several databases is asked for."""
        self._session, self._table = session, table
        self._used = False

    def connection(self) -> sa.Connection:
        """Return the connection of its transaction."""
        _not_over(self._session.in_transaction(), used=self._used)
        self._used = True
        try:
            connection = self._session.connection(bind_arguments={"clause": self._table})
        except exc.UnboundExecutionError as error:
            raise SubmitError(
                f"This Session does not say in which database {self._table.name} is. Bind the table, "
                "Session(binds={...}), or pass the Connection: transaction(session.connection(...))."
            ) from error
        return _begun(connection)

    def after_commit(self, work: Callable[[list[int]], None], row_ids: Iterable[int]) -> None:
        """Call ``work`` after the commit of the outermost transaction; forget it with a rollback."""
        if isinstance(self._session.get_bind(clause=self._table), sa.Connection):
            return  # the transaction is that Connection's
        kept: _AfterCommit | None = self._session.info.get(_INFO)
        if kept is None:
            kept = self._session.info[_INFO] = _AfterCommit()
            event.listen(self._session, "after_commit", kept.committed)
            event.listen(self._session, "after_transaction_end", kept.ended)
        waiting = kept.waiting.setdefault(work, [])
        waiting.extend(islice(row_ids, MAX_TOLD - len(waiting)))


class _AfterCommit:
    """What is to be done once a Session's transaction is committed."""

    def __init__(self) -> None:
        self.waiting: dict[Callable[[list[int]], None], list[int]] = {}

    def committed(self, session: orm.Session) -> None:
        if session.in_nested_transaction():  # a savepoint was released
            return
        waiting, self.waiting = self.waiting, {}
        for work, row_ids in waiting.items():
            work(row_ids)

    def ended(self, _session: orm.Session, transaction: orm.SessionTransaction) -> None:
        if transaction.parent is None:
            self.waiting = {}


def _not_over(begun: bool, *, used: bool) -> None:  # noqa: FBT001 - what was seen
    """Refuse what would begin a transaction that nobody may commit.

    Raises:
        SubmitError: the transaction of the block has ended.
    """
    if used and not begun:
        raise SubmitError(
            "The transaction of this block is over: it was committed or rolled back. Submit before that, or outside of "
            "the block, where a submission is a transaction of its own."
        )


def _begun(connection: sa.Connection) -> sa.Connection:
    """See that the database itself is in a transaction, which on SQLite has to have the write lock (PROTOCOL 25).

    Raises:
        SubmitError: each statement of this connection commits by itself.
    """
    if not connection.in_transaction():
        connection.begin()
    raw: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "sqlite":
        # Python's driver begins at the first write only; a savepoint without BEGIN commits as it is released.
        late = not getattr(raw, "in_transaction", True)
        if late and raw.isolation_level is not None:
            connection.execute(sa.text("BEGIN IMMEDIATE"))
        alone = late and raw.isolation_level is None
    else:
        asked = getattr(raw, "get_autocommit", None)
        alone = bool(asked() if callable(asked) else getattr(raw, "autocommit", False))
    if alone:
        raise SubmitError(
            "This connection is in AUTOCOMMIT: each statement commits by itself, nothing could be rolled back. "
            "Use one that begins a transaction, or submit outside of the block."
        )
    return connection
