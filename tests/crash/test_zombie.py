"""Processes that are stopped and continued: what they did meanwhile changes nothing."""

from __future__ import annotations

import pytest

from tests.crash.witness import FINISHED


@pytest.mark.parametrize("ledger", ["sqlite", "postgresql", "mariadb"])
def test_a_worker_stopped_past_its_lease_is_refused(stage, ledger: str) -> None:
    """The other worker's result stands, the zombie's write leaves a `fenced` event and nothing else."""
    crash = stage("redis", ledger)
    zombie = crash.worker(concurrency=1)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    other = crash.worker(concurrency=1)
    zombie.freeze(crash.writable)
    first, second = crash.await_start(task.id, times=2)
    assert (first.fence, second.fence) == (1, 2)
    assert first.pid != second.pid
    crash.open("gate")
    crash.await_state(task.id, "succeeded")
    stood = crash.row(task.id)
    assert len(crash.witness.of(task.id, FINISHED)) == 1
    zombie.thaw()
    crash.await_(lambda: "fenced" in crash.verbs(task.id), "the zombie was not refused")
    other.kill()
    again = crash.submit("work")  # the zombie is a worker like any other now, and done with the first
    crash.await_state(again.id, "succeeded")
    assert crash.witness.of(again.id)[0].pid == first.pid
    assert crash.verbs(task.id) == ["submit", "claim", "lose", "claim", "succeed", "fenced"]
    assert [s.fence for s in crash.witness.of(task.id, FINISHED)] == [2, 1], "both ran to their end"
    now = crash.row(task.id)
    assert (now.state, now.claims, now.result, now.finished_at) == (
        "succeeded", 2, stood.result, stood.finished_at,
    )  # fmt: skip
    assert crash.get(task.id).decoded_result() == 2, "the result is that of the second claim"
    assert crash.kinds(task.id) == ["lease_expired"]
    assert crash.ledger.verify() == []


def test_a_zombie_that_comes_back_first_does_not_disturb_the_live_claim(stage) -> None:
    """Its success is refused while the other still runs; the row goes on under the live claim."""
    crash = stage("redis", "postgresql")
    zombie = crash.worker(concurrency=1)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    crash.worker(concurrency=1)
    zombie.freeze(crash.writable)
    _, second = crash.await_start(task.id, times=2)
    lease = crash.row(task.id).lease_owner
    zombie.thaw()
    crash.outlast(crash.lease)  # its keeper renews what it believes to be its own
    row = crash.row(task.id)
    assert (row.state, row.claims, row.lease_owner) == ("running", 2, lease)
    crash.open("gate")
    crash.await_(lambda: "fenced" in crash.verbs(task.id), "the zombie was not refused")
    crash.await_state(task.id, "succeeded")
    assert sorted(s.fence for s in crash.witness.of(task.id, FINISHED)) == [1, second.fence]
    assert crash.row(task.id).losses == 1


def test_a_stopped_pool_process_is_ended_by_its_time_limit(stage) -> None:
    """A parent cannot tell a stopped child from a busy one: it renews until the limit, then the run is lost."""
    crash = stage("redis", "sqlite")
    crash.worker(concurrency=1)
    task = crash.submit("stopped")
    crash.await_start(task.id)
    crash.outlast(crash.lease)
    assert crash.row(task.id).claims == 1, "its lease is renewed meanwhile"
    crash.await_state(task.id, "succeeded")
    assert crash.kinds(task.id) == ["timeout"]
    assert (crash.row(task.id).claims, crash.row(task.id).losses) == (2, 1)
