"""Everything in which the databases differ, in one place."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from sqlite3 import OperationalError as _Locked
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event, exc

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

#: Seconds: to connect, and for one statement to answer.
CONNECT_TIMEOUT, STATEMENT_TIMEOUT = 5, 30
#: Seconds that a submission waits for a lock: its key may be pending in a transaction that waits for it, which
#: no database can see (PROTOCOL 20).
LOCK_TIMEOUT = 5
#: Execution option of work that only reads and so needs no write lock on SQLite.
READ_ONLY = "durable_read_only"


@dataclass(frozen=True, slots=True)
class Dialect:
    """One database's way of doing what the verbs need.

    ``clock`` is the wall clock when a value is stored, ``instant`` the statement's start, which an
    index condition may use (PROTOCOL 10); both in microseconds since the epoch.
    ``one_statement`` tells that a move and its history row fit into one statement, ``skips_in_groups`` that a GROUP BY
    seeks from group to group in an index instead of reading it whole.
    """

    name: str
    clock: str
    instant: str
    one_statement: bool
    skip_locked: bool
    skips_in_groups: bool
    engine_options: dict[str, Any]
    faults: Callable[[exc.DBAPIError], str | None]

    @property
    def clock_sql(self) -> sa.ColumnElement[int]:
        """The wall clock as an expression."""
        return sa.literal_column(self.clock, sa.BigInteger)

    @property
    def instant_sql(self) -> sa.ColumnElement[int]:
        """The statement's start as an expression."""
        return sa.literal_column(self.instant, sa.BigInteger)


def _postgresql_faults(error: exc.DBAPIError) -> str | None:
    state = getattr(error.orig, "sqlstate", None) or ""
    if state in {"40001", "40P01"}:
        return "retry"
    if state == "55P03":
        return "busy"
    if state in {"42P01", "3F000"}:
        return "schema"
    if not state:  # it never came to a statement: refused, cut or timed out while connecting
        return "unavailable" if isinstance(error, exc.OperationalError | exc.InterfaceError) else None
    # Connection trouble, no resources left, operator intervention (57P*), system error, read-only.
    return "unavailable" if state[:2] in {"08", "53", "57", "58"} or state == "25006" else None


#: Deadlock, lock wait timeout, no such table, no such database.
_MYSQL_FAULTS = {1213: "retry", 1205: "busy", 1146: "schema", 1049: "schema"}


def _mysql_faults(error: exc.DBAPIError) -> str | None:
    code = error.orig.args[0] if error.orig and error.orig.args else 0
    if code in _MYSQL_FAULTS:
        return _MYSQL_FAULTS[code]
    if code in {1054, 3819, 4025}:  # unknown column, CHECK (MySQL, MariaDB): a defect, and the database did answer
        return None
    return "unavailable" if isinstance(error, exc.OperationalError | exc.InterfaceError) else None


def _sqlite_faults(error: exc.DBAPIError) -> str | None:
    message = str(error.orig)
    if "no such table" in message:
        return "schema"
    return "unavailable" if isinstance(error, exc.OperationalError) else None


def transaction_over(error: exc.DBAPIError) -> bool:
    """Say that a savepoint is unknown, on any database: the transaction that had it is over."""
    if getattr(error.orig, "sqlstate", None) in {"3B001", "25P01"}:
        return True
    args = error.orig.args if error.orig else ()
    return bool(args) and (args[0] == 1305 or "no such savepoint" in str(args[0]))  # noqa: PLR2004 - of MySQL


def transaction_aborted(error: exc.DBAPIError) -> bool:
    """Say that the transaction only waits to be rolled back; PostgreSQL has that state."""
    return getattr(error.orig, "sqlstate", None) == "25P02"


_PG = "CAST(extract(epoch FROM {}) * 1000000 AS BIGINT)"
_MYSQL_CLOCK = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))"
# julianday() resolves to milliseconds and is fixed within one statement.
_SQLITE_CLOCK = "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000"

POSTGRESQL = Dialect(
    name="postgresql",
    clock=_PG.format("clock_timestamp()"),
    instant=_PG.format("now()"),
    one_statement=True,
    skip_locked=True,
    skips_in_groups=False,
    engine_options={
        "connect_args": {
            "connect_timeout": CONNECT_TIMEOUT,
            "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
            "tcp_user_timeout": STATEMENT_TIMEOUT * 1000,
        },
    },
    faults=_postgresql_faults,
)  # fmt: skip
# Every write locks its row first, so that the statement which stores a time starts after the lock.
MYSQL = Dialect(
    name="mysql",
    clock=_MYSQL_CLOCK,
    instant=_MYSQL_CLOCK,
    one_statement=False,
    skip_locked=True,
    skips_in_groups=True,
    engine_options={
        "isolation_level": "READ COMMITTED",
        "connect_args": {
            "connect_timeout": CONNECT_TIMEOUT, "charset": "utf8mb4",
            "read_timeout": STATEMENT_TIMEOUT, "write_timeout": STATEMENT_TIMEOUT,
            "init_command": f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT}",
        },
    },
    faults=_mysql_faults,
)  # fmt: skip
SQLITE = Dialect(
    name="sqlite",
    clock=_SQLITE_CLOCK,
    instant=_SQLITE_CLOCK,
    one_statement=False,
    skip_locked=False,
    skips_in_groups=False,
    engine_options={"connect_args": {"timeout": STATEMENT_TIMEOUT, "check_same_thread": False}},
    faults=_sqlite_faults,
)


def hasty() -> sa.ColumnElement[str]:
    """Bound every lock wait until the transaction of this statement ends (PostgreSQL)."""
    return sa.func.set_config("lock_timeout", f"{LOCK_TIMEOUT}s", True)


DIALECTS = {"postgresql": POSTGRESQL, "mysql": MYSQL, "mariadb": MYSQL, "sqlite": SQLITE}


def create_engine(url: sa.URL, dialect: Dialect) -> sa.Engine:
    """Make an engine; it connects nowhere yet."""
    options = dict(dialect.engine_options)
    options["connect_args"] = {k: v for k, v in options["connect_args"].items() if k not in url.query and _fits(url, k)}
    if dialect is not SQLITE:
        options |= {"pool_size": 20, "max_overflow": 20, "pool_timeout": STATEMENT_TIMEOUT}
    engine = sa.create_engine(url, **options)
    if dialect is SQLITE:
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
    return engine


def _fits(url: sa.URL, option: str) -> bool:
    """Drivers other than the usual one may not know its options."""
    driver = url.get_driver_name()
    if url.get_backend_name() in {"mysql", "mariadb"} and driver != "pymysql":
        return option in {"connect_timeout", "charset", "init_command"}
    return True


def _sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    cursor = connection.cursor()
    _journal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _journal(cursor: sqlite3.Cursor) -> None:
    """Switch to the write-ahead log, unless somebody is just writing: a later connection does it then."""
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return
    cursor.execute("PRAGMA busy_timeout=0")
    with suppress(_Locked):
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA busy_timeout={STATEMENT_TIMEOUT * 1000}")


def _sqlite_begin(connection: sa.Connection) -> None:
    """Take the write lock at once: a transaction that reads first cannot wait for it (PROTOCOL 25)."""
    if not connection.get_execution_options().get(READ_ONLY):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
