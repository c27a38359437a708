"""Steps under SIGKILL: at every place of a task in turn, at every statement, and frozen in the middle of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from celery_durable.ledger import Ledger
from celery_durable.settings import Settings
from tests.crash.fleet import PATIENCE, ROOT
from tests.crash.mortal import build
from tests.crash.witness import FINISHED, STARTED, Witness
from tests.task.running import seen, steps_of, witnesses
from tests.waiting import wait_until
from tests.worker.kit import closed, record, the_ledger, verbs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL = os.environ.get("DURABLE_MATRIX") == "full"
COUNT, STATEMENTS, WORKED = (20, 20, 20) if FULL else (3, 1, 1)
LEDGERS = ["sqlite", "postgresql", "mariadb"]
SOME = LEDGERS if FULL else LEDGERS[:1]


@pytest.fixture(params=LEDGERS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """A migrated ledger of each dialect."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param != "sqlite":
        server = {"postgresql": "postgres_server", "mariadb": "mariadb_server"}[request.param]
        url = request.getfixturevalue(server).database()
    made = Ledger.open(Settings(ledger_url=url))
    made.migrate()
    yield made
    made.db.dispose()


def mortal(ledger: Ledger, folder: Path, kind: str, given: object) -> subprocess.Popen[str]:
    url = ledger.db.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "tests.crash.mortal", kind, url, str(folder), str(given)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def killed_everywhere(ledger: Ledger, folder: Path, kind: str, count: int) -> dict[str, Any]:
    out, _ = mortal(ledger, folder, kind, count).communicate(timeout=280)
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    print(told)
    assert told["state"] == "succeeded"
    assert told["claims"] == told["kills"] + 1
    assert ledger.verify() == []
    return told


def names(ledger: Ledger, task_id: str) -> list[str]:
    return [s.name for s in ledger.steps(ledger.get(task_id).id)]


def ends_of(folder: Path, told: dict[str, Any], n: int, what: str = FINISHED) -> list[int]:
    """The claims whose runs came to the end of a step's function, or to its beginning."""
    return [s.fence for s in Witness(folder / "witness").of(told["task_id"], what) if s.note == str(n)]


@pytest.mark.matrix
def test_a_task_killed_inside_and_after_every_step_does_each_step_once(ledger: Ledger, tmp_path: Path) -> None:
    told = killed_everywhere(ledger, tmp_path, "steps", COUNT)
    assert told["kills"] == 2 * COUNT
    assert told["losses"] <= 1, "losses with a new step between do not add up"
    steps = {s.name: s.claim for s in ledger.steps(ledger.get(told["task_id"]).id)}
    assert list(steps) == [f"part-{n}" for n in range(COUNT)]
    for n in range(COUNT):
        assert ends_of(tmp_path, told, n) == [steps[f"part-{n}"]], "it ran to its end once"
        assert len(ends_of(tmp_path, told, n, STARTED)) == 2, "and was killed inside once"


@pytest.mark.parametrize("ledger", SOME, indirect=True)
@pytest.mark.matrix
def test_a_function_that_ended_is_called_again_only_until_its_record_is_committed(
    ledger: Ledger, tmp_path: Path
) -> None:
    """The one window there is: between the end of the function and the commit of its record."""
    told = killed_everywhere(ledger, tmp_path, "steps!", STATEMENTS)
    steps = {s.name: s.claim for s in ledger.steps(ledger.get(told["task_id"]).id)}
    assert list(steps) == [f"part-{n}" for n in range(STATEMENTS)]
    for n in range(STATEMENTS):
        ends = ends_of(tmp_path, told, n)
        assert len(ends) > 1, "killed in the window"
        assert ends[-1] == steps[f"part-{n}"], "what is recorded is the last call, and nobody called again"


@pytest.mark.matrix
def test_a_transactional_step_killed_at_every_statement_takes_effect_once(ledger: Ledger, tmp_path: Path) -> None:
    told = killed_everywhere(ledger, tmp_path, "transactions!", STATEMENTS)
    assert names(ledger, told["task_id"]) == [f"part-{n}" for n in range(STATEMENTS)]
    assert seen(ledger, witnesses(ledger)) == [str(n) for n in range(STATEMENTS)]
    # SAVEPOINT, the user's INSERT, RELEASE, the record: before and after each; before COMMIT and behind it.
    assert told["kills"] >= STATEMENTS * (2 * 4 + 2)


@pytest.mark.parametrize("ledger", SOME, indirect=True)
@pytest.mark.matrix
def test_a_task_killed_around_every_checkpoint_goes_on_from_one(ledger: Ledger, tmp_path: Path) -> None:
    told = killed_everywhere(ledger, tmp_path, "checkpoints!", STATEMENTS)
    done = [int(s.note) for s in Witness(tmp_path / "witness").of(told["task_id"], FINISHED)]
    assert sorted(done) == done, "it never goes back behind a checkpoint"
    assert set(done) == set(range(STATEMENTS))


@pytest.mark.matrix
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dialect", SOME)
def test_a_worker_whose_processes_are_killed_inside_and_after_every_step(stage, dialect: str) -> None:
    """The same with a real worker and broker; the losses between do not make the task poison."""
    crash = stage("redis", dialect)
    crash.worker(concurrency=1)
    task = crash.submit("stepping", WORKED)
    # A Celery worker that has nothing else to do takes up to five seconds to see that a process of its pool is dead.
    crash.await_(lambda: crash.get(task.id).state == "succeeded", "it did not succeed", PATIENCE + 20 * WORKED)
    record = crash.get(task.id)
    assert record.decoded_result() == sum(range(WORKED))
    assert record.claims == 2 * WORKED + 1
    finished = [s.note for s in crash.witness.of(task.id, FINISHED)]
    assert finished == [str(n) for n in range(WORKED)], "each function ran to its end once"
    assert [s.name for s in crash.ledger.steps(record.id)] == [f"part-{n}" for n in range(WORKED)]
    assert crash.kinds(task.id) == ["worker_lost"] * 2 * WORKED
    crash.audit()


@pytest.mark.parametrize("ledger", ["postgresql", "mariadb"], indirect=True)
def test_a_process_frozen_within_a_transactional_step_is_rolled_back_when_it_thaws(
    ledger: Ledger, tmp_path: Path
) -> None:
    """Another claim does the step meanwhile. On SQLite nobody could: the frozen process holds the only write lock."""
    app, _ = build(ledger.db.url.render_as_string(hide_password=False), tmp_path)
    result = app.tasks["transactions"].delay(1)
    (tmp_path / "stop").touch()
    zombie = mortal(ledger, tmp_path, "run", result.id)
    _, status = os.waitpid(zombie.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    (tmp_path / "stop").unlink()
    try:
        ledger.db.run(lambda c: c.execute(expired(ledger)))
        assert ledger.expire_leases(10, actor="test") == [result.id]
        other = json.loads(mortal(ledger, tmp_path, "run", result.id).communicate(timeout=120)[0].splitlines()[-1])
        assert other == {"state": "succeeded", "claims": 2}
    finally:
        os.kill(zombie.pid, signal.SIGCONT)
    zombie.communicate(timeout=120)

    wait_until(lambda: "fenced" in verbs(app, result), 30)
    assert seen(ledger, witnesses(ledger)) == ["0"], "what the frozen process wrote is rolled back"
    [step] = the_ledger(app).steps(record(app, result).id)
    assert (step.claim, record(app, result).state) == (2, "succeeded")
    assert steps_of(app, result) == {"part-0": 0}
    assert ledger.verify() == []
    closed(app)


def expired(ledger: Ledger) -> Any:
    return ledger.t.task.update().values(lease_expires_at=ledger.dialect.clock_sql - 1)
