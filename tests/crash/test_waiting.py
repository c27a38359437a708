"""A task waits for a file, and its worker is killed meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.command import told, told_json
from tests.crash.witness import FINISHED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.crash.kit import Stage

REASON = "the rates of today have not arrived"


def test_a_wait_outlives_its_worker_and_why_tells_the_reason_throughout(
    stage: Callable[..., Stage], tmp_path: Path
) -> None:
    # Given a task that waits for a file
    crash, path = stage("redis", "sqlite"), tmp_path / "rates.txt"
    worker = crash.worker()
    task_id = crash.submit("reads", str(path)).id
    crash.await_state(task_id, "waiting")
    answers: list[dict[str, Any]] = []

    def why() -> dict[str, Any]:
        answers.append(told_json(crash, "why", task_id))
        return answers[-1]

    crash.await_(lambda: why() and crash.get(task_id).waits >= 2, "it is not looked at again")

    # When its worker is killed while it waits
    def waits_for_long() -> bool:
        record = crash.get(task_id)
        return record.state == "waiting" and record.wake_at - record.now > 1e6

    crash.await_(lambda: why() and waits_for_long(), "it does not wait")
    worker.kill()
    assert crash.get(task_id).state == "waiting"
    assert "due for" not in why()["reason"]
    crash.sql("UPDATE durable_task SET wake_at = wake_at - 60000000")  # a minute later
    assert "due for" in why()["reason"]

    # And the file appears, with another worker
    path.write_text("1.09", encoding="utf-8")
    text = told(crash, "why", task_id)
    crash.worker()
    crash.await_(lambda: why()["state"] == "succeeded", "it does not run")

    # Then the task has run, its waits have burned nothing, and every answer before named the reason
    record = crash.get(task_id)
    assert (record.decoded_result(), record.retries, record.losses) == ("1.09", 0, 0)
    assert len(crash.witness.of(task_id, FINISHED)) == 1
    assert "lose" not in crash.verbs(task_id)
    assert all(REASON in json.dumps(answer) for answer in answers if answer["state"] != "succeeded"), answers
    assert all(REASON in answer["reason"] for answer in answers if answer["state"] == "waiting"), answers
    assert REASON in text
    assert max(map(len, text.splitlines())) <= 100
    assert len(answers) >= 5
    crash.audit()


@pytest.mark.parametrize("when", ["die", pytest.param("execute-then-die", marks=pytest.mark.slow)])
def test_a_death_at_the_moment_of_a_wait_or_a_retry_loses_neither(
    stage: Callable[..., Stage], tmp_path: Path, when: str
) -> None:
    """Either the row waits, or the attempt was lost and runs again."""
    # Given a task that waits and one that is retried, whose processes die as that is written: once before the commit,
    # once before it or right after
    crash, path, struck = stage("redis", "sqlite"), tmp_path / "rates.txt", tmp_path / "struck"
    struck.mkdir()
    crash.fleet._env.update(
        DURABLE_FAILPOINTS=f"settle.statement={when}; settle.commit={when}", DURABLE_FAILPOINTS_ONCE=str(struck)
    )
    crash.worker()
    waits, retried = crash.submit("reads", str(path)).id, crash.submit("stumbles", 1, 1).id

    # When both have died once, and the file appears
    crash.await_(lambda: len(list(struck.iterdir())) == 2, "nobody died")
    crash.await_(lambda: "wait" in crash.verbs(waits), "it does not wait")
    path.write_text("1.09", encoding="utf-8")

    # Then both succeed, and what was lost is what had not been committed
    records = [crash.await_state(task_id, "succeeded") for task_id in (waits, retried)]
    assert [r.retries for r in records] == [0, 1]
    assert sum(r.losses for r in records) == (2 if when == "die" else 1)
    assert all(len(crash.witness.of(r.task_id, FINISHED)) == 1 for r in records)
    crash.audit()
