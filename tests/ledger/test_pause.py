"""pause, resume, and what they hold back: also while claims, sweeps and submissions go on."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from celery_durable import states
from celery_durable.errors import BadRequest
from celery_durable.ledger import Presence, pausing
from tests.ledger.kit import (
    BROKER,
    QUEUE,
    SECOND,
    TASK,
    Background,
    claimed,
    history,
    lock,
    make_due,
    now,
    queued,
    race,
    row_of,
    rows,
    running,
    seconds_ahead,
    succeeded,
    transaction,
    until_blocked,
    verbs,
    waiting,
)

HOUR = states.PAUSE_INTERVAL


def pause(ledger, target=QUEUE, kind="queue", *, until=None, reason="the bank is closed"):
    return ledger.pause(kind, target, reason, until=until, actor="ann")


def resume(ledger, target=QUEUE, kind="queue"):
    return ledger.resume(kind, target, actor="bob")


def claim(ledger, task_id):
    return ledger.claim(task_id, "t", owner="w", pid=1, lease=30)


def end(ledger, target=QUEUE, *, seconds=1):
    """Let a pause have ended so many seconds ago, without waiting for it."""
    p = ledger.t.pause
    past = ledger.dialect.clock_sql - seconds * SECOND
    ledger.db.run(lambda c: c.execute(sa.update(p).where(p.c.target == target).values(until=past)))


# --- what is held -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "target"), [("queue", "reports"), ("task", "shop.mail")])
def test_what_is_queued_waits_and_says_who_and_why(ledger, kind, target):
    row = queued(ledger, queue="reports", task="shop.mail")
    other = queued(ledger)

    assert pause(ledger, target, kind) == 1

    stored = row_of(ledger, row.row_id)
    sentence = f"{kind} '{target}' is paused by ann: the bank is closed"
    assert (stored.state, stored.wait_kind, stored.wait_reason, stored.publish_at) == (
        "waiting", "paused", sentence, None,
    )  # fmt: skip
    assert seconds_ahead(ledger, stored.wake_at) == pytest.approx(HOUR, abs=30)
    assert history(ledger, row.row_id)[-1] == ("pause", "queued", "waiting", "ann")
    assert row_of(ledger, other.row_id).state == "queued"


@pytest.mark.parametrize("make", [running, waiting, succeeded])
def test_what_is_not_queued_is_left_alone(ledger, make):
    row_id = make(ledger).row_id
    before = row_of(ledger, row_id)

    assert pause(ledger) == 0
    assert row_of(ledger, row_id) == before


def test_a_task_of_the_same_name_as_a_queue_is_another_thing(ledger):
    row = queued(ledger, queue="reports", task="mail")

    pause(ledger, "mail", "queue")
    pause(ledger, "reports", "task")

    assert claim(ledger, row.task_id).claim is not None


def test_what_arrives_later_is_held_when_it_is_met(ledger):
    pause(ledger)
    row = queued(ledger)

    assert claim(ledger, row.task_id).why == "paused"
    assert ledger.hold(row.task_id)

    assert row_of(ledger, row.row_id).wait_kind == "paused"
    assert not ledger.hold(row.task_id)
    assert verbs(ledger, row.row_id) == ["submit", "pause"]


def test_nothing_is_held_that_no_pause_concerns(ledger):
    row = queued(ledger)
    pause(ledger, "reports")

    assert not ledger.hold(row.task_id)
    assert row_of(ledger, row.row_id).state == "queued"


def test_more_than_a_batch_is_held_and_let_go(ledger, monkeypatch):
    monkeypatch.setattr(pausing, "BATCH", 3)
    made = [queued(ledger) for _ in range(8)]

    assert pause(ledger) == 8
    assert {r.state for r in rows(ledger)} == {"waiting"}
    assert resume(ledger) == 8
    assert {r.state for r in rows(ledger)} == {"queued"}
    assert all(verbs(ledger, r.row_id) == ["submit", "pause", "release"] for r in made)


# --- its end ----------------------------------------------------------------------------------------


def test_a_resume_queues_what_was_held_at_once_and_says_who_did(ledger):
    row = queued(ledger)
    pause(ledger)

    assert resume(ledger) == 1

    stored = row_of(ledger, row.row_id)
    assert (stored.state, stored.wait_kind) == ("queued", None)
    assert stored.publish_at <= now(ledger)
    last = ledger.events(row.row_id)[-1]
    assert (last.verb, last.actor, last.reason) == ("release", "bob", f"queue '{QUEUE}' was resumed")
    assert claim(ledger, row.task_id).claim is not None
    assert ledger.pauses() == []
    assert resume(ledger) == 0


def test_a_resume_leaves_other_waits_and_other_pauses_alone(ledger):
    later, held = waiting(ledger), queued(ledger, queue="reports")
    pause(ledger)
    pause(ledger, "reports")

    assert resume(ledger) == 0

    assert row_of(ledger, later.row_id).wait_kind == "scheduled"
    assert row_of(ledger, held.row_id).wait_kind == "paused"


def test_what_two_pauses_hold_waits_for_the_second_as_well(ledger):
    row = queued(ledger)
    pause(ledger, reason="first")
    pause(ledger, TASK, "task", reason="second")
    assert row_of(ledger, row.row_id).wait_reason.endswith("first")

    assert resume(ledger) == 0
    assert row_of(ledger, row.row_id).wait_reason == f"task '{TASK}' is paused by ann: second"
    assert resume(ledger, TASK, "task") == 1


def test_a_pause_ends_by_itself(ledger):
    row = queued(ledger)
    pause(ledger, until=states.After(60))
    assert seconds_ahead(ledger, row_of(ledger, row.row_id).wake_at) == pytest.approx(60, abs=20)
    end(ledger)
    make_due(ledger, row.row_id, "wake_at")

    assert ledger.pauses() == []
    ledger.release(10, actor="sweep")

    assert row_of(ledger, row.row_id).state == "queued"
    assert history(ledger, row.row_id)[-1] == ("release", "waiting", "queued", "sweep")


def test_what_is_queued_still_is_free_when_the_pause_has_ended(ledger):
    pause(ledger, until=states.After(60))
    row = queued(ledger)
    assert claim(ledger, row.task_id).why == "paused"
    end(ledger)

    assert not ledger.hold(row.task_id)
    assert claim(ledger, row.task_id).claim is not None


@pytest.mark.parametrize("until", [states.After(-1), states.At(1)])
def test_a_pause_that_would_be_over_is_refused_and_leaves_none(ledger, until):
    row = queued(ledger)

    with pytest.raises(BadRequest, match="over already"):
        pause(ledger, until=until)

    assert ledger.pauses() == []
    assert row_of(ledger, row.row_id).state == "queued"


def test_the_next_pause_clears_away_what_has_ended(ledger):
    pause(ledger, "old")
    end(ledger, "old")

    pause(ledger)

    found = ledger.db.run(lambda c: c.execute(sa.select(ledger.t.pause.c.target)).scalars().all())
    assert found == [QUEUE]


def test_a_second_pause_takes_the_place_of_the_first_also_for_what_is_held(ledger):
    row = queued(ledger)
    pause(ledger, reason="first")

    pause(ledger, reason="shorter", until=states.After(60))

    assert [(p.reason, p.actor) for p in ledger.pauses()] == [("shorter", "ann")]
    stored = row_of(ledger, row.row_id)
    assert stored.wait_reason.endswith("shorter")
    assert seconds_ahead(ledger, stored.wake_at) == pytest.approx(60, abs=20)


def test_a_sweep_does_not_release_what_is_paused_and_says_by_whom(ledger):
    row = queued(ledger)
    pause(ledger, reason="first")
    pause(ledger, TASK, "task", reason="second", until=states.After(600))
    end(ledger)
    make_due(ledger, row.row_id, "wake_at")

    assert ledger.release(10, actor="sweep") == 1  # looked at, and put off

    stored = row_of(ledger, row.row_id)
    assert (stored.state, stored.wait_reason) == ("waiting", f"task '{TASK}' is paused by ann: second")
    assert seconds_ahead(ledger, stored.wake_at) == pytest.approx(600, abs=30)
    assert ledger.release(10, actor="sweep") == 0


def test_other_waits_are_released_while_a_pause_lasts(ledger):
    row = waiting(ledger)
    pause(ledger)
    make_due(ledger, row.row_id, "wake_at")

    ledger.release(10, actor="sweep")

    assert row_of(ledger, row.row_id).state == "queued"
    assert claim(ledger, row.task_id).why == "paused"


def test_a_pause_for_days_is_looked_at_every_hour(ledger):
    row = queued(ledger)

    pause(ledger, until=states.After(7 * 86_400))

    assert seconds_ahead(ledger, row_of(ledger, row.row_id).wake_at) <= HOUR


def test_a_held_row_can_be_cancelled(ledger):
    row = queued(ledger)
    pause(ledger)

    assert ledger.cancel_row(row.row_id, "not wanted", actor="ann") == "cancelled"
    assert resume(ledger) == 0


# --- races ------------------------------------------------------------------------------------------


def test_pauses_of_one_target_at_the_same_time_are_one(ledger):
    answers = race(6, lambda n: pause(ledger, reason=f"reason {n}"))

    assert answers == [0] * 6
    assert len(ledger.pauses()) == 1


def test_claims_and_a_pause_at_the_same_time_leave_nothing_queued_and_nothing_twice(ledger):
    made = [queued(ledger) for _ in range(30)]

    def act(number):
        if number == 0:
            return pause(ledger)
        for row in made[number - 1 :: 3]:
            if claim(ledger, row.task_id).why == "paused":
                ledger.hold(row.task_id)
        return None

    answers = race(4, act)

    assert isinstance(answers[0], int), answers
    assert answers[1:] == [None] * 3
    for row in made:
        stored = row_of(ledger, row.row_id)
        # What slipped through was claimed; a row that was locked just then is held by whoever meets it.
        told = verbs(ledger, row.row_id)
        expected = {"running": ["submit", "claim"], "waiting": ["submit", "pause"]}[stored.state]
        assert told == expected


def test_a_row_that_is_being_held_while_its_pause_ends_is_let_go(ledger, monkeypatch):
    """The resume has to wait for the hold, or it would not see what that writes."""
    row = queued(ledger)
    pause(ledger, "elsewhere")
    ledger.db.run(
        lambda c: c.execute(sa.update(ledger.t.pause).values(target=QUEUE))  # a pause that has held nothing yet
    )
    resumed = []
    write_all = ledger.writer.write_all

    def late(connection, *args, **options):
        if not resumed:  # the hold has read the pauses and locked its row
            resumed.append(Background(lambda: resume(ledger)))
            until_blocked(ledger)
        write_all(connection, *args, **options)

    monkeypatch.setattr(ledger.writer, "write_all", late)

    assert ledger.hold(row.task_id)

    assert resumed[0].answer() == 1
    assert row_of(ledger, row.row_id).state == "queued"
    assert verbs(ledger, row.row_id) == ["submit", "pause", "release"]


def test_a_sweep_that_puts_a_held_row_off_while_its_pause_ends_does_not_win(ledger, monkeypatch):
    row = queued(ledger)
    pause(ledger)
    make_due(ledger, row.row_id, "wake_at")
    resumed = []
    let_go = ledger._let_go

    def late(connection, *args, **options):
        if not resumed:
            resumed.append(Background(lambda: resume(ledger)))
            until_blocked(ledger)
        return let_go(connection, *args, **options)

    monkeypatch.setattr(ledger, "_let_go", late)
    ledger.release(10, actor="sweep")

    assert resumed[0].answer() == 1
    assert row_of(ledger, row.row_id).state == "queued"


def test_a_locked_row_does_not_hold_up_a_pause(ledger):
    if ledger.dialect.name == "sqlite":
        pytest.skip("sqlite locks the whole database, so no row alone can be held")
    busy, free = queued(ledger), queued(ledger)

    with transaction(ledger) as connection:
        lock(ledger, connection, busy.row_id)
        assert pause(ledger) == 1

    assert row_of(ledger, free.row_id).state == "waiting"
    assert claim(ledger, busy.task_id).why == "paused"


def test_a_pause_and_a_resume_in_turns_lose_no_row(ledger):
    made = [queued(ledger) for _ in range(10)]

    def act(number):
        for _ in range(3):
            if number == 0:
                pause(ledger)
            elif number == 1:
                resume(ledger)
            else:
                ledger.release(10, actor="sweep")
        return "done"

    assert race(3, act) == ["done"] * 3
    resume(ledger)

    assert {row_of(ledger, r.row_id).state for r in made} == {"queued"}


# --- names ------------------------------------------------------------------------------------------


def test_a_bare_name_means_what_workers_rows_and_pauses_know(ledger):
    presence = Presence("w1", "w1", 1, ["celery", "both"], ["shop.charge", "both"], BROKER, 30)
    ledger.enter(presence)
    queued(ledger, queue="of-a-row", task="shop.of_a_row")
    succeeded(ledger, queue="over", task="shop.over")
    pause(ledger, "held")

    names = ["celery", "shop.charge", "both", "of-a-row", "shop.of_a_row", "held", "over", "shop.over"]
    assert [ledger.kinds_of(n) for n in names] == [
        ["queue"], ["task"], ["queue", "task"], ["queue"], ["task"], ["queue"], [], [],
    ]  # fmt: skip


def test_pauses_are_told_oldest_first(ledger):
    pause(ledger, "a", until=states.After(90))
    pause(ledger, "b", "task", reason="why")

    first, second = ledger.pauses()

    assert (first.kind, first.target, second.kind, second.target) == ("queue", "a", "task", "b")
    assert first.as_json().keys() == {"kind", "target", "reason", "actor", "since", "until"}
    assert (second.as_json()["until"], second.as_json()["reason"]) == (None, "why")
    assert first.as_json()["until"].endswith("+00:00")


def test_a_held_row_keeps_its_patience(ledger):
    """A pause is no progress of the task's own: consecutive waits go on counting behind it (PROTOCOL 17)."""
    asked = states.Wait("condition", "rates are late", states.After(1), give_up_after=600)
    row_claim = running(ledger)
    ledger.settle(
        row_claim, lambda r: states.wait(r, asked, None, token="o", owes=False, ring=1), actor="w"
    )  # fmt: skip
    before = row_of(ledger, row_claim.row_id)
    make_due(ledger, row_claim.row_id, "wake_at")
    ledger.release(10, actor="sweep")
    pause(ledger)
    resume(ledger)
    claimed(ledger, row_claim.task_id)

    after = row_of(ledger, row_claim.row_id)
    assert (after.waits, after.waiting_from, after.give_up_at) == (1, before.waiting_from, before.give_up_at)
