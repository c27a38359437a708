"""Failpoints: what they do to the process and to the ledger, and that unarmed they are not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from celery_durable import failpoints
from celery_durable.errors import LedgerUnavailable, SettingsError
from celery_durable.ledger import Ledger
from tests.ledger.kit import claimed, opened, queued, row_of, running, submission, succeed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def armed(ledger: Ledger) -> Iterator[Callable[..., Ledger]]:
    """The same ledger in a process that has failpoints armed."""
    made = []

    def arm(text: str, folder: str | None = None) -> Ledger:
        failpoints.arm(text, folder)
        made.append(opened(ledger.db.url.render_as_string(hide_password=False)))
        return made[-1]

    yield arm
    failpoints.arm("")
    for each in made:
        each.db.dispose()


@pytest.mark.parametrize("place", ["statement", "commit"])
@pytest.mark.parametrize("action", ["raise", "execute-then-raise"])
def test_a_submission_whose_connection_breaks_once_is_there_once(ledger, armed, place, action):
    sub = submission("order-1")

    done = armed(f"submit.{place}={action}@1").submit(sub)

    assert done.outcome == ("own" if (place, action) == ("commit", "execute-then-raise") else done.outcome)
    assert row_of(ledger, done.row_id).state == "queued"
    assert [e.verb for e in ledger.events(done.row_id)] == ["submit"]


def test_a_connection_that_breaks_each_time_is_an_unavailable_ledger(ledger, armed):
    with pytest.raises(LedgerUnavailable):
        armed("submit.commit=raise").submit(submission("order-1"))

    if not ledger.dialect.one_statement:  # there, the statement is its own commit
        assert ledger.find(limit=9) == []


def test_a_success_whose_reply_is_lost_is_a_success(ledger, armed):
    claim = running(ledger)

    succeed(armed("succeed.commit=execute-then-raise@1"), claim)

    assert row_of(ledger, claim.row_id).state == "succeeded"
    assert [e.verb for e in ledger.events(claim.row_id)].count("succeed") == 1


@pytest.mark.parametrize("place", ["statement", "commit"])
def test_work_in_a_transaction_of_the_callers_comes_by_its_points(ledger, armed, tmp_path, place):
    there, engine = armed(f"submit.{place}=raise", str(tmp_path)), sa.create_engine(ledger.db.url)

    with pytest.raises(LedgerUnavailable, match="begin it again"), engine.connect() as connection, connection.begin():
        there.within(there.lender(connection)).submit(submission("order-1"))

    assert [mark.name for mark in tmp_path.iterdir()] == [f"submit.{place}-raise"]
    assert ledger.find(limit=9) == []
    engine.dispose()


CHILD = """
import sys
from celery_durable.ledger import Ledger
from celery_durable.settings import Settings
Ledger.open(Settings(ledger_url=sys.argv[1])).claim(sys.argv[2], "token", owner="w", pid=1, lease=30)
print("claimed")
"""


def in_a_process(ledger: Ledger, text: str, task_id: str, folder: Path) -> subprocess.CompletedProcess[str]:
    url = ledger.db.url.render_as_string(hide_password=False)
    env = os.environ | {failpoints.VARIABLE: text, failpoints.ONCE: str(folder)}
    return subprocess.run(
        [sys.executable, "-c", CHILD, url, task_id], env=env, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(("action", "state"), [("die", "queued"), ("execute-then-die", "running")])
def test_a_process_dies_before_or_after_a_commit_and_only_once(ledger, tmp_path, action, state):
    task_id, row_id = (made := queued(ledger)).task_id, made.row_id
    point = "claim.statement" if ledger.dialect.one_statement else "claim.commit"  # a statement that commits itself

    died = in_a_process(ledger, f"{point}={action}", task_id, tmp_path)

    assert (died.returncode, died.stdout) == (-signal.SIGKILL, "")
    assert row_of(ledger, row_id).state == state
    assert [p.name for p in tmp_path.iterdir()] == [f"{point}-die"]
    if state == "queued":
        assert in_a_process(ledger, f"{point}={action}", task_id, tmp_path).stdout == "claimed\n"


def test_every_verb_has_its_points(ledger):
    points = failpoints.points(Ledger.verbs())
    assert {"publish", "acknowledge", "submit.commit", "claim.statement", "take_rings.commit"} <= set(points)
    assert "ready.commit" not in points


@pytest.mark.parametrize(
    "text", ["succeed.commit", "succeed=die", "publish=explode", "publish=sleep", "claim.commit=die@x"]
)
def test_what_is_no_failpoint_is_refused_with_an_example(text):
    with pytest.raises(SettingsError, match=r"it looks like succeed\.commit=execute-then-die"):
        failpoints.arm(text)
    failpoints.arm("")


def test_a_verb_that_does_not_exist_is_refused_when_the_ledger_is_opened(armed):
    with pytest.raises(SettingsError, match=r"sucseed\.commit.*durable failpoints"):
        armed("sucseed.commit=die")


def test_unarmed_nothing_listens(ledger):
    claimed(ledger, queued(ledger).task_id)
    assert not failpoints.armed()
    assert not ledger.db.engine.dispatch.before_cursor_execute
