"""Failpoints at the ledger's statements and commits; nothing of this is there unless the environment arms one."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from celery_durable import failpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_verb: ContextVar[str] = ContextVar("durable_verb", default="")


def verbs_of(ledger: type) -> list[str]:
    """Name the methods of a ledger that ask the database something, as failpoints call them."""
    methods = inspect.getmembers(ledger, inspect.isfunction)
    asks = [(name, set(f.__code__.co_names)) for name, f in methods]
    return sorted({name.lstrip("_") for name, used in asks if "db" in used and used & {"run", "run_once"}})


@contextmanager
def during(work: Callable[..., object]) -> Iterator[None]:
    """Let the points that the block comes by bear the name of the method in which ``work`` was written."""
    name = getattr(work, "__qualname__", "").split(".<locals>")[0].rpartition(".")[2].lstrip("_")
    token = _verb.set(name)
    try:
        yield
    finally:
        _verb.reset(token)


def listen(engine: sa.Engine) -> None:
    """Come by the points of an engine's statements and commits."""
    event.listen(engine, "before_cursor_execute", _before)
    event.listen(engine, "after_cursor_execute", _after)
    event.listen(engine, "commit", committing)


def come_by(statement: str, *, after: bool) -> None:
    """Come by the point of a statement that a framework executes.

    Raises:
        Injected: its connection is to be cut.
    """
    failpoints.strike(f"{_verb.get()}.statement", after=after, about=statement)


def committing(connection: sa.Connection) -> None:
    """Come by the point before a commit that somebody else makes."""
    _strike(connection, "commit")


def committed(connection: sa.Connection) -> None:
    """Come by the point after a commit: SQLAlchemy tells of it before."""
    _strike(connection, "commit", after=True)


@contextmanager
def borrowed(connection: object, work: Callable[..., object]) -> Iterator[None]:
    """Come by the points of ``work`` in a transaction of the caller's: its commit is the release of its savepoint.

    Of a framework's connection only the verb is known here: ``come_by`` tells of its statements.
    """
    with during(work):
        if not failpoints.armed() or not isinstance(connection, sa.Connection):
            yield
            return
        if not event.contains(connection.engine, "before_cursor_execute", _before):
            listen(connection.engine)
        yield
        committed(connection)


def releasing(connection: object) -> None:
    """Come by the point before the savepoint of borrowed work is released."""
    if failpoints.armed() and isinstance(connection, sa.Connection):
        committing(connection)


def _before(connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
    if not statement.startswith("BEGIN"):
        _strike(connection, "statement", about=statement)


def _after(connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
    if not statement.startswith("BEGIN"):
        _strike(connection, "statement", after=True, cursor=cursor, about=statement)


def _strike(connection: sa.Connection, place: str, *, after: bool = False, cursor: Any = None, about: str = "") -> None:
    try:
        failpoints.strike(f"{_verb.get()}.{place}", after=after, about=about)
    except failpoints.Injected as injected:
        # Cut for good: what was not committed is rolled back by the server, and the pool forgets the connection.
        if cursor is not None:
            cursor.close()  # SQLite keeps its locks as long as a statement has rows left to give
        if not connection.closed and not connection.invalidated:
            connection.invalidate(injected)
        raise exc.OperationalError(place, {}, injected, connection_invalidated=True) from injected
