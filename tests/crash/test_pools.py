"""The prefork, threads, solo and gevent pools: each survives kills, warm shutdown and forks."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

TASKS = 50


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_every_pool_finishes_its_tasks_although_its_worker_is_killed(stage, pool: str) -> None:
    crash = stage("redis", "postgresql")
    worker = crash.worker(pool=pool, concurrency=4)
    worker.freeze()
    ids = crash.submit_many(TASKS, seconds=0.05)
    worker.thaw()
    crash.await_(lambda: len(crash.witness.finished()) >= TASKS // 4, "work did not begin")
    worker.kill()
    assert len(crash.witness.finished()) < TASKS, "the kill came too late to matter"
    crash.worker(pool=pool, concurrency=4)
    crash.await_all(TASKS)
    crash.check_history(ids)
    assert crash.witness.finished() == set(ids)
    assert crash.ledger.verify() == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_warm_shutdown_renews_leases_until_the_pool_has_joined(stage, pool: str) -> None:
    """A deploy that takes longer than a lease loses nothing, although another worker sweeps meanwhile."""
    crash = stage("redis", "sqlite")
    leaving = crash.worker(pool=pool)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    crash.worker()
    leaving.shut_down()
    crash.await_(lambda: "Warm shutdown" in leaving.output, "the shutdown does not begin")
    crash.outlast(2 * crash.lease)
    assert leaving.running
    row = crash.row(task.id)
    assert (row.state, row.claims, row.losses) == ("running", 1, 0)
    crash.open("gate")
    assert leaving.exit_code() == 0
    crash.await_state(task.id, "succeeded")
    assert crash.verbs(task.id) == ["submit", "claim", "succeed"]
    assert crash.ledger.verify() == []


def sockets_to(port: int, pid: int) -> set[str]:
    """The inodes of a process' open connections to a server's port."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    inodes = {line.split()[9] for line in lines if int(line.split()[2].partition(":")[2], 16) == port}
    held = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            held.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    return inodes & held


@pytest.mark.parametrize("ledger", ["postgresql", "mariadb"])
def test_no_connection_to_the_ledger_crosses_a_fork(stage, request, ledger: str) -> None:
    """Also not into a process that is forked while the parent talks to the ledger: its transaction, and the rows
    that it locks, would outlive the parent."""
    crash = stage("redis", ledger)
    server = request.getfixturevalue({"postgresql": "postgres_server", "mariadb": "mariadb_server"}[ledger])
    worker = crash.worker(concurrency=3)
    crash.await_(lambda: sockets_to(server.port, worker.pid), "the parent is not connected")
    first = worker.children
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    crash.await_(lambda: len(set(worker.children) - set(first)) == 3, "the pool was not filled up")
    tasks = [crash.submit("held", "gate") for _ in range(3)]
    for task in tasks:
        crash.await_start(task.id)
    crash.await_(lambda: sockets_to(server.port, worker.pid), "the parent is not connected")
    children = {pid: sockets_to(server.port, pid) for pid in worker.children}
    assert len(children) == 3
    assert all(children.values()), "each has its own"
    everybodys = [sockets_to(server.port, worker.pid), *children.values()]
    shared = [a & b for n, a in enumerate(everybodys) for b in everybodys[:n] if a & b]
    assert shared == [], "connections are shared between processes"
    crash.open("gate")
    for task in tasks:
        crash.await_state(task.id, "succeeded")
