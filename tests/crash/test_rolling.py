"""Deploys: a worker that shuts down hands its tasks to others, at their next check, without a loss or a retry."""

from __future__ import annotations

import os

import pytest

from tests.crash.witness import FINISHED, LEFT, TURN

FULL = os.environ.get("DURABLE_MATRIX") == "full"
#: Each kind of shutdown with each pool in full size.
SHUTDOWNS = (
    [(pool, kind) for pool in ("prefork", "threads", "solo", "gevent") for kind in ("warm", "soft")]
    if FULL
    else [("prefork", "soft"), ("gevent", "warm")]
)
ENDLESS = 100_000
HANDED_OVER = ["submit", "claim", "wait", "release", "claim", "succeed"]


def test_a_rolling_restart_hands_long_tasks_over_within_two_seconds(stage) -> None:
    """Four tasks, with the settings of production but for the lease; the broker and the ledger are real servers."""
    crash = stage("redis", "postgresql", durable_sweep_interval=1.0, durable_republish_after=30, durable_lease=30)
    leaving = crash.worker(concurrency=4)
    tasks = [crash.submit("long", ENDLESS) for _ in range(4)]
    for task in tasks:
        crash.await_start(task.id)
    crash.worker(concurrency=4)
    leaving.shut_down()
    for task in tasks:
        crash.await_start(task.id, 2)
    assert leaving.exit_code() == 0
    crash.open("end")
    crash.await_all(4)
    gaps = []
    for task in tasks:
        (left,) = crash.witness.of(task.id, LEFT)
        again = crash.witness.of(task.id)[1]
        gaps.append(again.at - left.at)
        row = crash.row(task.id)
        assert (row.claims, row.retries, row.losses) == (2, 0, 0)
        assert crash.verbs(task.id) == HANDED_OVER
        turns = [int(s.note) for s in crash.witness.of(task.id, TURN)]
        assert turns == list(range(len(turns))), "begun again from the start"
    print("handed over after", [f"{gap:.2f} s" for gap in sorted(gaps)])
    assert max(gaps) < (2.0 if FULL else 15.0), "a busy machine is slow, a message that waits for a ring is slower"
    assert crash.ledger.verify() == []


@pytest.mark.parametrize(("pool", "kind"), SHUTDOWNS)
def test_every_shutdown_lets_a_task_go_at_its_next_check(stage, pool: str, kind: str) -> None:
    crash = stage(worker_soft_shutdown_timeout=3 if kind == "soft" else 0, durable_lease=30)
    leaving = crash.worker(pool=pool, concurrency=1)
    task = crash.submit("long", ENDLESS)
    crash.await_start(task.id)
    leaving.shut_down() if kind == "warm" else leaving.quit()
    crash.await_(lambda: crash.witness.of(task.id, LEFT), "it is not told")
    crash.worker(concurrency=2)
    crash.await_start(task.id, 2)
    crash.open("end")
    crash.await_all(1)
    leaving.exit_code()
    row = crash.row(task.id)
    assert (row.claims, row.retries, row.losses) == (2, 0, 0)
    assert crash.verbs(task.id) == HANDED_OVER
    assert [s.note for s in crash.witness.of(task.id, LEFT)] == ["Draining"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_a_leaving_worker_took_and_did_not_start_is_run_by_others_at_once(stage, pool: str) -> None:
    """Although the task that it runs looks at nothing, and would hold their messages for as long as it runs."""
    crash = stage(durable_lease=60, durable_republish_after=60, worker_prefetch_multiplier=4)
    leaving = crash.worker(pool=pool, concurrency=1)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    waiting = [crash.submit("work", n) for n in range(6)]
    # All that it may hold: a message that is on its way just as it is told to leave comes back by its own time.
    crash.await_(lambda: leaving.output.count("Task work[") >= 4, "they are not prefetched")
    crash.worker(concurrency=2)
    leaving.shut_down()
    for other in waiting:
        crash.await_state(other.id, "succeeded", timeout=20)
    assert leaving.running
    assert [(crash.row(t.id).claims, crash.row(t.id).losses) for t in waiting] == [(1, 0)] * 6
    crash.open("gate")
    assert leaving.exit_code() == 0
    crash.await_all(7)
    assert crash.verbs(task.id) == ["submit", "claim", "succeed"]


ENDINGS = [("prefork", "cold"), ("prefork", "all")] + [("prefork", "warm, then cold"), ("gevent", "cold")] * FULL


@pytest.mark.parametrize(("pool", "how"), ENDINGS)
def test_a_body_that_a_shutdown_ends_is_no_loss(stage, pool: str, how: str) -> None:
    """It is ended where it stands; the task goes to another worker at once, however many deploys it meets."""
    crash = stage(durable_lease=60)
    leaving = crash.worker(pool=pool)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    other = crash.worker()
    if how == "warm, then cold":
        leaving.shut_down()
        crash.await_(lambda: "Warm shutdown" in leaving.output, "the shutdown does not begin")
    leaving.shut_down_all() if how == "all" else leaving.quit()
    crash.await_start(task.id, 2)
    leaving.exit_code()
    crash.open("gate")
    crash.await_state(task.id, "succeeded")
    row = crash.row(task.id)
    assert (row.claims, row.retries, row.losses) == (2, 0, 0)
    assert crash.kinds(task.id) == []
    assert crash.verbs(task.id) == HANDED_OVER
    assert other.running


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_cold_shutdown_waits_where_a_body_cannot_be_ended(stage, pool: str) -> None:
    """Its lease is renewed as long as it really runs, although the worker is stopped: nobody runs it beside it."""
    crash = stage(durable_lease=2)
    leaving = crash.worker(pool=pool)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    crash.worker()
    leaving.quit()
    crash.await_(lambda: "Hitting Ctrl+C again" in leaving.output, "the shutdown does not begin")
    crash.outlast(2 * crash.lease)
    assert (crash.row(task.id).state, crash.row(task.id).claims) == ("running", 1)
    crash.open("gate")
    crash.await_state(task.id, "succeeded")
    leaving.exit_code()
    assert crash.row(task.id).claims == 1
    assert len(crash.witness.of(task.id, FINISHED)) == 1
