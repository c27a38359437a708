"""A worker that is killed on a live host: its tasks run elsewhere about a second later, however long their leases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import DIALECTS
from tests.crash.witness import FINISHED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.kit import Stage

LEASE = 300.0
#: Nothing but the lock brings a task back in less than a minute; sweeps come as by default.
PATIENT = {"durable_lease": LEASE, "durable_sweep_interval": 1.0, "durable_republish_after": 60.0}
SOON = 15.0  # seconds: a loaded machine is slow; `python -m benchmarks.recovery` measures


@pytest.mark.parametrize("ledger", DIALECTS)
@pytest.mark.parametrize("blow", ["group", "parent"])
def test_a_killed_worker_s_tasks_run_elsewhere_at_once(stage: Callable[..., Stage], ledger: str, blow: str) -> None:
    """Those that ran, uncounted; and those whose messages it held, which Redis keeps for an hour."""
    crash = stage("redis", ledger, **PATIENT)
    doomed = crash.worker(concurrency=1)
    tasks = [crash.submit("held", "gate") for _ in range(3)]
    first = crash.await_start(tasks[0].id)[0]
    crash.await_(lambda: crash.depth() == 0, "the messages were not taken")
    crash.worker(concurrency=3)

    doomed.kill(children=blow == "group")

    second = crash.await_start(tasks[0].id, times=2)[1]
    for task in tasks[1:]:
        crash.await_start(task.id)
    took = second.at - first.at
    print(took)
    crash.open("gate")
    for task in tasks:
        crash.await_state(task.id, "succeeded")
    assert (crash.row(tasks[0].id).claims, crash.row(tasks[0].id).losses) == (2, 0)
    assert crash.verbs(tasks[0].id) == ["submit", "claim", "lose", "claim", "succeed"]
    assert crash.kinds(tasks[0].id) == ["worker_lost"]
    assert len(crash.witness.of(tasks[0].id, FINISHED)) == 1, "the first body went on without its parent"
    assert crash.ledger.verify() == []
