"""PostgreSQL, MariaDB and Redis, through their drivers and through SQLAlchemy."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pymysql
import redis
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import orm

from .case import PERMANENT, TRANSIENT, UNCLASSIFIED, Case, collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CASES: list[Case] = []
case = collector(CASES)


# PostgreSQL -------------------------------------------------------------------------------------------


def _pg(w: Any) -> Any:
    return closing(psycopg.connect(w.postgres.replace("+psycopg", ""), autocommit=True))


@contextmanager
def _rows(connect: Callable[[], Any]) -> Iterator[tuple[Any, Any]]:
    """Two connections and a table with two rows."""
    with connect() as one, connect() as two:
        for statement in (
            "DROP TABLE IF EXISTS pair",
            "CREATE TABLE pair (id INT PRIMARY KEY, n INT NOT NULL)",
            "INSERT INTO pair VALUES (1, 0), (2, 0)",
        ):
            one.cursor().execute(statement)
        yield one, two


def _deadlock(one: Any, two: Any) -> None:
    """Each holds one row and wants the other's; the error of the one that the server picked."""
    errors: list[Exception] = []

    def want(connection: Any, row: int) -> None:
        try:
            connection.cursor().execute(f"UPDATE pair SET n = n + 1 WHERE id = {row}")
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)
        connection.rollback()

    one.cursor().execute("UPDATE pair SET n = n + 1 WHERE id = 1")
    two.cursor().execute("UPDATE pair SET n = n + 1 WHERE id = 2")
    thread = threading.Thread(target=want, args=(two, 1))
    thread.start()
    want(one, 2)
    thread.join(30)
    raise errors[0]


@case("psycopg.errors.DeadlockDetected", TRANSIENT, "SQLSTATE 40P01")
def pg_deadlock(w):
    with _rows(lambda: _pg(w)) as (one, two):
        for connection in (one, two):
            connection.execute("SET deadlock_timeout = '20ms'")
            connection.autocommit = False
        _deadlock(one, two)


@case("psycopg.errors.SerializationFailure", TRANSIENT, "SQLSTATE 40001 (transaction rolled back)")
def pg_serialization(w):
    with _rows(lambda: _pg(w)) as (one, two):
        one.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        one.autocommit = False
        one.execute("SELECT * FROM pair")
        two.execute("UPDATE pair SET n = 5")
        one.execute("UPDATE pair SET n = 6")


@case("psycopg.errors.LockNotAvailable", TRANSIENT, "SQLSTATE 55P03")
def pg_lock_not_available(w):
    with _rows(lambda: _pg(w)) as (one, two):
        two.autocommit = False
        two.execute("SELECT * FROM pair FOR UPDATE")
        one.execute("SELECT * FROM pair FOR UPDATE NOWAIT")


for statement, raises, kind, why in [
    ("SET statement_timeout = 10; SELECT pg_sleep(5)", "QueryCanceled", TRANSIENT, "SQLSTATE 57014"),
    ("SELECT pg_terminate_backend(pg_backend_pid())", "AdminShutdown", TRANSIENT, "SQLSTATE 57P01"),
    ("CREATE TEMP TABLE u (x INT UNIQUE); INSERT INTO u VALUES (1), (1)", "UniqueViolation", PERMANENT, "23505"),
    ("CREATE TEMP TABLE v (x INT NOT NULL); INSERT INTO v VALUES (NULL)", "NotNullViolation", PERMANENT, "23502"),
    ("SELECT * FROM nowhere", "UndefinedTable", PERMANENT, "42P01"),
    ("SELEKT", "SyntaxError", PERMANENT, "42601"),
    ("SELECT 1 / 0", "DivisionByZero", PERMANENT, "22012"),
    ("SELECT 'x'::int", "InvalidTextRepresentation", PERMANENT, "22P02"),
    ("SET default_transaction_read_only = on; CREATE TABLE r (x INT)", "ReadOnlySqlTransaction", TRANSIENT, "25006"),
    ("SET ROLE pg_monitor; CREATE TABLE s (x INT)", "InsufficientPrivilege", PERMANENT, "42501"),
    ("DO $$ BEGIN RAISE EXCEPTION 'no'; END $$", "RaiseException", UNCLASSIFIED, "SQLSTATE P0001"),
]:

    @case(f"psycopg.errors.{raises}", kind, why)
    def pg_statement(w, statement=statement):
        with _pg(w) as connection:
            for part in [statement] if "$$" in statement else statement.split("; "):
                connection.execute(part)


@case("psycopg.errors.InFailedSqlTransaction", UNCLASSIFIED, "SQLSTATE 25P02")
def pg_in_failed_transaction(w):
    with _pg(w) as connection:
        connection.autocommit = False
        with suppress(psycopg.Error):
            connection.execute("SELECT 1 / 0")
        connection.execute("SELECT 1")


@case("psycopg.OperationalError", TRANSIENT, "psycopg.OperationalError is an operational error")
def pg_connection_closed(w):
    with _pg(w) as connection:
        connection.close()
        connection.execute("SELECT 1")


@case("psycopg.OperationalError", TRANSIENT, "an operational error")
def pg_refused(w):
    psycopg.connect(host="127.0.0.1", port=w.closed_port)


@case("psycopg.errors.ConnectionTimeout", TRANSIENT, "an operational error")
def pg_connect_timeout(w):
    psycopg.connect(host="127.0.0.1", port=w.silent_port, connect_timeout=2)


@case("psycopg.ProgrammingError", PERMANENT, "a programming error")
def pg_wrong_placeholders(w):
    with _pg(w) as connection:
        connection.execute("SELECT %s, %s", [1])


# MariaDB ----------------------------------------------------------------------------------------------


def _my(w: Any, **options: Any) -> Any:
    url = sa.make_url(w.mariadb)
    return closing(
        pymysql.connect(
            host=url.host, port=url.port, user=options.pop("user", url.username), database=url.database,
            autocommit=True, **options,
        )
    )  # fmt: skip


@case("pymysql.err.OperationalError", TRANSIENT, "MySQL error 1213")
def my_deadlock(w):
    with _rows(lambda: _my(w)) as (one, two):
        for connection in (one, two):
            connection.autocommit(False)
        _deadlock(one, two)


@case("pymysql.err.OperationalError", TRANSIENT, "MySQL error 1205")
def my_lock_wait_timeout(w):
    with _rows(lambda: _my(w)) as (one, two):
        two.autocommit(False)
        two.cursor().execute("SELECT * FROM pair FOR UPDATE")
        one.cursor().execute("SET innodb_lock_wait_timeout = 0")
        one.cursor().execute("UPDATE pair SET n = 1")


for statement, raises, kind, why in [
    ("SET max_statement_time = 0.01; SELECT SLEEP(5), BENCHMARK(1e9, MD5(1))", "OperationalError", TRANSIENT, "1969"),
    ("SELECT * FROM nowhere", "ProgrammingError", PERMANENT, "MySQL error 1146"),
    ("SELECT nothing FROM mysql.user", "OperationalError", PERMANENT, "MySQL error 1054"),
    ("SELEKT", "ProgrammingError", PERMANENT, "MySQL error 1064"),
    ("USE nowhere", "OperationalError", PERMANENT, "MySQL error 1049"),
    (
        "CREATE TEMPORARY TABLE u (x INT UNIQUE); INSERT INTO u VALUES (1), (1)",
        "IntegrityError",
        PERMANENT,
        "integrity",
    ),
    ("CREATE TEMPORARY TABLE v (x CHAR(2)); INSERT INTO v VALUES ('long')", "DataError", PERMANENT, "1406"),
    ("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 30001", "OperationalError", UNCLASSIFIED, "MySQL error 30001"),
]:

    @case(f"pymysql.err.{raises}", kind, why)
    def my_statement(w, statement=statement):
        with _my(w) as connection:
            for part in statement.split("; "):
                connection.cursor().execute(part)


@case("pymysql.err.OperationalError", TRANSIENT, "MySQL error ")
def my_connection_killed(w):
    with _my(w) as connection, _my(w) as other:
        other.cursor().execute(f"KILL {connection.thread_id()}")
        connection.cursor().execute("SELECT 1")


@case("pymysql.err.InterfaceError", TRANSIENT, "an interface error")
def my_connection_closed(w):
    with _my(w) as connection:
        connection._force_close()
        connection.cursor().execute("SELECT 1")


@case("pymysql.err.OperationalError", TRANSIENT, "MySQL error 2003")
def my_refused(w):
    pymysql.connect(host="127.0.0.1", port=w.closed_port)


@case("pymysql.err.OperationalError", TRANSIENT, "MySQL error 2013")
def my_read_timeout(w):
    pymysql.connect(host="127.0.0.1", port=w.silent_port, read_timeout=1, connect_timeout=1)


@case("pymysql.err.OperationalError", PERMANENT, "MySQL error 1045")
def my_access_denied(w):
    with _my(w, user="nobody", password="wrong"):
        pass


# SQLAlchemy -------------------------------------------------------------------------------------------


def _sa(url: str, statement: str, **options: Any) -> None:
    engine = sa.create_engine(url, **options)
    try:
        with engine.connect() as connection:
            connection.execute(sa.text(statement))
    finally:
        engine.dispose()


@case("sqlalchemy.exc.OperationalError", TRANSIENT, "inside sqlalchemy.exc.OperationalError")
def sa_refused(w):
    _sa(f"postgresql+psycopg://x@127.0.0.1:{w.closed_port}/x", "SELECT 1")


@case("sqlalchemy.exc.OperationalError", TRANSIENT, "SQLAlchemy found the connection broken")
def sa_terminated(w):
    _sa(w.postgres, "SELECT pg_terminate_backend(pg_backend_pid())")


@case("sqlalchemy.exc.ProgrammingError", PERMANENT, "SQLSTATE 42P01")
def sa_pg_undefined_table(w):
    _sa(w.postgres, "SELECT * FROM nowhere")


@case("sqlalchemy.exc.OperationalError", TRANSIENT, "SQLSTATE 57014")
def sa_pg_statement_timeout(w):
    _sa(w.postgres, "SELECT pg_sleep(5)", connect_args={"options": "-c statement_timeout=20"})


@case("sqlalchemy.exc.OperationalError", PERMANENT, "MySQL error 1054")
def sa_my_unknown_column(w):
    _sa(w.mariadb, "SELECT nothing FROM mysql.user")


@case("sqlalchemy.exc.OperationalError", PERMANENT, "SQLite")
def sa_sqlite_no_such_table(w):
    _sa("sqlite://", "SELECT * FROM nowhere")


@case("sqlalchemy.exc.TimeoutError", TRANSIENT, "a shortage that passes")
def sa_pool_exhausted(w):
    engine = sa.create_engine("sqlite://", poolclass=sa.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with engine.connect():
        engine.connect()


@case("sqlalchemy.exc.NoResultFound", PERMANENT, "InvalidRequestError is a programming error")
def sa_no_result(w):
    with sa.create_engine("sqlite://").connect() as connection:
        connection.execute(sa.text("SELECT 1 WHERE 1 = 0")).one()


@case("sqlalchemy.exc.ArgumentError", PERMANENT, "a programming error")
def sa_no_url(w):
    sa.create_engine("not a url")


@case("sqlalchemy.exc.StatementError", PERMANENT, "TypeError is a programming error, inside")
def sa_wrong_parameter(w):
    table = sa.Table("t", sa.MetaData(), sa.Column("at", sa.DateTime))
    engine = sa.create_engine("sqlite://")
    table.create(engine)
    with engine.connect() as connection:
        connection.execute(sa.insert(table).values(at="soon"))


class Base(orm.DeclarativeBase):
    """The tables of these cases."""


class Thing(Base):
    """A row that counts its versions."""

    __tablename__ = "thing"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    version: orm.Mapped[int] = orm.mapped_column()
    n: orm.Mapped[int] = orm.mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as SQLAlchemy wants it


@case("sqlalchemy.orm.exc.StaleDataError", TRANSIENT, "a conflict with another writer")
def sa_stale(w):
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(thing := Thing(id=1, n=1))
        session.flush()
        session.execute(sa.text("UPDATE thing SET version = 9 WHERE version = 1"))
        thing.n = 2
        session.flush()


# Redis ------------------------------------------------------------------------------------------------


def _redis(w: Any, **options: Any) -> Any:
    return redis.Redis(**{"port": w.redis.port, "retry": Retry(NoBackoff(), 0)} | options)


@contextmanager
def _configured(w: Any, **settings: str) -> Iterator[Any]:
    client = _redis(w)
    before = {name: client.config_get(name)[name] for name in settings}
    for name, value in settings.items():
        client.config_set(name, value)
    try:
        yield client
    finally:
        for name, value in before.items():
            client.config_set(name, value)


@case("redis.exceptions.ConnectionError", TRANSIENT, "redis.exceptions.ConnectionError is a connection error")
def redis_refused(w):
    _redis(w, port=w.closed_port).ping()


@case("redis.exceptions.ConnectionError", TRANSIENT, "a connection error")
def redis_unknown_host(w):
    _redis(w, host="no-such-host.invalid").ping()


@case("redis.exceptions.TimeoutError", TRANSIENT, "a timeout")
def redis_timeout(w):
    _redis(w, port=w.silent_port, socket_timeout=0.1).ping()


@case("redis.exceptions.ResponseError", PERMANENT, "an error reply")
def redis_wrong_type(w):
    client = _redis(w)
    client.set("text", "x")
    client.lpush("text", "y")


@case("redis.exceptions.OutOfMemoryError", TRANSIENT, "a shortage that passes")
def redis_out_of_memory(w):
    with _configured(w, maxmemory="1") as client:
        client.set("x", "y")


@case("redis.exceptions.AuthenticationError", PERMANENT, "an error of configuration")
def redis_no_password(w):
    admin = _redis(w)
    admin.config_set("requirepass", "xyzzy")
    try:
        _redis(w).ping()
    finally:
        admin.config_set("requirepass", "")


@case("redis.exceptions.NoPermissionError", PERMANENT, "ResponseError is an error reply")
def redis_no_permission(w):
    _redis(w).acl_setuser("reader", enabled=True, nopass=True, categories=["+@read", "+@connection"], keys=["*"])
    _redis(w, username="reader", password="any").set("x", "y")


@contextmanager
def _replica(w: Any) -> Iterator[Any]:
    client = _redis(w)
    client.replicaof("127.0.0.1", w.closed_port)
    try:
        yield client
    finally:
        client.replicaof("NO", "ONE")


@case("redis.exceptions.ReadOnlyError", TRANSIENT, "a shortage that passes")
def redis_read_only(w):
    with _replica(w) as client:
        client.set("x", "y")


@case("redis.exceptions.MasterDownError", TRANSIENT, "a connection error")
def redis_master_down(w):
    with _configured(w, **{"replica-serve-stale-data": "no"}), _replica(w) as client:
        client.get("x")


@case("redis.exceptions.ResponseError", TRANSIENT, "Redis error NOREPLICAS")
def redis_no_replicas(w):
    with _configured(w, **{"min-replicas-to-write": "1"}) as client:
        client.set("x", "y")


@case("redis.exceptions.ResponseError", TRANSIENT, "Redis error BUSY")
def redis_busy(w):
    with _configured(w, **{"lua-time-limit": "1"}):
        script = threading.Thread(target=lambda: _quietly(_redis(w).eval, "while true do end", 0))
        script.start()
        client = _redis(w)
        try:
            for _ in range(1000):
                client.ping()
                time.sleep(0.005)  # until the script has begun
        finally:
            client.script_kill()
            script.join(10)


def _quietly(call: Callable[..., Any], *args: Any) -> None:
    with suppress(redis.RedisError):
        call(*args)


@case("redis.exceptions.NoScriptError", UNCLASSIFIED, "of unknown cause")
def redis_no_script(w):
    _redis(w).evalsha("0" * 40, 0)


@case("redis.exceptions.WatchError", TRANSIENT, "a conflict with another writer")
def redis_watch(w):
    client = _redis(w)
    with client.pipeline() as pipeline:
        pipeline.watch("n")
        client.incr("n")
        pipeline.multi()
        pipeline.incr("n")
        pipeline.execute()


@case("redis.exceptions.LockError", TRANSIENT, "a shortage that passes")
def redis_lock_taken(w):
    client = _redis(w)
    client.set("locked", "by another", ex=5)
    with client.lock("locked", blocking_timeout=0.05):
        pass


@case("redis.exceptions.DataError", PERMANENT, "a programming error")
def redis_wrong_argument(w):
    _redis(w).set("x", object())
