"""Statements that are written once: built of Core, compiled once, and then executed with parameters alone.

Whoever lends a connection is given the Core statement. On a connection that this library keeps for itself its compiled
text goes to psycopg directly, which prepares on the server what comes often; who listens to the engine hears of both.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Execution option of connections whose driver may be spoken to directly.
DIRECT = "durable_direct"
#: Where a connection keeps the cursor that its direct statements share.
_CURSOR = "durable_cursor"


class Prepared:
    """One statement of a verb; ``core`` is what it says, with bind parameters for what differs from call to call."""

    __slots__ = ("_constants", "_text", "core")

    def __init__(self, core: Any) -> None:
        """Take a statement that returns rows."""
        self.core = core
        self._text = ""
        self._constants: dict[str, Any] = {}

    def rows(self, connection: sa.Connection, given: Mapping[str, Any]) -> Sequence[Any]:
        """Execute it and return its rows.

        Raises:
            sqlalchemy.exc.DBAPIError: as any execution of a Core statement does.
        """
        if DIRECT not in connection.get_execution_options():
            return connection.execute(self.core, given).all()
        if not self._text:
            self._compile(connection.dialect)
        return _fetched(connection, self._text, {**self._constants, **given})

    def first(self, connection: sa.Connection, given: Mapping[str, Any]) -> Any:
        """Execute it and return its first row, None where there is none."""
        rows = self.rows(connection, given)
        return rows[0] if rows else None

    def _compile(self, dialect: sa.Dialect) -> None:
        compiled = self.core.compile(dialect=dialect)
        binds = {compiled.bind_names[bind]: bind for bind in compiled.bind_names}
        self._constants = {name: bind.value for name, bind in binds.items() if not bind.required}
        self._text = compiled.string


def fixed(value: Any, kind: Any = None) -> sa.ColumnElement[Any]:
    """Write a constant of ours into the text of a statement: it need not be sent each time."""
    if value is None:
        return sa.null()
    text = str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
    return sa.literal_column(text, kind)


def given(name: str, kind: Any) -> sa.BindParameter[Any]:
    """Return the parameter ``v_<name>``: one named like a column would be taken for a value of that column."""
    return sa.bindparam(f"v_{name}", type_=kind)


def _fetched(connection: sa.Connection, text: str, given: Any) -> Sequence[Any]:
    """Execute a text by the driver itself, telling whoever listens to SQLAlchemy's events."""
    told, context = connection.dispatch, SimpleNamespace()  # listeners leave things in the context of an execution
    cursor = connection.info.get(_CURSOR)
    if cursor is None or cursor.closed:
        cursor = connection.info[_CURSOR] = _made(connection)
    for listener in told.before_cursor_execute:
        text, given = listener(connection, cursor, text, given, context, False)
    try:
        cursor.execute(text, given)
        rows: Sequence[Any] = cursor.fetchall()
    except connection.dialect.loaded_dbapi.Error as error:
        dialect, lost = connection.dialect, connection.connection
        gone = dialect.is_disconnect(error, lost, cursor)
        if gone:
            connection.invalidate(error)
        raise exc.DBAPIError.instance(
            text, given, error, dialect.loaded_dbapi.Error, connection_invalidated=gone, dialect=dialect
        ) from error
    for listener in told.after_cursor_execute:
        listener(connection, cursor, text, given, context, False)
    return rows


def _made(connection: sa.Connection) -> Any:
    from psycopg.rows import namedtuple_row  # an optional driver

    return connection.connection.driver_connection.cursor(row_factory=namedtuple_row)  # type: ignore[union-attr]
