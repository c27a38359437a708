"""Apps on a private Redis and a SQLite ledger; everything they hold open is closed afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.worker.kit import closed, make_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from celery import Celery

    from tests.services import Redis


@pytest.fixture
def broker_url(redis_server: Redis) -> str:
    """An empty Redis database."""
    return redis_server.db()


@pytest.fixture
def make(tmp_path: Path, broker_url: str) -> Iterator[Callable[..., Celery]]:
    """Make an app: `make(**conf)`, with `ledger_url=` and `broker=` where they shall be others."""
    made: list[Celery] = []

    def make_one(*, ledger_url: str | Path = tmp_path / "ledger.db", broker: str = broker_url, **conf: Any) -> Celery:
        made.append(make_app(ledger_url, broker, **conf))
        return made[-1]

    yield make_one
    for app in made:
        closed(app)


@pytest.fixture
def app(make: Callable[..., Celery]) -> Celery:
    """An app without a result backend."""
    return make()


@pytest.fixture
def results(make: Callable[..., Celery], broker_url: str) -> Celery:
    """An app that stores its results in Redis."""
    return make(result_backend=broker_url)
