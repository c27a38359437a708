"""A process whose children run one task and are killed at every place of it in turn.

    python -m tests.crash.mortal KIND LEDGER_URL FOLDER COUNT     submit, run, kill, until the task is over
    python -m tests.crash.mortal run LEDGER_URL FOLDER TASK_ID    run one delivery, in this process

Each place kills once, whoever comes by first: the first run dies at the first place, the second at the next one, and so
on. With a KIND that ends in "!" each statement is two places, before and after, and each commit is one. Children are
forked, which costs a hundredth of what a worker's would, and die of SIGKILL. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import DurableTask
from tests.crash.tasks import Once
from tests.crash.witness import FINISHED, STARTED, Witness
from tests.task.running import lose, run, witnesses
from tests.waiting import wait_until
from tests.worker.kit import closed, make_app, migrated, record, the_ledger

if TYPE_CHECKING:
    from celery import Celery

OVER = ("succeeded", "dead", "cancelled")


class Reaper:
    """Kills this process at places where nobody has been killed before; only while a body runs."""

    def __init__(self, folder: Path) -> None:
        self._once, self.where, self.armed, self.deadly = Once(folder), "", False, False
        self._seen = 0

    def at(self, place: str) -> None:
        if self.deadly and self.armed and self._once(place):
            os.kill(os.getpid(), signal.SIGKILL)

    def begin(self, where: str) -> None:
        self.where, self._seen = where, 0

    def watch(self, engine: sa.Engine) -> None:
        """Make a place of each statement, before and after, and of each commit."""

        def before(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            self._seen += 1
            self.at(f"{self.where}-{self._seen}-before-{statement.split(maxsplit=1)[0]}")

        def after(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            self.at(f"{self.where}-{self._seen}-after-{statement.split(maxsplit=1)[0]}")

        sa.event.listen(engine, "before_cursor_execute", before)
        sa.event.listen(engine, "after_cursor_execute", after)
        sa.event.listen(engine, "commit", lambda _c: self.at(f"{self.where}-{self._seen}-before-COMMIT"))


class Bodies:
    """What a task does for each of its parts, by kind."""

    def __init__(self, folder: Path, table: sa.Table, reaper: Reaper) -> None:
        self.folder, self.table, self.reaper = folder, table, reaper
        self.witness = Witness(folder / "witness")

    def steps(self, task: DurableTask, n: int) -> None:
        assert task.step(f"part-{n}", self._part, task, n) == n * n

    def transactions(self, task: DurableTask, n: int) -> None:
        assert task.step(f"part-{n}", self._write, n, transaction=True) == n * n

    def checkpoints(self, task: DurableTask, n: int) -> None:
        if n >= task.restore(0):
            self.witness.saw(FINISHED, task.request.id, task.fence, str(n))
            task.checkpoint(n + 1)

    def _part(self, task: DurableTask, n: int) -> int:
        self.witness.saw(STARTED, task.request.id, task.fence, str(n))
        self.reaper.at(f"inside-{n}")
        self.witness.saw(FINISHED, task.request.id, task.fence, str(n))
        return n * n

    def _write(self, connection: sa.Connection, n: int) -> int:
        connection.execute(sa.insert(self.table).values(what=str(n)))
        if (self.folder / "stop").exists():
            os.kill(os.getpid(), signal.SIGSTOP)
        return n * n


def build(url: str, folder: Path) -> tuple[Celery, Reaper]:
    """An app with a task for each kind."""
    app = migrated(make_app(url, "memory://", durable_lease=60))
    reaper = Reaper(folder)
    bodies = Bodies(folder, witnesses(the_ledger(app)), reaper)
    for name in ("steps", "transactions", "checkpoints"):
        _add(app, name, getattr(bodies, name), reaper)
    app.finalize()
    return app, reaper


def _add(app: Celery, name: str, body: Any, reaper: Reaper) -> None:
    def mortal(self: DurableTask, count: int) -> int:
        reaper.armed = True
        try:
            for n in range(count):
                reaper.begin(f"{name}-{n}")
                body(self, n)
                reaper.at(f"{name}-{n}-done")
        finally:
            reaper.armed = False
        return count

    # A kill inside a step is the second loss in a row: the one behind the step before did not count.
    app.task(base=DurableTask, bind=True, shared=False, name=name, max_losses=100)(mortal)


def kill_everywhere(url: str, folder: Path, kind: str, count: int) -> dict[str, Any]:
    """Run a task until it is over; every run but the last is killed."""
    app, reaper = build(url, folder)
    reaper.deadly = True
    result = app.tasks[kind.rstrip("!")].delay(count)
    kills = 0
    while record(app, result).state not in OVER:
        the_ledger(app).db.dispose()
        child = os.fork()
        if child == 0:
            try:
                if kind.endswith("!"):
                    reaper.watch(the_ledger(app).db.engine)
                run(app, result, count)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
            # What the dead process had open is rolled back once its server has noticed.
            wait_until(lambda: lose(app, result) == "queued", 60)
        elif record(app, result).state == "running":
            raise AssertionError("the child ended and left the row")
    row = record(app, result)
    closed(app)
    return {"task_id": row.task_id, "state": row.state, "claims": row.claims, "losses": row.losses, "kills": kills}


def run_one(url: str, folder: Path, task_id: str) -> dict[str, Any]:
    """Run one delivery of a task of one part."""
    app, _ = build(url, folder)
    row = run(app, task_id, 1)
    return {"state": row.state, "claims": row.claims}


if __name__ == "__main__":
    kind, url, where, given = sys.argv[1:]
    folder = Path(where)
    print(json.dumps(run_one(url, folder, given) if kind == "run" else kill_everywhere(url, folder, kind, int(given))))
