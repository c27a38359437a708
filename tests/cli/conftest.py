"""An app with an empty SQLite ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_durable.ledger import Ledger
from celery_durable.settings import Settings
from tests.cli.kit import Shop

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def ledger(shop: Shop) -> Ledger:
    ledger = Ledger.open(Settings(ledger_url=shop.url))
    ledger.migrate()
    return ledger
