"""A bulk replay that is killed half-way and run again brings each task back once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from celery_durable.ledger import Casualties
from tests.crash.fleet import PATIENCE, ROOT
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.kit import Stage

MANY = 5_000
FINGERPRINT = "5a1ad0fd00d5a1ad"
NOW = 1_700_000_000_000_000


def slain(stage: Stage, count: int) -> None:
    """Make so many rows that failed once and died of it, each with its history."""
    t, run = stage.ledger.t, stage.ledger.db.run
    tasks = [
        {
            "task_id": f"slain-{n}", "idempotency_key": f"slain-{n}", "key_digest": n.to_bytes(32, "big"),
            "task": "work",
            "state": "dead", "queue": "crash", "broker": stage.side.broker, "envelope": "{}", "body": b"x", "claims": 1,
            "max_losses": 3, "on_loss": "retry", "owes": 0, "submitted_at": NOW, "submitted_by": "shop",
            "started_at": NOW, "finished_at": NOW, "failure_kind": "permanent",
        }
        for n in range(1, count + 1)
    ]  # fmt: skip
    run(lambda c: c.execute(sa.insert(t.task), tasks))
    died = {
        "claim": 1, "kind": "permanent", "exception": "ValueError", "message": "card refused", "traceback": "",
        "fingerprint": FINGERPRINT, "retryable": 0, "worker": "w", "occurred_at": NOW,
    }  # fmt: skip
    moves = (("submit", None, "queued", 0), ("claim", "queued", "running", 1), ("fail", "running", "dead", 1))

    def failed(connection: sa.Connection) -> None:
        ids = connection.execute(sa.select(t.task.c.id)).scalars().all()
        connection.execute(sa.insert(t.failure), [died | {"task_row": row_id} for row_id in ids])
        for verb, source, target, claim in moves:
            told = {"verb": verb, "from_state": source, "to_state": target, "claim": claim, "at": NOW, "actor": "w"}
            connection.execute(sa.insert(t.event), [told | {"task_row": i, "reason": ""} for i in ids])

    run(failed)


def replay(stage: Stage, *options: str) -> subprocess.Popen[str]:
    words = ("replay", "--fingerprint", FINGERPRINT, "--reason", "fixed", *options)
    command = [sys.executable, "-m", "celery", "-A", "tests.crash.app", "durable", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **stage.env}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def left(stage: Stage) -> int:
    return stage.ledger.count_dead(Casualties(fingerprint=FINGERPRINT))


def replays(stage: Stage) -> list[int]:
    """How often each row was replayed."""
    e = stage.ledger.t.event.c
    query = sa.select(e.task_row, sa.func.count().label("n")).where(e.verb == "replay").group_by(e.task_row)
    return [r.n for r in stage.ledger.db.run(lambda c: c.execute(query).all(), read_only=True)]


@pytest.mark.parametrize("ledger", ["sqlite", "postgresql", "mariadb"])
def test_a_replay_that_is_killed_half_way_and_run_again_brings_each_back_once(
    stage: Callable[..., Stage], ledger: str
) -> None:
    # Given 5,000 tasks that died of the same
    play = stage("redis", ledger)
    slain(play, MANY)
    assert left(play) == MANY

    # When their replay is killed half-way (its pace is held, so that half-way is not over in a blink)
    command = replay(play, "--rate", "1500")
    wait_until(lambda: left(play) <= MANY * 0.55 or command.poll() is not None, PATIENCE, "nothing is replayed")
    command.send_signal(signal.SIGKILL)
    assert command.wait(PATIENCE) == -signal.SIGKILL, command.communicate()
    rest = left(play)
    assert 0 < rest < MANY
    assert len(replays(play)) == MANY - rest  # a batch that was under way stands whole or not at all

    # And it is run again
    again = replay(play, "--json")
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err

    # Then the rest came back, and each row once
    assert json.loads(out) == {"replayed": rest, "passed_over": 0}
    assert replays(play) == [1] * MANY
    assert play.states() == {"queued": MANY}
    play.audit()
