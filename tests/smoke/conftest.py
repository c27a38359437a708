"""pytest-celery's fixtures with durable tasks: the ledger on PostgreSQL, workers with celery-durable in them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from pytest_celery import DEFAULT_WORKER_CONTAINER_TIMEOUT, DEFAULT_WORKER_VOLUME
from pytest_docker_tools import build, container, fxtr, network

from celery_durable.ledger import Ledger
from celery_durable.settings import Settings
from tests.smoke.local.plugin import docker_client, pytest_report_header  # noqa: F401 - see there
from tests.smoke.stage import Stage
from tests.smoke.worker import DurableWorkerContainer, PostgresContainer

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
WITNESS = """
    CREATE TABLE witness (n serial PRIMARY KEY, task_id text NOT NULL, what text NOT NULL,
                          at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE TABLE gate (name text PRIMARY KEY)
"""
#: Impatient, so that recoveries are seen soon.
FAST = {"durable_lease": 3.0, "durable_sweep_interval": 0.25, "durable_republish_after": 1.5}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class LedgerUrls:
    """One database, by its address in containers and in the tests."""

    inside: str
    outside: str


default_pytest_celery_network = network(scope="session")

ledger_server = container(
    image="postgres:17",
    ports={"5432/tcp": None},
    environment={"POSTGRES_USER": "durable", "POSTGRES_HOST_AUTH_METHOD": "trust"},
    network="{default_pytest_celery_network.name}",
    wrapper_class=PostgresContainer,
    timeout=60,
    scope="session",
)

celery_base_worker_image = build(
    path=str(ROOT),
    dockerfile="tests/smoke/Dockerfile",
    tag="celery-durable/smoke:dev",
    buildargs=DurableWorkerContainer.buildargs(),
)

default_worker_container = container(
    image="{celery_base_worker_image.id}",
    environment=fxtr("default_worker_env"),
    network="{default_pytest_celery_network.name}",
    volumes={"{default_worker_volume.name}": DEFAULT_WORKER_VOLUME},
    wrapper_class=DurableWorkerContainer,
    timeout=DEFAULT_WORKER_CONTAINER_TIMEOUT,
    command=fxtr("default_worker_command"),
)


@pytest.fixture(scope="session")
def default_worker_container_session_cls() -> type[DurableWorkerContainer]:
    return DurableWorkerContainer


@pytest.fixture
def default_worker_container_cls() -> type[DurableWorkerContainer]:
    return DurableWorkerContainer


@pytest.fixture
def worker_options() -> list[str]:
    """More words of the workers' command lines; tests override it."""
    return ["-c", "2"]


@pytest.fixture
def default_worker_command(default_worker_container_cls, worker_options) -> list[str]:
    return default_worker_container_cls.command(*worker_options, "--without-mingle")


@pytest.fixture(scope="session")
def ledger_template(ledger_server) -> str:
    """The name of a database with the ledger's tables, those of other tests are copies of."""
    execute(f"{ledger_server.outside}/postgres", "CREATE DATABASE smoke")
    url = f"{ledger_server.outside}/smoke"
    ledger = Ledger.open(Settings.read({"durable_ledger_url": url}))
    ledger.migrate()
    ledger.db.dispose()
    execute(url, WITNESS)
    return "smoke"


@pytest.fixture
def ledger_urls(ledger_server, ledger_template) -> LedgerUrls:
    """An empty ledger of this test."""
    name = f"{ledger_template}_{next(_numbers)}"
    execute(f"{ledger_server.outside}/postgres", f"CREATE DATABASE {name} TEMPLATE {ledger_template}")
    return LedgerUrls(f"{ledger_server.inside}/{name}", f"{ledger_server.outside}/{name}")


@pytest.fixture
def default_worker_env(default_worker_env, ledger_urls) -> dict[str, str]:
    return default_worker_env | {"DURABLE_LEDGER_URL": ledger_urls.inside}


@pytest.fixture
def celery_backend_cluster() -> None:
    """No server: the rows are the results."""


@pytest.fixture
def conf() -> dict[str, object]:
    """More settings; tests override it."""
    return {}


@pytest.fixture
def default_worker_app(default_worker_app, conf):
    app = default_worker_app
    settings = {"result_backend": "durable://", "broker_connection_retry_on_startup": True} | FAST | conf
    if str(app.conf.broker_url).startswith("redis"):
        settings.setdefault("broker_transport_options", {"polling_interval": 0.1})
    for name, value in settings.items():
        setattr(app.conf, name, value)  # what is set so is handed to the worker
    return app


@pytest.fixture
def stage(celery_setup, ledger_urls) -> Iterator[Stage]:
    """The setup of pytest-celery with a view of the ledger; what happened is audited at the end."""
    celery_setup.app.conf.durable_ledger_url = ledger_urls.outside
    stage = Stage(celery_setup, ledger_urls.outside)
    yield stage
    stage.close()


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement)
