"""Waits of a task's own: consecutive ones are one (PROTOCOL 17), a sleep is slept once, nothing waits unseen."""

from __future__ import annotations

import pytest

from celery_durable import failures, states
from tests.conftest import DIALECTS
from tests.ledger.kit import (
    SECOND,
    captured,
    change,
    claimed,
    fails,
    gone,
    make_due,
    now,
    queued,
    retry,
    row_of,
    running,
    seconds_ahead,
    verbs,
    waiting,
)
from tests.ledger.stock import full_scans

GIVEN_UP = failures.loss("timeout", "WaitTimeout", "gave up waiting", worker="w", pid=1, claim=1)


def wait(ledger, claim, reason="rates are late", *, retry_in=30.0, give_up_after=None, owes=False):
    asked = states.Wait("condition", reason, states.After(retry_in), give_up_after=give_up_after)
    return settle(ledger, claim, asked, owes=owes)


def sleep(ledger, claim, name="sleep:1", *, wake=states.After(60)):  # noqa: B008 - an immutable tuple
    return settle(ledger, claim, states.Wait("sleep", "night", wake, sleep=name))


def settle(ledger, claim, asked, *, owes=False):
    return ledger.settle(
        claim, lambda row: states.wait(row, asked, GIVEN_UP, token="owed", owes=owes, ring=30), actor="worker-1"
    )


def again(ledger, claim):
    """The next run of a task that waits."""
    make_due(ledger, claim.row_id, "wake_at")
    assert ledger.release(10, actor="sweep") == 1
    return claimed(ledger, claim.task_id)


def patience(ledger, claim):
    row = row_of(ledger, claim.row_id)
    return row.waits, row.waiting_from, row.give_up_at


def test_a_wait_tells_why_since_when_and_until_when(ledger):
    claim = running(ledger)

    assert wait(ledger, claim, give_up_after=600) == "waiting"

    row = row_of(ledger, claim.row_id)
    assert (row.wait_kind, row.wait_reason, row.waits, row.retries, row.losses) == (
        "condition", "rates are late", 1, 0, 0,
    )  # fmt: skip
    assert (row.lease_owner, row.publish_at) == (None, None)
    assert seconds_ahead(ledger, row.wake_at) == pytest.approx(30, abs=20)
    assert row.give_up_at - row.waiting_from == 600 * SECOND
    told = ledger.get(claim.task_id).as_json()["wait"]
    assert told["waits"] == 1
    assert told["give_up_at"].endswith("+00:00")


def test_patience_runs_from_the_first_of_consecutive_waits_whatever_their_reasons(ledger):
    claim = running(ledger)
    wait(ledger, claim, "rates are late", give_up_after=600)
    first = patience(ledger, claim)

    for number, reason in enumerate(("the bank is closed", "rates are late, still"), 2):
        claim = again(ledger, claim)
        wait(ledger, claim, reason, give_up_after=600)
        assert patience(ledger, claim) == (number, *first[1:])

    claim = again(ledger, claim)
    wait(ledger, claim, give_up_after=900)  # another patience, the same beginning
    assert patience(ledger, claim) == (4, first[1], first[1] + 900 * SECOND)


def test_it_gives_up_at_the_first_wait_after_that_time(ledger):
    claim = running(ledger)
    wait(ledger, claim, give_up_after=600)
    change(ledger, claim.row_id, waiting_from=now(ledger) - 601 * SECOND)
    claim = again(ledger, claim)

    assert wait(ledger, claim, give_up_after=600, owes=True) == "dead"

    row = row_of(ledger, claim.row_id)
    assert (row.failure_kind, row.continuation_pending) == ("timeout", "owed")
    (failure,) = ledger.failures(claim.row_id)
    assert (failure.kind, failure.message) == ("timeout", "gave up waiting")
    assert verbs(ledger, claim.row_id)[-1] == "fail"


def test_it_is_never_looked_at_later_than_it_gives_up(ledger):
    claim = running(ledger)

    wait(ledger, claim, retry_in=3600, give_up_after=60)

    row = row_of(ledger, claim.row_id)
    assert row.wake_at == row.give_up_at


def test_without_a_limit_it_waits_for_ever(ledger):
    claim = running(ledger)
    for count in range(1, 5):
        assert wait(ledger, claim) == "waiting"
        assert patience(ledger, claim)[::2] == (count, None)
        claim = again(ledger, claim)


def retried(ledger, claim):
    ledger.settle(claim, fails(retry=retry()), actor="w")
    return again(ledger, claim)


def replayed(ledger, claim):
    ledger.settle(claim, fails(), actor="w")
    ledger.replay_row(claim.row_id, "again", actor="ann")
    return claimed(ledger, claim.task_id)


def slept(ledger, claim):
    sleep(ledger, claim)
    return again(ledger, claim)


@pytest.mark.parametrize("between", [retried, replayed, slept])
def test_progress_between_waits_begins_patience_anew(ledger, between):
    claim = running(ledger)
    wait(ledger, claim, give_up_after=600)
    change(ledger, claim.row_id, waiting_from=1, give_up_at=2)

    claim = between(ledger, again(ledger, claim))
    assert patience(ledger, claim) == (0, None, None)

    assert wait(ledger, claim, give_up_after=600) == "waiting"
    waits, since, _ = patience(ledger, claim)
    assert waits == 1
    assert abs(seconds_ahead(ledger, since)) < 60


def test_a_loss_is_no_progress(ledger):
    claim = running(ledger)
    wait(ledger, claim, give_up_after=600)
    before = patience(ledger, claim)
    claim = again(ledger, claim)
    ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="keeper")
    claim = claimed(ledger, claim.task_id)

    wait(ledger, claim, give_up_after=600)

    assert patience(ledger, claim) == (2, *before[1:])


def test_a_wait_burns_no_retry_and_a_retry_no_wait(ledger):
    claim = running(ledger)
    for _ in range(3):
        wait(ledger, claim)
        claim = again(ledger, claim)
    ledger.settle(claim, fails(retry=retry()), actor="w")

    row = row_of(ledger, claim.row_id)
    assert (row.retries, row.losses, row.waits) == (1, 0, 0)


def test_a_flagged_row_does_not_wait(ledger):
    claim = running(ledger)
    ledger.cancel_row(claim.row_id, "not wanted", actor="ann")

    assert wait(ledger, claim, owes=True) == "cancelled"
    assert row_of(ledger, claim.row_id).continuation_pending == "owed"


# --- sleeps -----------------------------------------------------------------------------------------


def test_a_sleep_is_known_by_its_name_once_it_is_begun(ledger):
    claim = running(ledger)
    assert ledger.slept(claim, "sleep:1") is None

    sleep(ledger, claim)

    row = row_of(ledger, claim.row_id)
    assert ledger.slept(claim, "sleep:1")[0] == row.wake_at
    assert ledger.slept(claim, "sleep:2") is None


def test_a_run_that_comes_early_sleeps_on_to_the_same_end(ledger):
    """A crash, or an operator, may wake it before its time."""
    claim = running(ledger)
    sleep(ledger, claim)
    ends, _ = ledger.slept(claim, "sleep:1")
    claim = again(ledger, claim)

    sleep(ledger, claim, wake=states.At(ends))

    assert ledger.slept(claim, "sleep:1")[0] == ends
    assert row_of(ledger, claim.row_id).wake_at == ends


def test_a_sleep_that_is_begun_again_keeps_its_first_end(ledger):
    claim = running(ledger)
    sleep(ledger, claim)
    ends, _ = ledger.slept(claim, "sleep:1")
    claim = again(ledger, claim)

    sleep(ledger, claim, wake=states.After(3600))

    assert ledger.slept(claim, "sleep:1")[0] == ends


def test_a_sleep_that_is_over_is_over_for_every_later_run(ledger):
    claim = running(ledger)
    sleep(ledger, claim, wake=states.At(now(ledger) - SECOND))
    for _ in range(2):
        claim = again(ledger, claim)
        ends, at = ledger.slept(claim, "sleep:1")
        assert ends <= at
        ledger.settle(claim, fails(retry=retry()), actor="w")


# --- the list ---------------------------------------------------------------------------------------


def test_what_waits_is_listed_in_the_order_in_which_it_is_looked_at(ledger):
    late, soon = waiting(ledger, seconds=900), waiting(ledger, seconds=60)
    claim = running(ledger, queue="reports", task="shop.mail")
    wait(ledger, claim)
    queued(ledger)

    assert [r.task_id for r in ledger.waits()] == [claim.task_id, soon.task_id, late.task_id]
    assert [r.task_id for r in ledger.waits(limit=2)] == [claim.task_id, soon.task_id]
    assert [r.task_id for r in ledger.waits(kind="scheduled")] == [soon.task_id, late.task_id]
    assert [r.task_id for r in ledger.waits(queue="reports", task="shop.mail", kind="condition")] == [claim.task_id]
    assert ledger.waits(task="shop.refund") == []


def test_a_retry_is_listed_with_its_failure(ledger):
    claim = running(ledger)
    ledger.settle(claim, fails(retry=retry()), actor="w")

    (record,) = ledger.waits(kind="retry")

    assert record.failure.message == "card refused"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_list_is_read_by_an_index(failing, dialect):
    ledger = failing(dialect)
    with captured(ledger) as sent:
        assert ledger.waits(kind="scheduled")
    with ledger.db.engine.connect() as connection:
        scans = [x for s, p in sent if s.startswith("SELECT") for x in full_scans(connection, s, p)]
        connection.rollback()
    # The index of what wakes when holds what waits, and nothing else.
    assert set(scans) <= {"whole index durable_task_wake_at", "SCAN durable_task USING INDEX durable_task_wake_at"}
