"""How long the admin takes over a million tasks and as many failures: ``python -m benchmarks.django_admin``.

Each page is asked for by Django's test client, five times; the slowest and the median are told, in milliseconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import django
from celery import Celery
from django.conf import settings

from celery_durable.wiring import plugin
from tests.django import settings as project
from tests.ledger.failing import RARE, add_failures
from tests.ledger.stock import fill
from tests.services import MariaDB, Postgres

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.test import Client

ROWS, LIVE, TIMES = 1_000_000, 400, 5
PAGES = {
    "tasks": "task/",
    "tasks, in the middle": "task/?p=b500000",
    "tasks, newer than the middle": "task/?p=a500000",
    "dead (50,000)": "task/?state=dead",
    "dead of a kind": "task/?failure_kind=permanent",
    "dead of another kind (none)": "task/?failure_kind=poison",
    "running (100)": "task/?state=running",
    "queued, of a queue": "task/?state=queued&queue=celery",
    "succeeded": "task/?state=succeeded",
    "cancelled (none)": "task/?state=cancelled",
    "a task's name (all)": "task/?task=shop.charge",
    "a task's name (none)": "task/?task=no.such",
    "dead, a task's name (none)": "task/?state=dead&task=no.such",
    "search by key": "task/?q=k777777",
    "search by id": "task/?q=done-777777",
    "search, nothing": "task/?q=nothing",
    "a task's page": "task/{}/change/",
    "failures by likeness": "failuregroup/",
    "failures by likeness, dead": "failuregroup/?dead",
    "failures": "failure/",
    "failures of a fingerprint": f"failure/?fingerprint={RARE}",
    "failures of a kind (none)": "failure/?kind=poison",
    "workers": "worker/",
    "held back": "task/pauses/",
}


def main(dialects: Iterable[str]) -> None:
    """Measure on private servers."""
    for dialect in dialects:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            if dialect == "sqlite":
                url = f"sqlite:///{folder / 'ledger.db'}"
            else:
                server = {"postgresql": Postgres, "mariadb": MariaDB}[dialect]
                url = stack.enter_context(server()).database()
            measure(dialect, url)


def measure(dialect: str, url: str) -> None:
    """Fill a database and ask for each page."""
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connections
    from django.test import Client

    from tests.django.databases import database  # after the settings

    connections["default"].close()
    connections.databases["default"] = connections.configure_settings({"default": database(url)})["default"]
    del connections["default"]
    call_command("migrate", verbosity=0)
    app = Celery("bench", broker="memory://")
    app.conf.durable_ledger_url = url
    app.set_default()
    app.set_current()
    ledger = plugin(app).ledger
    began = time.monotonic()
    fill(ledger, ROWS, LIVE)
    add_failures(ledger)
    print(f"{dialect}: {ROWS:,} tasks and as many failures, made in {time.monotonic() - began:.0f} s", flush=True)
    client = Client()
    client.force_login(User.objects.create_superuser("ann", password="ann"))  # noqa: S106 - of a throw-away database
    known = ledger.get("done-777780").id
    for name, path in PAGES.items():
        link = f"/admin/celery_durable/{path.format(known)}"
        taken = sorted(timed(client, link) for _ in range(TIMES))
        print(f"  {name:32} median {statistics.median(taken):6.0f}  slowest {taken[-1]:6.0f}", flush=True)
    for look in (ledger.count_live, ledger.count_all, ledger.likenesses):
        looked = time.perf_counter()
        look()
        print(f"  of which {look.__name__:23} {1000 * (time.perf_counter() - looked):6.0f}")
    connections["default"].close()
    ledger.db.dispose()


def timed(client: Client, path: str) -> float:
    """Ask for a page; milliseconds."""
    began = time.perf_counter()
    answer = client.get(path)
    taken = 1000 * (time.perf_counter() - began)
    if answer.status_code != 200:  # noqa: PLR2004 - HTTP
        raise SystemExit(f"{path}: {answer.status_code}")
    return taken


if __name__ == "__main__":
    settings.configure(**{name: value for name, value in vars(project).items() if name.isupper()})
    django.setup()
    main(sys.argv[1:] or ["postgresql", "mariadb", "sqlite"])
