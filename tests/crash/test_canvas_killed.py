"""Chords and chains while their workers are killed: the body once, the right result, nothing beside it."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from celery import chain, chord

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.kit import Stage

FULL = os.environ.get("DURABLE_MATRIX") == "full"
PARTS, LINKS, KILLS = (100, 20, 30) if FULL else (16, 5, 5)
SECONDS = 0.05  # of each part
WORKERS = 2


class Chaos:
    """Kills pool processes, parents and whole workers, each time that enough was done since the last kill."""

    def __init__(self, stage: Stage, rng: random.Random) -> None:
        self.stage, self.rng, self.kills = stage, rng, 0
        step = 0.9 * (PARTS + LINKS) / KILLS
        self.moments = [(n + rng.random()) * step for n in range(KILLS)]

    def step(self) -> None:
        fleet = self.stage.fleet
        fleet.check()
        for _ in range(WORKERS - len(fleet.running)):
            fleet.start(wait=False)
        if self.kills == KILLS or len(self.stage.witness.finished()) < self.moments[self.kills]:
            return
        busy = [(s.pid, self.stage.fleet.parent_of(s.pid)) for s in self.stage.witness.in_flight()]
        targets = sorted((pid, worker.name, worker) for pid, worker in busy if worker is not None)
        if not targets:
            return
        pid, _, worker = self.rng.choice(targets)
        blow = self.rng.choice(["child", "child", "parent", "worker"])
        if blow == "child":
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            worker.kill(children=blow == "worker")
        self.kills += 1


CELLS = [(broker, backend) for broker in ("redis", "rabbitmq") for backend in ("durable", "redis")]
CELLS = CELLS if FULL else CELLS[:1]


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.timeout(900 if FULL else 200)
@pytest.mark.parametrize(("broker", "backend"), CELLS)
def test_a_chord_and_a_chain_under_kills(
    stage: Callable[..., Stage], request: pytest.FixtureRequest, broker: str, backend: str, seed: int
) -> None:
    store = "durable://" if backend == "durable" else request.getfixturevalue("redis_server").db()
    crash = stage(broker, "postgresql" if FULL else "sqlite", result_backend=store)
    tasks = crash.app.tasks
    body = chord([tasks["work"].s(n, SECONDS) for n in range(PARTS)])(tasks["gathered"].s())
    last = chain(tasks["next"].s(0, SECONDS), *(tasks["next"].s(SECONDS) for _ in range(LINKS - 1))).apply_async()
    chaos = Chaos(crash, random.Random(seed))
    ids = [body.id, last.id]

    def over() -> bool:
        chaos.step()
        return chaos.kills == KILLS and all(r.state == "succeeded" and not r.continuation_pending for r in crash.rows())

    wait_until(over, 800 if FULL else 150, "not everything succeeded")
    assert body.get(timeout=60) == list(range(PARTS))
    assert last.get(timeout=60) == LINKS
    rows = crash.rows()
    assert len(rows) == PARTS + LINKS + 1, "each part, each link and the body have one row each"
    assert [r.task_id for r in rows if r.task == "gathered"] == [body.id]
    for row in rows:
        runs = len(crash.witness.of(row.task_id))
        assert runs <= row.claims, (row.task_id, runs, row.claims)
    crash.check_history([r.task_id for r in rows])
    assert crash.ledger.verify() == []
    losses = sum(r.losses for r in rows)
    told = sum(r.publish_count for r in rows)
    print(f"CANVAS {broker} {backend} seed={seed} kills={chaos.kills} losses={losses} messages={told} ids={ids}")
