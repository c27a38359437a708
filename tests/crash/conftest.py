"""Stages for crash tests, by broker and ledger."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.kit import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Make a stage on real servers: `stage("redis", "postgresql", durable_lease=5)`."""
    with ExitStack() as closing:

        def make(broker: str = "redis", ledger: str = "sqlite", **conf: Any) -> Stage:
            url = f"sqlite:///{tmp_path / 'ledger.db'}"
            if ledger != "sqlite":
                server = request.getfixturevalue({"postgresql": "postgres_server", "mariadb": "mariadb_server"}[ledger])
                url = server.database()
            server = request.getfixturevalue(f"{broker}_server")
            where = server.db() if broker == "redis" else server.vhost()
            made = Stage(tmp_path, {"broker_url": where}, url, **conf)
            closing.callback(made.close)
            return made

        yield make
