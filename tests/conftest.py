"""Fixtures for all tests: private servers, ledgers and brokers of every kind, a printed seed."""

from __future__ import annotations

import os
import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from celery import _state
from kombu.transport.filesystem import Transport as FilesystemTransport

from tests.services import Browser, MariaDB, MissingServerError, Postgres, RabbitMQ, Redis, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIALECTS = ["sqlite", "postgresql", "mariadb"]
BROKERS = ["filesystem", "redis", "rabbitmq"]
S = TypeVar("S", bound=Server)
T = TypeVar("T")

collect_ignore = ["smoke"]  # a run of its own, with settings of its own (`make smoke`)

_shared: list[Server] = []  # the session's servers in this process


@dataclass(frozen=True)
class Broker:
    """An empty broker of one test: `app.conf.update(broker.conf)`."""

    name: str
    url: str
    conf: dict[str, Any]
    server: Server | None  # None for the filesystem


def build(kind: type[T]) -> T:
    """Make what may be missing on this machine; without it skip aloud, and fail where CI promised it."""
    try:
        return kind()
    except MissingServerError as error:
        missing = str(error)
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have every server: {missing}", pytrace=False)
    pytest.skip(f"NOT TESTED, no {getattr(kind, 'name', kind)}: {missing}")


def _serve(kind: type[S]) -> Iterator[S]:
    """Start a server for the session."""
    with build(kind) as server:
        _shared.append(server)
        yield server
        _shared.remove(server)


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    """Tasks of a test are those of its own apps: Celery gives shared ones to every later app of the process."""
    finalizers = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(finalizers)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """The session's Redis (one per xdist worker, like all of these)."""
    yield from _serve(Redis)


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQ]:
    """The session's RabbitMQ."""
    yield from _serve(RabbitMQ)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """The session's PostgreSQL."""
    yield from _serve(Postgres)


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDB]:
    """The session's MariaDB."""
    yield from _serve(MariaDB)


@pytest.fixture(scope="session")
def browser_driver() -> Iterator[Browser]:
    """The session's driver of a headless browser."""
    yield from _serve(Browser)


@pytest.fixture(autouse=True)
def _revived_servers() -> Iterator[None]:
    """A test may kill, stop or pause a shared server: the next one finds it answering."""
    yield
    for server in _shared:
        _revive(server)


def _revive(server: Server) -> None:
    server.resume()
    server.start()


@contextmanager
def ledger_of(request: pytest.FixtureRequest, dialect: str, folder: Path) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, empty database; dropped afterwards."""
    if dialect == "sqlite":
        yield f"sqlite:///{folder / 'ledger.db'}"
        return
    server = request.getfixturevalue({"postgresql": "postgres_server", "mariadb": "mariadb_server"}[dialect])
    url = server.database()
    yield url
    _revive(server)
    server.drop(url)


@pytest.fixture(params=DIALECTS)
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, empty database, in turn of every dialect; dropped afterwards."""
    with ledger_of(request, request.param, tmp_path) as url:
        yield url


def broker_of(request: pytest.FixtureRequest, name: str, folder: Path) -> Broker:
    """An empty broker."""
    if name == "filesystem":
        return _filesystem_broker(folder / "broker")
    server = request.getfixturevalue(f"{name}_server")
    url = server.db() if name == "redis" else server.vhost()
    return Broker(name, url, {"broker_url": url}, server)


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Broker:
    """An empty broker, in turn of every kind that we promise to work with."""
    return broker_of(request, request.param, tmp_path)


def _filesystem_broker(folder: Path) -> Broker:
    # kombu remembers bindings per process and would not write them again into the next test's folder
    FilesystemTransport.global_state.clear()
    for name in ["messages", "processed", "control"]:
        (folder / name).mkdir(parents=True)
    options = {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),
        "processed_folder": str(folder / "processed"),
        "control_folder": str(folder / "control"),
    }
    url = "filesystem://"
    return Broker("filesystem", url, {"broker_url": url, "broker_transport_options": options}, None)


@pytest.fixture
def seed() -> int:
    """A seed for `random.Random`; printed, so that a failure shows it, and set by DURABLE_SEED."""
    value = int(os.environ.get("DURABLE_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {value}: repeat with DURABLE_SEED={value}")
    return value
