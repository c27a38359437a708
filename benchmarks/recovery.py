"""How long a task stands still whose worker, parent process or pool process is killed: SIGKILL to its next start.

Two workers, prefork -c 2, Redis broker, a lease of 300 s, intervals as by default; each time the one that runs the task
is struck, and the other one finds out.
"""

from __future__ import annotations

import io
import os
import random
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack, closing, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rounds import Figures, Report, options
from tests.crash.kit import Stage
from tests.services import MariaDB, Postgres, Redis

if TYPE_CHECKING:
    from tests.crash.fleet import Worker

LEDGERS = ("sqlite", "postgresql", "mariadb")
BLOWS = ("worker", "parent", "child")
#: As by default, but for a lease that shall not help.
CONF = {"durable_lease": 300.0, "durable_sweep_interval": 1.0, "durable_republish_after": 30.0}
POLLING = {"polling_interval": None}


def main() -> None:
    """Measure on private servers."""
    parser = options(__doc__, kills=50, workers=2)
    parser.add_argument("--ledger", choices=LEDGERS, help="(default: each)")
    parser.add_argument("--blow", choices=BLOWS, help="(default: each)")
    given = parser.parse_args()
    blows = [given.blow] if given.blow else BLOWS
    with Report("recovery") as report:
        for ledger in [given.ledger] if given.ledger else LEDGERS:
            rows = {f"{blow} killed": measure(ledger, blow, given.kills, given.workers) for blow in blows}
            title = f"recovery, {ledger} ledger, {given.kills} kills each, {given.workers} workers"
            report.table(title, ["p50 ms", "p99 ms", "max ms"], rows)


def measure(ledger: str, blow: str, kills: int, workers: int) -> Figures:
    """Strike so often, and tell how long the tasks stood still."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(Redis())
        url = f"sqlite:///{folder / 'ledger.db'}"
        if ledger != "sqlite":
            url = stack.enter_context(Postgres() if ledger == "postgresql" else MariaDB()).database()
        conf = {"broker_url": broker.db(), "broker_transport_options": POLLING}
        stack.enter_context(redirect_stdout(io.StringIO()))  # the workers' logs, as a test that fails shows them
        stage = stack.enter_context(closing(Stage(folder, conf, url, **CONF)))
        for _ in range(workers):
            stage.worker()
        taken = sorted(strike(stage, blow, n) for n in range(kills))
    worst = taken[min(len(taken) - 1, round(0.99 * len(taken)))]
    return {"p50 ms": statistics.median(taken) * 1e3, "p99 ms": worst * 1e3, "max ms": taken[-1] * 1e3}


def strike(stage: Stage, blow: str, n: int) -> float:
    """Kill what runs a task; return the seconds until it runs again."""
    task = stage.submit("held", f"{n}")
    pid = stage.await_start(task.id)[0].pid
    worker = stage.fleet.parent_of(pid)
    if worker is None:
        raise RuntimeError(f"process {pid} is nobody's")
    time.sleep(random.random())
    began = time.monotonic()
    if blow == "child":
        os.kill(pid, signal.SIGKILL)
    else:
        worker.kill(children=blow == "worker")
    again = stage.await_start(task.id, times=2)[1].at
    stage.open(f"{n}")
    stage.await_state(task.id, "succeeded")
    if blow != "child":
        replace(stage, worker)
    return again - began


def replace(stage: Stage, worker: Worker) -> None:
    """Start another worker in the place of one that was killed, and let it look around."""
    worker.kill()
    stage.worker()


if __name__ == "__main__":
    main()
