"""The worker's container: Celery's, with celery-durable in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import celery
from pytest_celery import CeleryTestContainer, CeleryWorkerContainer

from tests.smoke import app, tasks

if TYPE_CHECKING:
    from types import ModuleType


class DurableWorkerContainer(CeleryWorkerContainer):
    """Stock but for its image (`Dockerfile`), its app and its tasks."""

    @classmethod
    def version(cls) -> str:
        return celery.__version__

    @classmethod
    def worker_name(cls) -> str:
        return "durable"

    @classmethod
    def worker_queue(cls) -> str:
        return "smoke"

    @classmethod
    def app_module(cls) -> ModuleType:
        return app

    @classmethod
    def tasks_modules(cls) -> set:
        return {*super().tasks_modules(), tasks}

    @classmethod
    def initial_content(cls, **options) -> dict:
        packages = {"tests/__init__.py": b"", "tests/smoke/__init__.py": b""}
        return super().initial_content(**options) | packages


class PostgresContainer(CeleryTestContainer):
    """The ledger's server."""

    @property
    def inside(self) -> str:
        """The server's URL for containers, without a database."""
        return f"postgresql+psycopg://durable@{self.attrs['Config']['Hostname']}"

    @property
    def outside(self) -> str:
        """The same for the tests."""
        return f"postgresql+psycopg://durable@127.0.0.1:{self._wait_port('5432/tcp')}"

    @property
    def ready_prompt(self) -> str:
        return "database system is ready to accept connections"
