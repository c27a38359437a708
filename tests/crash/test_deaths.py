"""Every way in which a pool process dies: recorded at once, run again, poison at last; errors told by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from tests.crash.kit import Stage
from tests.crash.witness import LEFT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery.result import AsyncResult

    from tests.services import Redis

LEASE = 30.0
TOLD_AS = {
    "kill": "WorkerLostError",
    "os._exit": "WorkerLostError",
    "sys.exit": "RuntimeError",  # a SystemExit would end whoever asks for the result
    "memory": "MemoryError",
}
WAYS = list(TOLD_AS)


@pytest.fixture(scope="module")
def crash(redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One worker for the tests of a process, with stock Redis results; whatever they do, it stays alive."""
    folder = tmp_path_factory.mktemp("deaths")
    url = f"sqlite:///{folder / 'ledger.db'}"
    broker = {"broker_url": redis_server.db(), "result_backend": redis_server.db()}
    stage = Stage(folder, broker, url, durable_lease=LEASE)
    stage.worker(concurrency=3)
    yield stage
    stage.close()


def outcome(task: AsyncResult) -> object:
    """What a stock result backend tells: of a failure, the exception."""
    return task.get(timeout=60, propagate=False)


def seconds_to_loss(crash: Stage, task_id: str) -> float:
    events = crash.ledger.events(crash.get(task_id).id)
    claimed = next(e.at for e in events if e.verb == "claim")
    return (next(e.at for e in events if e.verb == "lose") - claimed) / 1e6


@pytest.mark.parametrize("how", WAYS)
def test_a_death_is_recorded_at_once_and_the_task_runs_again(crash: Stage, how: str) -> None:
    """Celery#1628, #7924: not when the lease ends, but when the parent sees it."""
    task = crash.submit("dies", how, 1)
    crash.await_state(task.id, "succeeded")
    row = crash.row(task.id)
    assert (row.claims, row.losses, row.retries) == (2, 1, 0)
    assert crash.kinds(task.id) == ["worker_lost"]
    assert crash.verbs(task.id) == ["submit", "claim", "lose", "claim", "succeed"]
    assert seconds_to_loss(crash, task.id) < LEASE / 2
    assert [s.fence for s in crash.witness.of(task.id)] == [1, 2]
    assert task.get(timeout=60) == 2


@pytest.mark.parametrize("how", WAYS)
def test_who_always_dies_is_poison_at_max_losses(crash: Stage, how: str) -> None:
    """Celery#9082: no endless loop. Result backend and errback hear of it once, at the end."""
    errback = crash.app.tasks["told"].s()
    task = crash.submit("dies", how, link_error=errback)
    record = crash.await_state(task.id, "dead")
    assert (record.failure_kind, record.claims, record.losses) == ("poison", 3, 3)
    assert crash.kinds(task.id) == ["worker_lost"] * 3
    assert [s.fence for s in crash.witness.of(task.id)] == [1, 2, 3]
    told = outcome(task)
    assert task.status == "FAILURE"
    assert type(told).__name__ == TOLD_AS[how]

    def told_of() -> list[str]:
        return [s.task_id for s in crash.witness.sights if s.note == task.id]

    crash.await_(told_of, "the errback did not run")
    crash.await_(lambda: crash.row(task.id).continuation_pending is None, "its outcome stays owed")
    assert len(told_of()) == 1


def test_on_loss_dead_is_not_started_twice(crash: Stage) -> None:
    task = crash.submit("dies_for_good", "kill")
    record = crash.await_state(task.id, "dead")
    assert (record.failure_kind, record.claims) == ("worker_lost", 1)
    assert crash.kinds(task.id) == ["worker_lost"]
    assert type(outcome(task)).__name__ == "WorkerLostError"
    assert len(crash.witness.of(task.id)) == 1


def test_a_hard_time_limit_is_a_loss_of_kind_timeout(crash: Stage) -> None:
    task = crash.submit("limited", "hang", 1)
    crash.await_state(task.id, "succeeded")
    assert crash.kinds(task.id) == ["timeout"]
    assert (crash.row(task.id).claims, crash.row(task.id).losses) == (2, 1)


def test_hard_time_limits_end_in_poison(crash: Stage) -> None:
    """Celery#10462: a hung task does not come back for ever."""
    task = crash.submit("limited", "hang")
    record = crash.await_state(task.id, "dead")
    assert (record.failure_kind, record.losses) == ("poison", 3)
    assert crash.kinds(task.id) == ["timeout"] * 3
    with pytest.raises(Exception, match="time limit"):
        task.get(timeout=60)


def test_a_soft_time_limit_is_a_failure_of_kind_timeout(crash: Stage) -> None:
    task = crash.submit("softly_limited", "hang")
    record = crash.await_state(task.id, "dead")
    assert (record.failure_kind, record.claims, record.losses) == ("timeout", 1, 0)
    assert crash.kinds(task.id) == ["timeout"]
    with pytest.raises(Exception, match="SoftTimeLimitExceeded") as told:
        task.get(timeout=60)
    assert type(told.value).__name__ == "SoftTimeLimitExceeded"


@pytest.mark.parametrize(("how", "verbs"), [
    ("return", ["submit", "claim", "succeed"]),
    ("retry", ["submit", "claim", "fail", "release", "claim", "succeed"]),
    ("wait", ["submit", "claim", "wait", "release", "claim", "succeed"]),
])  # fmt: skip
def test_a_body_may_take_its_soft_time_limit_as_it_likes(crash: Stage, how: str, verbs: list[str]) -> None:
    task = crash.submit("softly_ended", how)
    assert task.get(timeout=60) == ("cut short" if how == "return" else 2)
    assert crash.verbs(task.id) == verbs
    assert crash.row(task.id).losses == 0


@pytest.mark.parametrize("by", ["revoke", "cancel"])
def test_a_running_task_is_ended_with_its_process(crash: Stage, by: str) -> None:
    """By Celery's revoke with terminate, and by `durable cancel --terminate`, which needs no broker."""
    task = crash.submit("dies", "hang")
    pid = crash.await_start(task.id)[0].pid
    if by == "revoke":
        crash.app.control.revoke(task.id, terminate=True)
    else:
        row_id = crash.get(task.id).id
        assert crash.ledger.cancel_row(row_id, "wrong file", actor="test", terminate=True) == "running"
    record = crash.await_state(task.id, "cancelled")
    crash.await_(lambda: not psutil.pid_exists(pid), "its process lives")
    assert (record.claims, record.losses) == (1, 0)
    assert record.cancel_reason == ("Celery says: terminated" if by == "revoke" else "wrong file")
    assert crash.verbs(task.id) == ["submit", "claim", *(["cancel"] if by == "cancel" else []), "lose"]
    crash.await_(lambda: task.status == "REVOKED", "nobody is told")
    crash.await_(lambda: crash.row(task.id).continuation_pending is None, "its outcome stays owed")
    assert len(crash.witness.of(task.id)) == 1


def test_a_running_task_in_a_process_hears_of_its_cancellation(crash: Stage) -> None:
    task = crash.submit("long", 100_000)
    crash.await_start(task.id)
    crash.ledger.cancel_row(crash.get(task.id).id, "not wanted", actor="test")
    record = crash.await_state(task.id, "cancelled")
    assert [s.note for s in crash.witness.of(task.id, LEFT)] == ["Cancelled"]
    assert (record.cancel_reason, record.claims, record.failure) == ("not wanted", 1, None)
    assert (record.finished_at - record.cancel_requested_at) / 1e6 < LEASE / 3, "not at the next renewal"


def test_after_all_those_deaths_the_worker_takes_further_tasks(crash: Stage) -> None:
    """Celery#9596: MemoryError does not end the parent. Alone it proves nothing; with the others it does."""
    crash.await_state(crash.submit("dies", "memory").id, "dead")
    before = len(crash.witness.sights)
    ids = crash.submit_many(10)
    for task_id in ids:
        crash.await_state(task_id, "succeeded")
    assert len(crash.witness.sights) > before
    assert [w.name for w in crash.fleet.running] == ["w1"]
    assert crash.ledger.verify() == []
