"""A stock app is observed, not one task of it changed: its worker is a process of its own, its ledger stops mid-way."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from celery_durable import observer, observing
from celery_durable.ledger import Ledger
from celery_durable.wiring import plugin
from tests.crash.command import told, told_json
from tests.crash.fleet import PATIENCE, ROOT
from tests.waiting import wait_until
from tests.worker.kit import closed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.services import Postgres, Redis

APP = """
from celery import Celery
import celery_durable

app = Celery("stock", broker={broker!r}, backend={backend!r}, set_as_current=False)
app.conf.update(durable_ledger_url={ledger!r}, durable_observe=True, broker_connection_retry_on_startup=True)
celery_durable.install(app)

@app.task(name="shop.ship", shared=False)
def ship(order):
    if order % 2:
        raise ValueError(f"order {{order}} has no address")
    if order % 3 == 0:
        raise ConnectionError(f"the carrier did not answer for order {{order}}")
    return order
"""


@pytest.fixture
def app(tmp_path: Path, redis_server: Redis, postgres_server: Postgres) -> Iterator[Any]:
    """The app as a publisher has it."""
    urls = {"broker": redis_server.db(), "backend": redis_server.db(), "ledger": postgres_server.database()}
    (tmp_path / "stockshop.py").write_text(textwrap.dedent(APP).format(**urls), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("stockshop", tmp_path / "stockshop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.app
    observer.farewell()
    observing._apps.clear()
    closed(module.app)


def test_failures_of_a_stock_app_show_in_groups_and_it_runs_on_without_its_ledger(
    app: Any, tmp_path: Path, postgres_server: Postgres
) -> None:
    Ledger.open(plugin(app).settings).migrate()
    shop, ship = SimpleNamespace(app=app), app.tasks["shop.ship"]

    def groups() -> dict[str, int]:
        return {g["exception"]: g["count"] for g in told_json(shop, "failures", "--group")}

    def run(orders: range) -> list[Any]:
        return [result.get(timeout=PATIENCE, propagate=False) for result in [ship.delay(n) for n in orders]]

    with working(tmp_path):
        # Given work of which some fails in two ways
        before = run(range(1, 13))
        wait_until(lambda: groups() == {"ValueError": 6, "ConnectionError": 2}, PATIENCE, "not all failures are seen")
        text = told(shop, "failures", "--group")
        assert "6 failures  6 tasks dead now  permanent" in text
        assert "2 failures  2 tasks dead now  transient" in text
        assert "ConnectionError in shop.ship" in text
        assert max(map(len, text.splitlines())) <= 100

        # When the ledger stops, then the work runs as before
        postgres_server.stop()
        without = run(range(1, 13))
        assert [(type(a), str(a)) for a in without] == [(type(b), str(b)) for b in before]

        # And when it is back, what happens is seen again, with what was seen meanwhile
        postgres_server.start()
        run(range(1, 3))
        wait_until(lambda: groups() == {"ValueError": 13, "ConnectionError": 4}, PATIENCE, "it does not see again")
    assert {r["observed"] for r in told_json(shop, "ls", "--limit", "100")} == {True}


class working:  # noqa: N801 - reads as a verb
    """A worker with two pool processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        words = ("-m", "celery", "-A", "stockshop", "worker", "-c", "2", "--without-mingle", "--without-gossip")
        with (self.folder / "worker.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words], cwd=self.folder, stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}", "PYTHONWARNINGS": "ignore"},
            )  # fmt: skip

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        print((self.folder / "worker.log").read_text(errors="replace")[-4000:])
