"""The ledger dies under working workers: nothing runs unclaimed, nothing is published, all of it recovers."""

from __future__ import annotations

import pytest

from celery_durable import LedgerUnavailable
from tests.crash.witness import FINISHED

SERVERS = {"postgresql": "postgres_server", "mariadb": "mariadb_server"}
PAUSED, RESUMED = "consumption pauses", "consumption goes on"


@pytest.mark.parametrize("ledger", SERVERS)
def test_an_outage_longer_than_a_lease(stage, request, ledger: str) -> None:
    """PROTOCOL 9 and 12: what runs keeps its claim, what arrives does not start, submissions are refused."""
    crash = stage("redis", ledger)
    database = request.getfixturevalue(SERVERS[ledger])
    workers = [crash.worker(concurrency=4), crash.worker(concurrency=1)]
    running = [crash.submit("held", "gate") for _ in range(2)]
    for task in running:
        crash.await_start(task.id)
    for worker in workers:
        worker.freeze()
    arriving = crash.submit_many(6)
    database.kill()
    for worker in workers:
        worker.thaw()
    for worker in workers:
        crash.await_(lambda w=worker: PAUSED in w.output, f"{worker.name} goes on consuming")

    with pytest.raises(LedgerUnavailable) as refused:
        crash.submit("work", task_id="refused")
    assert refused.value.task_id == "refused"
    assert "refused" not in crash.lying(), "something was published"
    crash.outlast(1.5 * crash.lease)
    assert not any(crash.witness.of(i) for i in arriving), "user code ran unclaimed"

    database.start()
    for worker in workers:
        crash.await_(lambda w=worker: RESUMED in w.output, f"{worker.name} does not come back")
    for task_id in arriving:  # on the two free processes, or the other worker
        crash.await_state(task_id, "succeeded")
    for task in running:
        row = crash.row(task.id)
        assert (row.state, row.claims, row.losses) == ("running", 1, 0), "a live worker's claim was expired"
    crash.open("gate")
    for task in running:
        crash.await_state(task.id, "succeeded")
    for task_id in [*arriving, *(t.id for t in running)]:
        assert crash.verbs(task_id) == ["submit", "claim", "succeed"]
        assert len(crash.witness.of(task_id)) == 1
    assert crash.ledger.verify() == []


@pytest.mark.parametrize("ledger", SERVERS)
def test_a_body_that_ends_during_an_outage_is_recorded_after_it(stage, request, ledger: str) -> None:
    """Shorter than a lease: the outcome waits for the ledger, the body does not run again."""
    crash = stage("redis", ledger, durable_lease=30)
    database = request.getfixturevalue(SERVERS[ledger])
    worker = crash.worker(concurrency=1)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    database.kill()
    crash.open("gate")
    crash.await_(lambda: crash.witness.of(task.id, FINISHED), "the body does not end")
    crash.await_(lambda: PAUSED in worker.output, "the worker does not notice")
    database.start()
    crash.await_state(task.id, "succeeded")
    assert crash.verbs(task.id) == ["submit", "claim", "succeed"]
    assert len(crash.witness.of(task.id)) == 1


def test_an_outcome_that_could_not_be_recorded_counts_as_not_done(stage, postgres_server) -> None:
    """Longer than a lease: the attempt is given up, and the task runs again."""
    crash = stage("redis", "postgresql")
    worker = crash.worker(concurrency=1)
    task = crash.submit("held", "gate")
    crash.await_start(task.id)
    postgres_server.kill()
    crash.open("gate")
    crash.await_(lambda: "its outcome was not recorded" in worker.output, "the process waits for ever")
    postgres_server.start()
    crash.await_state(task.id, "succeeded")
    row = crash.row(task.id)
    assert (row.claims, row.losses) == (2, 1)
    assert [s.fence for s in crash.witness.of(task.id, FINISHED)] == [1, 2]
    assert crash.ledger.verify() == []
