"""A bulk submission that is killed half-way and run again; and what it takes of memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from celery_durable import failpoints
from tests.crash.fleet import PATIENCE, ROOT

if TYPE_CHECKING:
    from pathlib import Path

#: With DURABLE_MATRIX=full the figures of the promise: a million calls, 200 MiB.
FULL = os.environ.get("DURABLE_MATRIX") == "full"
COUNT = 1_000_000 if FULL else 5_000
MEMORY = 200 * 1024

SUBMITTER = r"""
import os, re, signal, sys, time
from pathlib import Path
from tests.crash.app import app

count, stop = int(sys.argv[1]), int(sys.argv[2])

def calls():
    for n in range(count):
        if n == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        yield (n,)

def peak_memory():  # of this program; ru_maxrss would tell of the one that started it, too
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

task = app.tasks["work"]
task.submit_many([(-1,)], key="order-{n}")
before, began = peak_memory(), time.monotonic()
receipts = task.submit_many(calls(), key="order-{n}")
rate = round(count / (time.monotonic() - began))
print(peak_memory(), before, rate, *(f"{k}={v}" for k, v in receipts.counts.items()))
"""


def submitter(stage, count: int, stop: int = -1, armed: str = "", once: Path | None = None):
    armed_env = {failpoints.VARIABLE: armed} | ({failpoints.ONCE: str(once)} if once else {})
    return subprocess.run(
        [sys.executable, "-c", SUBMITTER, str(count), str(stop)], cwd=ROOT, env=os.environ | stage.env | armed_env,
        stdout=subprocess.PIPE, text=True, timeout=7200 if FULL else PATIENCE, check=False,
    )  # fmt: skip


def there(stage) -> tuple[int, int, int]:
    """How many rows there are, how many keys, and how many rows in the history."""
    t = stage.ledger.t
    query = sa.select(
        sa.func.count(), sa.func.count(t.task.c.idempotency_key.distinct()),
        sa.select(sa.func.count()).select_from(t.event).scalar_subquery(),
    ).select_from(t.task)  # fmt: skip
    return tuple(stage.ledger.db.run(lambda c: c.execute(query).one(), read_only=True))


@pytest.mark.timeout(7200 if FULL else 300)
def test_killed_half_way_and_run_again_each_call_is_there_once_and_memory_is_bounded(stage):
    s = stage("redis", "postgresql", durable_republish_after=3600.0)

    killed = submitter(s, COUNT, stop=COUNT // 2 + 300)
    kept = there(s)[0] - 1
    whole = (COUNT // 2 + 300) // 1_000 * 1_000
    assert kept in {whole - 1_000, whole}, "whole chunks; the last was on its way"
    assert (killed.returncode, there(s)) == (-signal.SIGKILL, (kept + 1,) * 3)
    again = submitter(s, COUNT)

    print("peak KiB, before KiB, calls/s, outcomes:", again.stdout)
    peak, _, _, new, existing = again.stdout.split()
    assert (new, existing) == (f"new={COUNT - kept}", f"existing={kept}")
    assert there(s) == (COUNT + 1,) * 3
    assert int(peak) < MEMORY, "KiB"


@pytest.mark.parametrize(
    "armed",
    [
        "submit_many.statement=execute-then-die@3",
        "publish=die@3",
        pytest.param("submit_many.statement=die@3", marks=pytest.mark.slow),
        pytest.param("publish=execute-then-die@3", marks=pytest.mark.slow),
    ],
)
def test_killed_between_insert_and_send_of_a_chunk(stage, armed, tmp_path):
    s = stage("redis", "postgresql")

    assert submitter(s, 3_000, armed=armed, once=tmp_path).returncode == -signal.SIGKILL
    assert there(s)[0] in {1 + 1_000, 1 + 2_000}
    assert submitter(s, 3_000, armed=armed, once=tmp_path).returncode == 0

    assert there(s) == (3_001,) * 3


def test_what_a_killed_submitter_recorded_runs(stage, tmp_path):
    s = stage("redis", "postgresql")

    assert submitter(s, 50, armed="publish=die@2", once=tmp_path).returncode == -signal.SIGKILL
    s.worker()

    s.await_all(51)
