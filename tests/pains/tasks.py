"""The tasks of the comparison: the same bodies on both sides, on Celery's Task or on DurableTask."""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from celery import Celery, Task
from celery.beat import BeatLazyFunc
from celery.exceptions import Retry
from celery.schedules import crontab

from celery_durable import DurableTask
from tests.crash.tasks import Once
from tests.crash.witness import FINISHED, STARTED, Witness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: A worker started while this file is there is of the version before `fresh` was written.
OLD = "old-version"
#: A retry was asked for, and what came of that.
ASKED = "asked"


def minute() -> str:
    """The tick of a crontab, the same for every beat, in every time zone."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def build(conf: dict[str, Any], folder: Path) -> Celery:
    """Make the app of one side, the same for the scenario and for its workers."""
    conf = dict(conf)
    base = DurableTask if "durable_ledger_url" in conf else Task
    shop = conf.pop("shop", "")
    app = Celery("pains", set_as_current=False)
    app.conf.update(conf)
    witness, once = Witness(folder / "witness"), Once(folder)

    def saw(task: Task, what: str, note: object = "") -> None:
        witness.saw(what, task.request.id, 0, str(note))

    def task(**options: Any) -> Callable[..., Any]:
        return app.task(bind=True, shared=False, base=base, **options)

    _add_workers(task, saw, folder)
    _add_dying(task, saw, once)
    _add_retrying(task, saw, folder, once)
    _add_ordering(task, saw, shop)
    if not (folder / OLD).exists():
        _add_fresh(task, saw)
    _add_periodic(app, task, saw)
    app.finalize()
    return app


def _add_workers(task: Callable[..., Any], saw: Callable[..., None], folder: Path) -> None:
    @task(name="work")
    def work(self, n=0, seconds=0.0):
        saw(self, STARTED, n)
        time.sleep(seconds)
        saw(self, FINISHED, n)
        return n

    @task(name="held")
    def held(self, gate, n=0):
        saw(self, STARTED, gate)
        while not (folder / f"gate-{gate}").exists():
            time.sleep(0.02)
        saw(self, FINISHED, gate)
        return n

    @task(name="gathered")
    def gathered(self, values):
        saw(self, STARTED, values)
        saw(self, FINISHED, values)
        return values


def _add_dying(task: Callable[..., Any], saw: Callable[..., None], once: Once) -> None:
    @task(name="late_killed_once", acks_late=True)
    def late_killed_once(self):
        """Killed as the kernel's out-of-memory killer does it, in its first run."""
        saw(self, STARTED)
        if once(self.request.id):
            os.kill(os.getpid(), signal.SIGKILL)
        saw(self, FINISHED)

    @task(name="poison")
    def poison(self):
        """Killed as the kernel's out-of-memory killer does it, in every run."""
        saw(self, STARTED)
        os.kill(os.getpid(), signal.SIGKILL)

    @task(name="hangs_once", time_limit=1.5, autoretry_for=(Exception,), retry_backoff=False)
    def hangs_once(self):
        saw(self, STARTED)
        if once(self.request.id):
            time.sleep(600)
        saw(self, FINISHED)

    @task(name="greedy")
    def greedy(self):
        saw(self, STARTED)
        bytearray(1 << 62)


def _add_retrying(task: Callable[..., Any], saw: Callable[..., None], folder: Path, once: Once) -> None:
    @task(name="retries_at_gate")
    def retries_at_gate(self, gate):
        """Asks for a retry once the gate is open."""
        saw(self, STARTED, gate)
        while not (folder / f"gate-{gate}").exists():
            time.sleep(0.02)
        if self.request.retries == 0:
            try:
                self.retry(countdown=0)
            except BaseException as exc:
                saw(self, ASKED, type(exc).__name__)
                raise
        saw(self, FINISHED, gate)

    @task(name="retries_and_loses_its_worker")
    def retries_and_loses_its_worker(self):
        """Its worker is killed after the retry was asked for, before the message of this run is acknowledged."""
        saw(self, STARTED)
        if not once(f"retry-{self.request.root_id}"):
            saw(self, FINISHED)
            return "done"
        try:
            self.retry(countdown=0)
        except Retry:
            os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)
        return "never"

    @task(name="dependent")
    def dependent(self, order, cents):
        """Fails while what it depends on is down."""
        saw(self, STARTED, order)
        if not (folder / "gate-dependency").exists():
            raise RuntimeError(f"order {order}: the gateway does not know merchant 7")
        saw(self, FINISHED, f"{order} {cents}")


def _add_ordering(task: Callable[..., Any], saw: Callable[..., None], shop: str) -> None:
    @task(name="charge")
    def charge(self, order):
        """Sees whether its order is there."""
        engine = sa.create_engine(shop, poolclass=sa.NullPool)
        with engine.connect() as connection:
            there = connection.execute(
                sa.text("SELECT count(*) FROM shop_order WHERE id = :id"), {"id": order}
            ).scalar()
        saw(self, STARTED, f"{order} {'there' if there else 'missing'}")


def _add_fresh(task: Callable[..., Any], saw: Callable[..., None]) -> None:
    @task(name="fresh")
    def fresh(self):
        """Of the new version only."""
        saw(self, STARTED)
        saw(self, FINISHED)


def _add_periodic(app: Celery, task: Callable[..., Any], saw: Callable[..., None]) -> None:
    options = {"idempotency_key": "{tick}"} if "durable_ledger_url" in app.conf else {}

    @task(name="report", **options)
    def report(self, tick):
        saw(self, STARTED, tick)

    entry = {"task": "report", "schedule": crontab(), "kwargs": {"tick": BeatLazyFunc(minute)}}
    app.conf.beat_schedule = {"report": entry}
