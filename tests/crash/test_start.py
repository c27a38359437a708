"""A worker without a usable ledger refuses to start: one clear line, no traceback, at once."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from celery_durable.ledger import Ledger
from celery_durable.settings import Settings
from tests.crash.fleet import ROOT
from tests.crash.kit import FAST, environment

if TYPE_CHECKING:
    from pathlib import Path


def refusal(folder: Path, broker_url: str, ledger_url: str, **conf: object) -> str:
    """Start a worker that must refuse, and return its one line."""
    command = [sys.executable, "-m", "celery", "-A", "tests.crash.app", "worker", "-n", "w@crash", "-c", "1"]
    conf = FAST | {"broker_url": broker_url, "durable_ledger_url": ledger_url} | conf
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment(conf, folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert done.returncode == 1, said
    assert "Traceback" not in done.stderr
    assert len(said) == 1, said
    assert said[0].startswith("celery-durable: ")
    return said[0]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("no url at all", "is no database URL"),
        ("oracle://db/shop", "sqlite, postgresql, mysql or mariadb"),
        ("postgresql+nodriver://db/shop", "knows no such driver"),
        ("sqlite:////nowhere/at/all/ledger.db", "unable to open database file"),
    ],
)
def test_a_ledger_url_that_cannot_be_used(redis_server, tmp_path: Path, url: str, words: str) -> None:
    assert words in refusal(tmp_path, redis_server.url, url)


def test_an_unknown_setting(redis_server, tmp_path: Path) -> None:
    line = refusal(tmp_path, redis_server.url, f"sqlite:///{tmp_path}/ledger.db", durable_leese=3)
    assert "did you mean durable_lease" in line


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_database_that_is_down(request, redis_server, tmp_path: Path, kind: str) -> None:
    server = request.getfixturevalue(f"{kind}_server")
    url = server.database()
    server.kill()
    assert "did not answer" in refusal(tmp_path, redis_server.url, url)


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_database_without_tables(request, redis_server, tmp_path: Path, kind: str) -> None:
    url = request.getfixturevalue(f"{kind}_server").database()
    assert "durable migrate" in refusal(tmp_path, redis_server.url, url)


def test_a_schema_of_another_version(redis_server, ledger_url: str, tmp_path: Path) -> None:
    ledger = Ledger.open(Settings(ledger_url=ledger_url))
    ledger.migrate()
    ledger.db.run(lambda c: c.exec_driver_sql("UPDATE durable_version SET version_num = '9999'"))
    ledger.db.dispose()
    assert "schema version 9999" in refusal(tmp_path, redis_server.url, ledger_url)
