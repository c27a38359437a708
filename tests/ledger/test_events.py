"""Events sent to tasks: before, after and at the same time as the wait for them (PROTOCOL 18)."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from celery_durable import failures, states
from celery_durable.errors import NoSuchTask
from tests.ledger.kit import (
    Background,
    cancelled,
    claimed,
    dead,
    make_due,
    now,
    queued,
    race,
    row_of,
    running,
    seconds_ahead,
    succeeded,
    until_blocked,
    verbs,
    waiting,
)

GIVEN_UP = failures.loss("timeout", "WaitTimeout", "gave up", worker="w", pid=1, claim=1)


def send(ledger, row, payload="1", name="paid"):
    return ledger.send_event(row.row_id, name, payload, actor="shop")


def await_event(ledger, claim, name="paid", timeout=3600):
    """What a body does that finds no event."""
    asked = states.Wait("event", f"waits for event {name!r}", states.After(timeout), give_up_after=timeout, event=name)
    return ledger.settle(
        claim, lambda row: states.wait(row, asked, GIVEN_UP, token="o", owes=False, ring=30), actor="worker-1"
    )


def woken(ledger, claim):
    """Whether the row is due, and was released and claimed again."""
    if ledger.release(10, actor="sweep") == 0:
        return None
    return claimed(ledger, claim.task_id)


def test_an_event_that_comes_before_the_wait_is_not_lost(ledger):
    row = queued(ledger)
    assert send(ledger, row, '{"cents": 5}')

    claim = claimed(ledger, row.task_id)

    assert ledger.event(claim, "paid") == '{"cents": 5}'
    assert ledger.event(claim, "refunded") is None


def test_an_event_wakes_the_task_that_waits_for_it(ledger):
    claim = running(ledger)
    await_event(ledger, claim)
    assert woken(ledger, claim) is None

    assert send(ledger, claim)

    assert row_of(ledger, claim.row_id).wake_at <= now(ledger)
    again = woken(ledger, claim)
    assert ledger.event(again, "paid") == "1"
    assert verbs(ledger, claim.row_id) == ["submit", "claim", "wait", "event", "release", "claim"]


@pytest.mark.parametrize("kind", ["another event", "another wait"])
def test_an_event_wakes_nobody_who_waits_for_something_else(ledger, kind):
    claim = running(ledger)
    if kind == "another event":
        await_event(ledger, claim, "refunded")
    else:
        asked = states.Wait("condition", "rates are late", states.After(3600))
        ledger.settle(claim, lambda r: states.wait(r, asked, GIVEN_UP, token="o", owes=False, ring=1), actor="w")
    before = row_of(ledger, claim.row_id)

    assert send(ledger, claim)

    assert row_of(ledger, claim.row_id) == before


def test_the_first_write_wins(ledger):
    claim = running(ledger)

    assert send(ledger, claim, "1")
    assert not send(ledger, claim, "2")
    assert send(ledger, claim, "3", name="refunded")

    assert [ledger.event(claim, n) for n in ("paid", "refunded")] == ["1", "3"]
    assert verbs(ledger, claim.row_id).count("event") == 2


def test_names_are_compared_byte_by_byte(ledger):
    claim = running(ledger)

    assert [send(ledger, claim, f'"{n}"', name=n) for n in ("paid", "Paid", "päid")] == [True] * 3
    assert ledger.event(claim, "Paid") == '"Paid"'


def test_of_many_at_once_one_is_stored(ledger):
    claim = running(ledger)

    answers = race(6, lambda n: send(ledger, claim, str(n)))

    assert sorted(answers) == [False] * 5 + [True]
    assert ledger.event(claim, "paid") == str(answers.index(True))


def test_an_event_tells_who_sent_it(ledger):
    row = queued(ledger)
    send(ledger, row)

    event = ledger.events(row.row_id)[-1]
    assert (event.verb, event.source, event.target, event.actor, event.reason) == (
        "event", "queued", "queued", "shop", "event 'paid' arrived",
    )  # fmt: skip
    s = ledger.t.signal.c
    stored = ledger.db.run(lambda c: c.execute(sa.select(s.sent_by, s.sent_at)).one(), read_only=True)
    assert stored.sent_by == "shop"
    assert abs(seconds_ahead(ledger, stored.sent_at)) < 60


@pytest.mark.parametrize("make", [queued, running, waiting])
def test_a_live_task_takes_events_in_every_state(ledger, make):
    assert send(ledger, make(ledger))


@pytest.mark.parametrize("make", [succeeded, dead, cancelled])
def test_a_task_that_is_over_takes_none(ledger, make):
    row = make(ledger)

    with pytest.raises(NoSuchTask, match="'paid'"):
        send(ledger, row)

    assert "event" not in verbs(ledger, row.row_id)
    with pytest.raises(NoSuchTask, match="gone"):
        ledger.send_event(4711, "paid", "1", actor="shop")


def test_an_event_between_the_look_and_the_wait_makes_the_wait_due_at_once(ledger):
    """The body found none, one arrived, and then it settled to wait: nothing else would wake it."""
    claim = running(ledger)
    assert ledger.event(claim, "paid") is None
    send(ledger, claim)

    await_event(ledger, claim)

    assert ledger.event(woken(ledger, claim), "paid") == "1"


@pytest.mark.parametrize("held", ["wait", "send"])
def test_a_wait_and_an_event_at_the_same_time_see_one_another(ledger, monkeypatch, held):
    """Whoever holds the row's lock is held up, until the other stands before it."""
    claim = running(ledger)
    note, others = ledger.writer.note, []

    def late(connection, row_id, entry):
        if entry.verb == {"wait": "wait", "send": "event"}[held] and not others:
            act = (lambda: send(ledger, claim)) if held == "wait" else (lambda: await_event(ledger, claim))
            others.append(Background(act))
            until_blocked(ledger)
        note(connection, row_id, entry)

    monkeypatch.setattr(ledger.writer, "note", late)
    if held == "wait":
        assert await_event(ledger, claim) == "waiting"
        assert others[0].answer() is True
    else:
        assert send(ledger, claim)
        assert others[0].answer() == "waiting"

    assert row_of(ledger, claim.row_id).wake_at <= now(ledger)
    assert ledger.event(woken(ledger, claim), "paid") == "1"


def test_waits_and_events_in_any_order_leave_no_task_asleep(ledger):
    made = [running(ledger) for _ in range(10)]

    def act(number):
        for claim in made:
            assert await_event(ledger, claim) == "waiting" if number else send(ledger, claim)
        return "done"

    assert race(2, act) == ["done"] * 2
    due = now(ledger)
    assert all(row_of(ledger, c.row_id).wake_at <= due for c in made)


def test_a_timeout_looks_for_the_event_before_it_gives_up(ledger):
    """The row is due for its timeout, then the event arrives, then it runs: the event counts."""
    claim = running(ledger)
    await_event(ledger, claim, timeout=60)
    make_due(ledger, claim.row_id, "wake_at", "give_up_at")
    send(ledger, claim)

    again = woken(ledger, claim)

    assert ledger.event(again, "paid") == "1"


def test_a_timeout_wakes_the_task_which_then_knows_that_it_has_passed(ledger):
    claim = running(ledger)
    await_event(ledger, claim, timeout=60)
    make_due(ledger, claim.row_id, "wake_at", "give_up_at")

    again = woken(ledger, claim)

    waited = ledger.waited(again)
    assert ledger.event(again, "paid") is None
    assert waited.event == "paid"
    assert waited.give_up_at <= waited.now
    # It decides by itself: asked to wait on, it never ends dead.
    assert await_event(ledger, again, timeout=60) == "waiting"


def test_the_timeout_runs_from_the_first_wait_for_this_event(ledger):
    claim = running(ledger)
    await_event(ledger, claim, timeout=60)
    first = row_of(ledger, claim.row_id)
    make_due(ledger, claim.row_id, "wake_at")
    again = woken(ledger, claim)

    await_event(ledger, again, timeout=60)
    second = row_of(ledger, claim.row_id)
    assert (second.waiting_from, second.give_up_at, second.waits) == (first.waiting_from, first.give_up_at, 2)
    assert second.wake_at <= second.give_up_at

    make_due(ledger, claim.row_id, "wake_at")
    await_event(ledger, woken(ledger, claim), "refunded", timeout=60)
    other = row_of(ledger, claim.row_id)
    assert (other.wait_event, other.waits) == ("refunded", 1)
    assert other.waiting_from > first.waiting_from
