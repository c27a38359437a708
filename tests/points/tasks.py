"""The tasks of a tour: between them they have the ledger do whatever it can do."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from celery import Celery, Task, chain, chord

from celery_durable import DurableTask, states
from celery_durable.wiring import plugin
from tests.crash.tasks import Once
from tests.crash.witness import FINISHED, STARTED, Witness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery_durable.records import Record

PATIENT = 1_000  # a strike is a loss, and a tour has many
#: Seconds between two looks at rows that follow another, or wait for a worker that knows them; by default ten.
LOOK_AGAIN = 0.4

metadata = sa.MetaData()
#: What transactional steps write, in the ledger's database.
effects = sa.Table("effects", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("ref", sa.String(100)))


def build(conf: dict[str, Any], folder: Path, *, worker: bool = False) -> Celery:
    """Make the app; workers know some tasks by another kind, or only later."""
    states.FOLLOW_INTERVAL = states.UNREGISTERED_INTERVAL = states.REPLACED_INTERVAL = LOOK_AGAIN
    app = Celery("points", set_as_current=False)
    app.conf.update(conf)
    witness = Witness(folder / "witness")

    def saw(task: DurableTask, what: str) -> None:
        witness.saw(what, task.request.id, task.fence)

    def task(**options: Any) -> Callable[..., Any]:
        options = {"base": DurableTask, "bind": True, "shared": False, "max_losses": PATIENT} | options
        return app.task(**options)

    _add_working(task, saw, Once(folder))
    _add_waiting(task, saw, folder)
    _add_canvas(task, saw)
    _add_dying(task, saw, Once(folder))
    known = [mark.name.removeprefix("known-") for mark in folder.glob("known-*")]
    _add_by_role(app, task, saw, known if worker else None)
    app.finalize()
    return app


def _add_by_role(app: Celery, task: Callable[..., Any], saw: Callable[..., None], known: list[str] | None) -> None:
    """Tasks that clients and workers (those that are `known`) take for something else."""

    def echo(n):
        return n

    def late(self, n):
        saw(self, STARTED)
        saw(self, FINISHED)
        return n

    app.task(name="stock", shared=False)(echo)
    app.task(name="turncoat", base=DurableTask if known is None else Task, shared=False)(echo)
    for name in known or ():
        task(name=name, idempotency_key="{n}")(late)  # what does not fit is turned away


def _add_working(task: Callable[..., Any], saw: Callable[..., None], once: Once) -> None:
    """Steps, transactions, checkpoints; one whose claim is over while it runs."""

    def book(connection: sa.Connection, ref: str) -> str:
        connection.execute(sa.insert(effects).values(ref=ref))
        return ref

    @task(name="works")
    def works(self, n=0):
        saw(self, STARTED)
        self.progress(1, 2)
        self.step("look", lambda: n)
        self.step("book", book, self.request.id, transaction=True)
        self.step("book more", book, f"{self.request.id} more", transaction=True)
        if not self.restore(0):
            self.checkpoint(1)
        self.check()
        saw(self, FINISHED)
        return n

    @task(name="keyed", idempotency_key="{key}")
    def keyed(self, key):
        saw(self, STARTED)
        saw(self, FINISHED)
        return key

    @task(name="pruned")
    def pruned(self):
        return self.fence

    @task(name="overruled")
    def overruled(self):
        """Its first claim is over before it ends: what it returns then is refused."""
        saw(self, STARTED)
        if once(f"overruled-{self.request.id}"):
            side = plugin(self._get_app())
            c = side.ledger.t.task.c
            lapse = sa.update(side.ledger.t.task).where(c.task_id == self.request.id, c.state == "running")

            def live() -> bool:
                record: Record = side.ledger.get(self.request.id)
                return record.state == "running" and record.claims == self.fence

            while live():
                side.ledger.db.run(lambda connection: connection.execute(lapse.values(lease_expires_at=1)))
                time.sleep(0.03)
        saw(self, FINISHED)
        return self.fence


def _add_waiting(task: Callable[..., Any], saw: Callable[..., None], folder: Path) -> None:
    """What waits, fails, is held or cancelled."""

    @task(name="waits", max_retries=5, retry_backoff=False, default_retry_delay=0)
    def waits(self):
        saw(self, STARTED)
        if self.request.retries == 0:
            raise ConnectionError("as planned")
        if self.step("first", lambda: self.fence) == self.fence:
            self.wait("not yet", retry_in=0.05, give_up_after=3600)
        self.sleep(0.05, "a rest")
        payload = self.wait_for_event("go", timeout=3600)
        saw(self, FINISHED)
        return payload

    @task(name="fails")
    def fails(self, mended):
        saw(self, STARTED)
        if not (folder / mended).exists():
            raise ValueError("as planned")
        saw(self, FINISHED)
        return mended

    @task(name="held")
    def held(self, gate):
        saw(self, STARTED)
        while not (folder / gate).exists():
            self.check()
            time.sleep(0.02)
        saw(self, FINISHED)
        return gate


def _add_canvas(task: Callable[..., Any], saw: Callable[..., None]) -> None:
    """What is replaced, adds parts to its chord, and is gathered."""

    @task(name="part")
    def part(self, n, *, adds=False):
        saw(self, STARTED)
        if adds:
            self.add_to_chord(part.s(n + 1).set(task_id=f"{self.request.id}-more"))
        saw(self, FINISHED)
        return n

    @task(name="gathered")
    def gathered(self, values):
        saw(self, STARTED)
        saw(self, FINISHED)
        return sorted(values)

    @task(name="broken")
    def broken(self, _n=None):
        saw(self, STARTED)
        raise ValueError("as planned")

    @task(name="replaced")
    def replaced(self, how):
        saw(self, STARTED)
        if how == "chord":
            raise self.replace(chord([part.s(1, adds=True), part.s(2)], gathered.s()))
        if how == "broken chord":
            raise self.replace(chord([part.s(1), broken.s()], gathered.s()))
        raise self.replace(chain(part.s(1), broken.s(), part.s()))


def _add_dying(task: Callable[..., Any], saw: Callable[..., None], once: Once) -> None:
    """What takes its process with it, before or after its outcome is recorded."""

    class Unlucky(DurableTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().__call__(*args, **kwargs)
            finally:
                if once(f"settled-{self.request.id}"):
                    os.kill(os.getpid(), signal.SIGKILL)

    @task(name="unlucky", base=Unlucky)
    def unlucky(self):
        saw(self, STARTED)
        saw(self, FINISHED)

    @task(name="dies")
    def dies(self):
        saw(self, STARTED)
        if once(f"died-{self.request.id}"):
            os.kill(os.getpid(), signal.SIGKILL)
        saw(self, FINISHED)
