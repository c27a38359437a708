"""A worker that is killed on a live host: its tasks run elsewhere about a second later, however long their leases."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.conftest import DIALECTS
from tests.crash.witness import FINISHED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.fleet import Worker
    from tests.crash.kit import Stage

#: Nothing but the lock brings a task back within minutes; sweeps come as by default.
PATIENT = {"durable_lease": 300.0, "durable_sweep_interval": 1.0, "durable_republish_after": 300.0}


@pytest.mark.parametrize("ledger", DIALECTS)
@pytest.mark.parametrize("blow", ["group", "parent"])
def test_tasks_of_a_killed_worker_run_elsewhere(stage: Callable[..., Stage], ledger: str, blow: str) -> None:
    """Those that ran, uncounted; and those whose messages it held, which Redis keeps for an hour."""
    crash = stage("redis", ledger, **PATIENT)
    doomed = crash.worker(concurrency=1)
    tasks = [crash.submit("held", "gate") for _ in range(3)]
    crash.await_start(tasks[0].id)
    crash.await_(lambda: crash.depth() == 0, "the messages were not taken")
    crash.worker(concurrency=3)

    doomed.kill(children=blow == "group")

    for task, times in zip(tasks, (2, 1, 1), strict=True):
        crash.await_start(task.id, times)
    crash.open("gate")
    for task in tasks:
        crash.await_state(task.id, "succeeded")
    assert (crash.row(tasks[0].id).claims, crash.row(tasks[0].id).losses) == (2, 0)
    assert crash.verbs(tasks[0].id) == ["submit", "claim", "lose", "claim", "succeed"]
    assert crash.kinds(tasks[0].id) == ["worker_lost"]
    assert len(crash.witness.of(tasks[0].id, FINISHED)) == 1, "the first body went on without its parent"
    assert crash.ledger.verify() == []
    phases = {worker.phase for worker in crash.ledger.workers() if not worker.live}
    assert phases == {"gone"}


@pytest.mark.parametrize("ledger", DIALECTS)
def test_a_stopped_worker_is_none_that_is_gone(stage: Callable[..., Stage], ledger: str) -> None:
    """It holds its lock: while another one is found dead and its task runs elsewhere, nobody touches its own."""
    crash = stage("redis", ledger, **PATIENT)
    stopped = crash.worker(concurrency=1)
    first = crash.submit("held", "gate")
    crash.await_start(first.id)
    stopped.freeze(crash.writable)
    doomed = crash.worker(concurrency=1)
    second = crash.submit("held", "gate")
    crash.await_start(second.id)
    crash.worker(concurrency=2)

    doomed.kill()

    crash.await_start(second.id, times=2)
    assert crash.verbs(first.id) == ["submit", "claim"]
    stopped.thaw()
    crash.open("gate")
    for task in (first, second):
        crash.await_state(task.id, "succeeded")
    assert crash.row(first.id).claims == 1


def test_a_worker_that_comes_alone_finds_what_the_one_before_has_left(stage: Callable[..., Stage]) -> None:
    """It has never seen that lock held: a supervisor starts one worker after the other."""
    crash = stage("redis", "postgresql", **PATIENT)
    doomed = crash.worker(concurrency=1)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    doomed.kill()

    crash.worker(concurrency=1)

    crash.await_start(task.id, times=2)
    crash.open("gate")
    crash.await_state(task.id, "succeeded")
    assert crash.row(task.id).losses == 0


#: The session that holds a worker's lock, and what ends it: an administrator, a pooler, a firewall.
SESSION = {
    "postgresql": "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND objid = {}",
    "mariadb": "SELECT IS_USED_LOCK(CONCAT('durable-', '{1}', '-', {0}))",
}
END = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}


def lock_of(crash: Stage, worker: Worker) -> int | None:
    w = crash.ledger.t.worker
    rows = crash.ledger.db.run(lambda c: c.execute(w.select().where(w.c.pid == worker.pid)).all(), read_only=True)
    return rows[0].lock_number if rows else None


def end_session(crash: Stage, ledger: str, worker: Worker) -> int:
    """Take away a worker's lock, and return its number."""
    number = lock_of(crash, worker)
    assert number is not None
    lock = crash.ledger.liveness_lock()
    assert lock.acquire()
    session = crash.ledger.db.run(
        lambda c: c.exec_driver_sql(SESSION[ledger].format(number, getattr(lock, "_space", "")[8:-1])).scalar()
    )
    lock.release()
    crash.sql(END[ledger].format(session))
    return number


@pytest.mark.parametrize("ledger", ["postgresql", "mariadb"])
def test_a_worker_that_loses_its_session_takes_another_lock(stage: Callable[..., Stage], ledger: str) -> None:
    """Before anybody acts on the sign: its task goes on."""
    crash = stage("redis", ledger, **PATIENT)
    worker = crash.worker(concurrency=1)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    other = crash.worker(concurrency=1)
    for _ in range(3):
        lost = end_session(crash, ledger, worker)
        crash.await_(lambda lost=lost: lock_of(crash, worker) not in {lost, None}, "it has no other lock")
    lost = end_session(crash, ledger, other)
    crash.await_(lambda: lock_of(crash, other) not in {lost, None}, "the other one has no other lock")
    crash.open("gate")
    crash.await_state(task.id, "succeeded")
    assert crash.verbs(task.id) == ["submit", "claim", "succeed"]


@pytest.mark.parametrize("ledger", ["postgresql", "mariadb"])
def test_a_worker_that_is_buried_alive_is_fenced(stage: Callable[..., Stage], ledger: str) -> None:
    """Its parent process stands still while its session is ended: all signs are against it, and all are wrong."""
    crash = stage("redis", ledger, **PATIENT)
    buried = crash.worker(concurrency=1)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    crash.worker(concurrency=1)
    os.kill(buried.pid, signal.SIGSTOP)
    end_session(crash, ledger, buried)
    first, second = crash.await_start(task.id, times=2)
    assert (first.fence, second.fence) == (1, 2)

    crash.open("gate")

    crash.await_state(task.id, "succeeded")
    crash.await_(lambda: "fenced" in crash.verbs(task.id), "the zombie was not refused")
    assert sorted(crash.verbs(task.id)) == sorted(["submit", "claim", "lose", "claim", "succeed", "fenced"])
    assert crash.get(task.id).decoded_result() == 2, "the result is that of the second claim"
    assert crash.row(task.id).losses == 0
    os.kill(buried.pid, signal.SIGCONT)
    crash.await_(lambda: lock_of(crash, buried), "it does not report itself again")
    assert crash.ledger.verify() == []
