"""A process that dies between the settle and the telling: what follows a task still follows, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import chain, chord, group

from tests.crash.kit import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.services import Redis


@pytest.fixture(scope="module")
def crash(redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One worker with stock Redis results; its lease is long, so that nothing here waits for one."""
    folder = tmp_path_factory.mktemp("continuations")
    broker = {"broker_url": redis_server.db(), "result_backend": redis_server.db()}
    stage = Stage(folder, broker, f"sqlite:///{folder / 'ledger.db'}", durable_lease=30)
    stage.worker(concurrency=3)
    yield stage
    stage.close()


def settled(crash: Stage, task_id: str, state: str = "succeeded") -> None:
    """It ended in its only claim although its process died, and owes nothing any more."""
    record = crash.await_state(task_id, state)
    assert (record.claims, record.losses) == (1, 0), "the body ran once: it was settled before the death"
    assert len(crash.witness.of(task_id)) == 1
    crash.await_(lambda: crash.row(task_id).continuation_pending is None, "its outcome stays owed")


@pytest.mark.parametrize("dying", ["unlucky", "untold"])
def test_the_next_of_a_chain_runs_once(crash: Stage, dying: str) -> None:
    """`unlucky` dies before the chain is sent, `untold` after it, before the result is stored."""
    tasks = crash.app.tasks
    last = chain(tasks[dying].s(5), tasks["work"].s(), tasks["work"].s()).apply_async()
    assert last.get(timeout=120) == 5
    assert last.parent.parent.get(timeout=120) == 5
    settled(crash, last.parent.parent.id)
    for follower in (last.parent, last):
        crash.await_state(follower.id, "succeeded")
        assert len(crash.witness.of(follower.id)) == 1
        assert crash.row(follower.id).claims == 1


def test_a_callback_runs_once(crash: Stage) -> None:
    callback = crash.app.tasks["work"].s().set(task_id="the-callback")
    task = crash.submit("untold", 6, link=callback)
    assert task.get(timeout=120) == 6
    settled(crash, task.id)
    crash.await_state("the-callback", "succeeded")
    assert [s.note for s in crash.witness.of("the-callback")] == ["6"]


def test_an_errback_and_the_failure_arrive(crash: Stage) -> None:
    task = crash.submit("unlucky_failure", link_error=crash.app.tasks["told"].s())
    with pytest.raises(ValueError, match="as planned"):
        task.get(timeout=120)
    settled(crash, task.id, "dead")

    def told_of() -> list[str]:
        return [s.task_id for s in crash.witness.sights if s.note == task.id]

    crash.await_(told_of, "the errback did not run")
    assert len(told_of()) == 1


@pytest.mark.parametrize("dying", ["unlucky", "untold"])
def test_a_chord_whose_part_dies_has_one_body(crash: Stage, dying: str) -> None:
    """Celery#8211: a part that is told twice must not be counted twice, nor be missing."""
    tasks = crash.app.tasks
    parts = group(tasks["work"].s(1), tasks[dying].s(2), tasks["work"].s(3))
    body = chord(parts)(tasks["gathered"].s())
    assert body.get(timeout=120) == [1, 2, 3]
    crash.await_state(body.id, "succeeded")
    assert len(crash.witness.of(body.id)) == 1
    assert crash.ledger.verify() == []
