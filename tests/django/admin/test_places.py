"""The admin over ledgers in every database, in one beside the project's own, and in none of Django's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery, _state
from django.core.management import call_command
from django.test import Client

from celery_durable.wiring import plugin
from tests.django.admin.conftest import LOOK, MOVE, user
from tests.django.admin.kit import history, seed
from tests.django.admin.test_pages import BASE, keys, page

ROOT = Path(__file__).parents[3]


@pytest.fixture
def beside(ledger, alias, monkeypatch):
    """The ledger of a project whose users are in another database, of each kind in turn."""
    call_command("migrate", "celery_durable", database=alias, verbosity=0)
    app = Celery("beside", broker="memory://", set_as_current=False)
    app.conf.durable_ledger_url = f"django://{alias}"
    monkeypatch.setattr(_state, "default_app", app)
    found = plugin(app).ledger
    yield found
    found.db.dispose()


def test_every_page_on_every_database(beside):
    told = seed(beside)
    ann = Client()
    ann.force_login(user("zoe", *LOOK, *MOVE))

    assert keys(page(ann, "task/"))[:2] == ["ORD-13", "INV-1"]
    assert keys(page(ann, f"task/?p=b{told['ORD-8']}"))[0] == "ORD-7"
    assert keys(page(ann, "task/?state=dead&failure_kind=permanent")) == ["ORD-9"]
    assert keys(page(ann, "task/?state=queued&task=shop.invoice")) == ["INV-1"]
    assert keys(page(ann, "task/?state=cancelled")) == ["ORD-10"]
    assert keys(page(ann, "task/?q=shop.charge/ORD-7")) == ["ORD-7"]
    assert "Failed for good" in page(ann, f"task/{told['ORD-7']}/change/")
    assert "2 dead now" in page(ann, "failuregroup/")
    assert "WorkerLostError" in page(ann, "failure/?kind=worker_lost")
    assert "worker-1@shop" in page(ann, "worker/")
    assert "ORD-13" in page(ann, "worker/worker-1/change/")
    fingerprint = beside.get("ORD-7").failure.fingerprint
    ann.post(f"{BASE}/failuregroup/replay/?fingerprint={fingerprint}", {"reason": "it is back"})
    ann.post(f"{BASE}/task/pause/", {"kind": "queue", "target": "celery", "reason": "stocktaking"})
    assert "stocktaking" in page(ann, "task/pauses/")
    assert ("replay", "zoe (admin)", "it is back") in history(beside, told["ORD-8"])


def test_a_ledger_that_is_not_djangos_has_no_pages(tmp_path):
    (tmp_path / "apart.py").write_text(
        "from tests.django.settings import *\nCELERY_DURABLE_LEDGER_URL = 'sqlite:///elsewhere.db'\n"
    )
    code = (
        "import django; django.setup()\n"
        "from django.contrib import admin\n"
        "print([m.__name__ for m in admin.site._registry if m._meta.app_label == 'celery_durable'])\n"
    )
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "apart", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert done.stdout.strip() == "[]", done.stderr
