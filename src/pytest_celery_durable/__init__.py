"""The pytest plugin of celery-durable: fixtures to test durable tasks, with no server.

pytest loads it in every project where celery-durable is installed: it imports nothing before a fixture is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery import Celery

    from celery_durable.testing import Durable, Effects

__all__ = ["durable", "durable_app", "durable_effects", "durable_worker"]


@pytest.fixture
def durable_app() -> Celery:
    """A new app; a project that tests its own lets a fixture of this name return that."""
    from celery import Celery

    return Celery("durable-test", broker="memory://", set_as_current=False)


@pytest.fixture
def durable(durable_app: Celery, tmp_path: Path) -> Iterator[Durable]:
    """The app in a sandbox: a SQLite ledger in ``tmp_path``, a broker of files beside it, a clock that can be moved."""
    from celery_durable.testing import Durable

    folder = tmp_path / "durable"
    folder.mkdir()
    with Durable(durable_app, folder) as kit:
        yield kit


@pytest.fixture
def durable_effects(tmp_path: Path) -> Effects:
    """Effects in a file, which survive the process that is killed."""
    from celery_durable.testing import Effects

    return Effects(tmp_path / "durable-effects")


@pytest.fixture
def durable_worker(durable: Durable) -> Iterator[Any]:
    """A real worker of the app in threads of this process, on the sandbox's ledger and broker."""
    from celery_durable.testing.working import working

    with working(durable) as worker:
        yield worker
