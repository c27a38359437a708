"""`show --follow`, `cancel --terminate` and progress as the command tells them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from celery_durable import states
from celery_durable.cli.following import Pace, progress_line
from celery_durable.ledger.registry import Presence
from tests.cli.kit import on_a_terminal
from tests.ledger import kit
from tests.waiting import wait_until


@pytest.fixture
def running(ledger):
    return kit.running(ledger)


def note(ledger, claim, done, total=40, note="rows"):
    ledger.progress(claim, f'{{"done": {done}, "total": {total}, "note": "{note}"}}')


class Following:
    """The command, while its task goes on; what it has printed so far, a chunk at a time."""

    def __init__(self, shop, *words):
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # So it is where a shell started the tests in the background; the command would inherit it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command = [sys.executable, "-m", "celery", "-A", "shop", "durable", "show", "--follow", *words]
        self.process = subprocess.Popen(
            command, cwd=shop.folder, env=shop.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")), daemon=True).start()

    def await_line(self, text):
        return wait_until(lambda: [x for x in self.lines if text in x], timeout=60, message=f"no {text!r}")

    def ended(self):
        return self.process.wait(60)


@pytest.fixture
def following(shop, running):
    begun = Following(shop, running.task_id)
    yield begun
    begun.process.kill()
    begun.process.wait()


def test_plain_lines_tell_each_change_until_the_task_has_ended(ledger, running, following):
    following.await_line("running on")
    note(ledger, running, 10)
    following.await_line("10 of 40 (25 %): rows")
    note(ledger, running, 20)
    (line,) = following.await_line("20 of 40 (50 %): rows")
    ledger.succeed(running, b'"all of it"', "application/json", owes=False, actor="w", continuation_grace=1)
    following.await_line("succeeded: 'all of it'")

    assert following.ended() == 0
    assert "/s, " in line
    assert " left, " in line
    assert all(x[2] == ":" and "\x1b" not in x for x in following.lines), following.lines


def test_json_waits_and_prints_one_document(shop, ledger, running):
    timer = threading.Timer(1.5, kit.succeed, (ledger, running))
    note(ledger, running, 1, 4)
    timer.start()
    document = shop.durable("show", running.task_id, "--follow", "--json").json
    timer.join()

    assert (document["state"], document["progress"]["done"]) == ("succeeded", 1)
    assert set(document["progress"]) == {"done", "total", "note", "at"}


def test_ctrl_c_ends_the_command_and_not_the_task(ledger, running, following):
    following.await_line("running on")
    os.kill(following.process.pid, signal.SIGINT)

    assert following.ended() == 130
    assert "Traceback" not in (told := following.process.stderr.read())
    assert told.splitlines()[-1] == "Not followed any more; the task goes on."
    assert ledger.get(running.task_id).state == "running"


def test_a_terminal_gets_a_bar(shop, ledger, running):
    note(ledger, running, 10)
    timer = threading.Timer(3, kit.succeed, (ledger, running))
    timer.start()
    shown = on_a_terminal(shop, "-A", "shop", "durable", "show", running.task_id, "--follow")
    timer.join()

    assert "━" in shown
    assert "10 of 40 (25 %): rows" in shown
    assert "\x1b[?25h" in shown, "the cursor is there again"
    assert "succeeded" in shown


def test_what_is_over_is_not_waited_for(shop, ledger, running):
    kit.succeed(ledger, running, b"1")
    out = shop.durable("show", running.task_id, "--follow").out
    assert out.splitlines()[-1].endswith("succeeded: 1")
    assert len(out.splitlines()) == 1


def test_show_tells_the_progress(shop, ledger, running):
    note(ledger, running, 10)
    assert "10 of 40 (25 %): rows" in shop.durable("show", running.task_id).out


def test_the_rate_is_taken_from_what_the_task_said(ledger, running):
    pace = Pace()
    for done, seconds in ((0, 100), (30, 120), (60, 140)):
        note(ledger, running, done, 120)
        ledger.db.run(lambda c, at=seconds * 10**6: c.execute(sa.update(ledger.t.task).values(progress_at=at)))
        pace.note(record := ledger.get(running.task_id))

    assert pace.rate == pytest.approx(1.5)
    assert progress_line(record, pace).startswith("1.5/s, ")


def test_progress_of_a_claim_that_is_over_is_not_noted(ledger, running):
    ledger.lose(running.task_id, running.token, kit.gone(), owed_token="o", actor="w")
    note(ledger, running, 10)
    assert ledger.get(running.task_id).progress is None


# --- cancel --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_terminate_is_for_pools_of_processes(shop, ledger, running, pool):
    owner = ledger.get(running.task_id).lease_owner
    ledger.enter(Presence(owner, "w1@host", 7, ["celery"], ["t"], kit.BROKER, 30, pool))
    answer = shop.durable("cancel", running.task_id, "--reason", "wrong file", "--terminate")
    flagged = ledger.get(running.task_id).cancel_requested_at is not None

    if pool == "prefork":
        assert (answer.code, flagged) == (0, True)
        assert "was asked to end its process" in answer.out
    else:
        assert (answer.code, flagged) == (1, False)
        assert "w1@host, in a pool of threads: only a prefork pool can end" in answer.error


def test_a_cancelled_row_keeps_its_state_until_it_moves(shop, ledger, running):
    out = shop.durable("cancel", running.task_id, "--reason", "wrong file").out
    assert "ends cancelled at its next check() or move" in out
    assert ledger.get(running.task_id).state == states.RUNNING
