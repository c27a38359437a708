"""Ledgers of every dialect: one migrated database per dialect and session, emptied before each test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import sqlalchemy as sa

from tests.conftest import DIALECTS
from tests.ledger.failing import add_failures
from tests.ledger.kit import empty, opened
from tests.ledger.stock import fill
from tests.ledger.wire import Proxy, Wire, lose_commits_of_sqlite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.ledger import Ledger

SERVERS = {"postgresql": "postgres_server", "mariadb": "mariadb_server"}


@pytest.fixture(scope="session")
def make_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Make an empty database of a dialect; the whole session goes with it, so nothing is dropped."""

    def make(dialect: str) -> str:
        if dialect == "sqlite":
            return f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.db'}"
        lent = os.environ.get(f"DURABLE_TEST_{dialect.upper()}")  # `python -m tests.mutants` lends its own
        return _another(lent) if lent else request.getfixturevalue(SERVERS[dialect]).database()

    return make


def _another(server: str) -> str:
    """A fresh database on a server that somebody else started."""
    name = f"lent_{uuid4().hex[:12]}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def migrated(make_database: Callable[[str], str]) -> Iterator[Callable[[str], Ledger]]:
    """The session's ledger of a dialect."""
    ledgers: dict[str, Ledger] = {}

    def ledger_of(dialect: str) -> Ledger:
        if dialect not in ledgers:
            ledgers[dialect] = opened(make_database(dialect))
            ledgers[dialect].migrate()
        return ledgers[dialect]

    yield ledger_of
    for ledger in ledgers.values():
        ledger.db.dispose()


@pytest.fixture
def fresh(make_database: Callable[[str], str]) -> Iterator[Callable[[str], Ledger]]:
    """A ledger in which no other test has left dead rows: a database counts those as it reads."""
    ledgers: list[Ledger] = []

    def ledger_of(dialect: str) -> Ledger:
        ledgers.append(opened(make_database(dialect)))
        ledgers[-1].migrate()
        return ledgers[-1]

    yield ledger_of
    for ledger in ledgers:
        ledger.db.dispose()


@pytest.fixture(scope="session")
def stocked(make_database: Callable[[str], str]) -> Iterator[Callable[[str, int], Ledger]]:
    """The session's ledger of a dialect with so many finished rows, and some live ones that are not due."""
    ledgers: dict[tuple[str, int], Ledger] = {}

    def ledger_of(dialect: str, finished: int) -> Ledger:
        if (dialect, finished) not in ledgers:
            ledger = ledgers[dialect, finished] = opened(make_database(dialect))
            ledger.migrate()
            fill(ledger, finished)
        return ledgers[dialect, finished]

    yield ledger_of
    for ledger in ledgers.values():
        ledger.db.dispose()


@pytest.fixture(scope="session")
def failing(make_database: Callable[[str], str]) -> Iterator[Callable[[str], Ledger]]:
    """The session's ledger of a dialect in which each of many tasks has failed, and one in twenty is dead."""
    ledgers: dict[str, Ledger] = {}

    def ledger_of(dialect: str) -> Ledger:
        if dialect not in ledgers:
            ledger = ledgers[dialect] = opened(make_database(dialect))
            ledger.migrate()
            fill(ledger, 20_000)
            add_failures(ledger)
        return ledgers[dialect]

    yield ledger_of
    for ledger in ledgers.values():
        ledger.db.dispose()


@pytest.fixture(params=DIALECTS)
def ledger(request: pytest.FixtureRequest, migrated: Callable[[str], Ledger]) -> Ledger:
    """An empty ledger, in turn of every dialect."""
    found = migrated(request.param)
    empty(found)
    return found


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def lossy(ledger: Ledger, wire: Wire) -> Iterator[Ledger]:
    """The same ledger over a wire that can lose replies."""
    url = ledger.db.url
    proxy = None
    if ledger.dialect.name == "sqlite":
        far = opened(url.render_as_string(hide_password=False))
        lose_commits_of_sqlite(far.db.engine, wire)
    else:
        proxy = Proxy(wire, url)
        far = opened(proxy.proxied_url)
    far.db.run(lambda c: c.execute(sa.select(1)))  # connected before anything is lost
    yield far
    wire.lose(0)
    far.db.dispose()
    if proxy:
        proxy.close()


def _of(dialect: str) -> Callable[..., Ledger]:
    @pytest.fixture
    def one(migrated: Callable[[str], Ledger]) -> Ledger:
        found = migrated(dialect)
        empty(found)
        return found

    return one


sqlite_ledger = _of("sqlite")
postgres_ledger = _of("postgresql")
mariadb_ledger = _of("mariadb")
