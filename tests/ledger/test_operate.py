"""cancel and replay: asked for by people, safe to ask for twice."""

from __future__ import annotations

import pytest

from celery_durable import states
from celery_durable.errors import NoSuchTask
from tests.ledger.kit import (
    cancelled,
    change,
    claimed,
    dead,
    fails,
    gone,
    history,
    make_due,
    now,
    queued,
    race,
    retry,
    row_of,
    running,
    succeed,
    succeeded,
    verbs,
    waiting,
)


def cancel(ledger, row_id):
    return ledger.cancel_row(row_id, "not wanted", actor="ann")


@pytest.mark.parametrize("make", [queued, waiting])
def test_a_row_that_nobody_runs_is_cancelled(ledger, make):
    row = make(ledger)

    assert cancel(ledger, row.row_id) == "cancelled"

    stored = row_of(ledger, row.row_id)
    assert (stored.state, stored.cancel_reason, stored.publish_at, stored.wait_kind) == (
        "cancelled", "not wanted", None, None,
    )  # fmt: skip
    assert history(ledger, row.row_id)[-1] == ("cancel", row.state, "cancelled", "ann")
    assert ledger.claim(row.task_id, "t", owner="w", pid=1, lease=30).why == "done"


def test_a_cancelled_row_that_is_awaited_owes_its_outcome(ledger):
    row = queued(ledger, owes=True)

    cancel(ledger, row.row_id)

    stored = row_of(ledger, row.row_id)
    assert stored.continuation_pending is not None
    assert stored.publish_at <= now(ledger)


def test_a_running_row_is_flagged_and_goes_on(ledger):
    claim = running(ledger)

    assert cancel(ledger, claim.row_id) == "running"

    row = row_of(ledger, claim.row_id)
    assert (row.state, row.claim_token, row.cancel_reason) == ("running", claim.token, "not wanted")
    assert row.cancel_requested_at <= now(ledger)
    assert history(ledger, claim.row_id)[-1] == ("cancel", "running", "running", "ann")


@pytest.mark.parametrize("make", [queued, running, waiting, succeeded, dead, cancelled])
def test_cancelling_twice_is_cancelling_once(ledger, make):
    row_id = make(ledger).row_id
    state = cancel(ledger, row_id)
    before, told = row_of(ledger, row_id), ledger.events(row_id)

    assert cancel(ledger, row_id) == state

    assert row_of(ledger, row_id) == before
    assert ledger.events(row_id) == told


@pytest.mark.parametrize("make", [succeeded, dead, cancelled])
def test_cancelling_what_is_over_changes_nothing(ledger, make):
    row_id = make(ledger).row_id
    before = row_of(ledger, row_id)

    assert cancel(ledger, row_id) == before.state
    assert row_of(ledger, row_id) == before


def test_a_flagged_row_that_fails_is_cancelled_and_keeps_its_failure(ledger):
    claim = running(ledger, owes=True)
    cancel(ledger, claim.row_id)

    assert ledger.settle(claim, fails(owes=True, retry=retry()), actor="w") == "cancelled"

    row = row_of(ledger, claim.row_id)
    assert (row.state, row.failure_kind, row.continuation_pending) == ("cancelled", None, "owed-by-fail")
    assert len(ledger.failures(claim.row_id)) == 1
    assert history(ledger, claim.row_id)[-1] == ("fail", "running", "cancelled", "w")


def test_a_flagged_row_that_is_lost_is_cancelled(ledger):
    claim, other = running(ledger, owes=True), running(ledger)
    cancel(ledger, claim.row_id)
    cancel(ledger, other.row_id)
    make_due(ledger, other.row_id, "lease_expires_at")

    assert ledger.lose(claim.task_id, claim.token, gone(), owed_token="owed", actor="keeper") == "cancelled"
    ledger.expire_leases(10, actor="sweep")

    assert row_of(ledger, claim.row_id).continuation_pending == "owed"
    assert row_of(ledger, other.row_id).state == "cancelled"
    assert history(ledger, other.row_id)[-1] == ("lose", "running", "cancelled", "sweep")


def test_a_flagged_row_that_succeeds_has_succeeded(ledger):
    claim = running(ledger)
    cancel(ledger, claim.row_id)

    succeed(ledger, claim)

    assert row_of(ledger, claim.row_id).state == "succeeded"


@pytest.mark.parametrize("make", [dead, cancelled])
def test_a_failed_row_is_replayed(ledger, make):
    row_id = make(ledger, owes=True).row_id
    change(ledger, row_id, losses=2, retries=5, rings=4, deferrals=2, deadline_at=now(ledger) - 1)
    claims = row_of(ledger, row_id).claims

    assert ledger.replay_row(row_id, "fixed", actor="ann")

    row = row_of(ledger, row_id)
    assert (row.state, row.losses, row.retries, row.claims) == ("queued", 0, 0, claims)
    assert (row.failure_kind, row.finished_at, row.continuation_pending, row.deadline_at) == (None,) * 4
    assert (row.cancel_requested_at, row.cancel_reason) == (None, None)
    assert (row.rings, row.deferrals) == (0, 0)
    assert row.publish_at <= now(ledger)
    assert history(ledger, row_id)[-1] == ("replay", make.__name__, "queued", "ann")
    assert ledger.events(row_id)[-1].reason == "fixed"


@pytest.mark.parametrize("make", [queued, running, waiting, succeeded])
def test_what_is_live_or_has_succeeded_is_not_replayed(ledger, make):
    row_id = make(ledger).row_id
    before = row_of(ledger, row_id)

    assert not ledger.replay_row(row_id, "again", actor="ann")
    assert row_of(ledger, row_id) == before


def test_eight_replays_of_one_row_are_one(ledger):
    row_id = dead(ledger).row_id

    done = race(8, lambda _: ledger.replay_row(row_id, "again", actor="ann"))

    assert sorted(done) == [False] * 7 + [True]
    assert verbs(ledger, row_id).count("replay") == 1


def test_a_cancellation_is_forgotten_by_a_replay(ledger):
    claim = running(ledger)
    cancel(ledger, claim.row_id)
    ledger.settle(claim, fails(), actor="w")
    ledger.replay_row(claim.row_id, "wanted after all", actor="ann")

    again = claimed(ledger, claim.task_id)

    assert ledger.renew({again.task_id: again.token}, 30) == {again.task_id: False}
    assert ledger.settle(again, fails(), actor="w") == "dead"


@pytest.mark.parametrize("verb", ["cancel_row", "replay_row"])
def test_a_row_that_is_not_there_is_an_error(ledger, verb):
    with pytest.raises(NoSuchTask, match="4711"):
        getattr(ledger, verb)(4711, "why", actor="ann")


def test_a_cancel_that_races_with_a_claim_ends_in_one_of_both_orders(ledger):
    made = [queued(ledger) for _ in range(6)]
    for row in made:
        answers = race(
            2,
            lambda n, r=row: cancel(ledger, r.row_id) if n else ledger.claim(r.task_id, "t", owner="w", pid=1, lease=9),
        )
        stored, told = row_of(ledger, row.row_id), history(ledger, row.row_id)
        if answers[0].claim:
            assert (answers[1], stored.state) == ("running", "running")
            assert [t[:3] for t in told[1:]] == [("claim", "queued", "running"), ("cancel", "running", "running")]
        else:
            assert (answers[1], stored.state) == ("cancelled", "cancelled")
            assert [t[:3] for t in told[1:]] == [("cancel", "queued", "cancelled")]


def test_the_table_of_moves_knows_every_move_of_the_history(ledger):
    claim = dead(ledger, owes=True)
    ledger.replay_row(claim.row_id, "again", actor="ann")
    succeed(ledger, claimed(ledger, claim.task_id))

    for event in ledger.events(claim.row_id):
        assert states.allowed(event.verb, event.source, event.target)
