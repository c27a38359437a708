"""An app with an empty SQLite ledger, and a process that runs its command again and again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from celery_durable.ledger import Ledger
from celery_durable.settings import Settings
from tests.cli.kit import Shop

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def zygote() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def shop(tmp_path: Path, zygote: subprocess.Popen[str]) -> Shop:
    return Shop(tmp_path, zygote)


@pytest.fixture
def ledger(shop: Shop) -> Ledger:
    ledger = Ledger.open(Settings(ledger_url=shop.url))
    ledger.migrate()
    return ledger
