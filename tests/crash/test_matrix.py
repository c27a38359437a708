"""Every broker with every ledger, while workers and pool processes are killed: nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.crash.kit import Stage, staged
from tests.crash.witness import FINISHED
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Broker

FULL = os.environ.get("DURABLE_MATRIX") == "full"
TASKS, KILLS = (500, 10) if FULL else (60, 2)  # so many kills of parents, and as many of pool processes
#: The cells that `make test` takes; `make matrix` takes them all.
SOME = {("filesystem", "sqlite"), ("redis", "postgresql"), ("rabbitmq", "mariadb")}
SECONDS = 0.06  # of each task
WORKERS = 2
STUMBLES = 8


@dataclass
class Chaos:
    """Kills by the witness' progress: what is killed holds a task, unless nobody does."""

    stage: Stage
    rng: random.Random
    kills: list[tuple[str, float, set[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blows = ["parent"] * (KILLS // 2) + ["group"] * (KILLS - KILLS // 2) + ["child"] * KILLS
        self.rng.shuffle(self.blows)
        step = 0.9 * TASKS / len(self.blows)
        self.moments = [(n + self.rng.random()) * step for n in range(len(self.blows))]

    def step(self) -> bool:
        """Keep the workers up, kill when it is time; whether all kills are done."""
        fleet = self.stage.fleet
        if self.stage.app.conf.broker_url.startswith("filesystem"):
            # kombu reads files that others are writing or taking away just now, and the worker ends over it.
            exits = sum(not (w.struck or w.running) for w in fleet.workers)
            assert exits < STUMBLES, f"{exits} workers ended by themselves"
        else:
            fleet.check()
        for _ in range(WORKERS - len(fleet.running)):
            fleet.start(wait=False)
        done = len(self.kills)
        if done < len(self.blows) and len(self.stage.witness.finished()) >= self.moments[done]:
            self.strike(self.blows[done])
        return len(self.kills) == len(self.blows)

    def strike(self, blow: str) -> None:
        holders = [(s.pid, self.stage.fleet.parent_of(s.pid)) for s in self.stage.witness.in_flight()]
        targets = sorted((pid, w) for pid, w in holders if w is not None)
        if not targets:
            return
        pid, worker = self.rng.choice(targets)
        stranded = {s.task_id for s in self.stage.witness.in_flight()}
        if blow == "child":
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            worker.kill(children=blow == "group")
        self.kills.append((blow, time.monotonic(), stranded - self.stage.witness.finished()))

    def slowest_requeue(self) -> float:
        """The longest time from a kill to the moment when a task that was under way then was queued again."""
        t = self.stage.ledger.t
        query = sa.select(t.task.c.task_id, t.event.c.at).join(t.task, t.event.c.task_row == t.task.c.id)
        query = query.where(t.event.c.verb == "lose").order_by(t.event.c.id)
        losses: dict[str, list[float]] = {}
        for loss in self.stage.ledger.db.run(lambda c: c.execute(query).all(), read_only=True):
            losses.setdefault(loss.task_id, []).append(loss.at / 1e6)
        offset = time.time() - time.monotonic()
        waits = [
            next((lost - at - offset for lost in losses.get(i, []) if lost >= at + offset), 0.0)
            for _, at, stranded in self.kills
            for i in stranded
        ]
        return max(waits, default=0.0)

    def slowest_recovery(self) -> float:
        """The longest time from a kill to the end of a task that was under way then: it queues behind the others."""
        ends: dict[str, float] = {}
        for sight in self.stage.witness.sights:
            if sight.what == FINISHED:
                ends.setdefault(sight.task_id, sight.at)
        waits = [ends[i] - at for _, at, stranded in self.kills for i in stranded if i in ends]
        return max(waits, default=0.0)


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(900 if FULL else 300)
def test_a_cell(broker: Broker, ledger_url: str, tmp_path: Path, seed: int) -> None:
    """Given tasks, when parents and pool processes are killed all the while, then each one succeeds once."""
    if not FULL and (broker.name, sa.make_url(ledger_url).get_backend_name().replace("mysql", "mariadb")) not in SOME:
        pytest.skip("make matrix")
    began = time.monotonic()
    stage = staged(tmp_path, broker, ledger_url)
    try:
        chaos = Chaos(stage, random.Random(seed))
        ids = stage.submit_many(TASKS, seconds=SECONDS)

        def over() -> bool:
            return chaos.step() and stage.states() == {"succeeded": TASKS}

        wait_until(over, 600 if FULL else 150, "not every task succeeded")
        seconds = time.monotonic() - began
        stage.check_history(ids)
        assert stage.witness.finished() == set(ids)
        assert all(stage.get(i).state == "succeeded" for i in ids)
        assert stage.ledger.verify() == []
        stage.audit()
        print(
            f"MATRIX broker={broker.name} ledger={stage.ledger.dialect.name} seed={seed} tasks={TASKS} "
            f"kills={len(chaos.kills)} seconds={seconds:.1f} executions={stage.witness.count()} "
            f"slowest_requeue={chaos.slowest_requeue():.2f} slowest_recovery={chaos.slowest_recovery():.2f}"
        )
    finally:
        stage.close()
