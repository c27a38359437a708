"""claim and renew: at most one live claim, known by its token."""

from __future__ import annotations

import pytest

from tests.ledger.kit import (
    SECOND,
    cancelled,
    claimed,
    dead,
    history,
    lock,
    make_due,
    now,
    queued,
    race,
    retry,
    row_of,
    running,
    seconds_ahead,
    succeed,
    succeeded,
    transaction,
    verbs,
    waiting,
)
from tests.ledger.kit import envelope as message
from tests.ledger.kit import fails as failing


def attempt(ledger, task_id, token="mine", **options):
    return ledger.claim(task_id, token, **({"owner": "worker-2", "pid": 202, "lease": 30} | options))


def test_a_queued_row_is_granted_and_counted(ledger):
    row = queued(ledger, owes=True)

    claim = attempt(ledger, row.task_id).claim

    stored = row_of(ledger, row.row_id)
    assert (claim.row_id, claim.task_id, claim.claims, claim.token) == (row.row_id, row.task_id, 1, "mine")
    assert (claim.retries, claim.losses, claim.owes) == (0, 0, True)
    assert (stored.state, stored.claims, stored.claim_token) == ("running", 1, "mine")
    assert (stored.lease_owner, stored.lease_pid, stored.publish_at) == ("worker-2", 202, None)
    assert 25 < seconds_ahead(ledger, stored.lease_expires_at) <= 30
    assert abs(stored.started_at - now(ledger)) < 10 * SECOND
    assert history(ledger, row.row_id)[-1] == ("claim", "queued", "running", "worker-2")
    assert ledger.events(row.row_id)[-1].claim == 1


def test_the_fence_rises_with_every_claim(ledger):
    claim = running(ledger)
    ledger.settle(claim, failing(retry=retry(0, retries=4)), actor="w")
    make_due(ledger, claim.row_id, "wake_at")
    ledger.release(10, actor="sweep")

    second = attempt(ledger, claim.task_id).claim

    assert (second.claims, second.retries) == (2, 4)


def test_a_claim_of_ones_own_is_recognised_after_a_lost_reply(ledger):
    row = queued(ledger)
    first = attempt(ledger, row.task_id)

    again = attempt(ledger, row.task_id)

    assert again.claim == first.claim
    assert row_of(ledger, row.row_id).claims == 1
    assert verbs(ledger, row.row_id) == ["submit", "claim"]


def test_a_message_without_a_row_is_absent(ledger):
    answer = attempt(ledger, "nobody")

    assert (answer.claim, answer.why, answer.row) == (None, "absent", None)


@pytest.mark.parametrize("make", [running, waiting])
def test_a_running_or_waiting_row_is_busy(ledger, make):
    row = make(ledger)

    answer = attempt(ledger, row.task_id)

    assert (answer.claim, answer.why) == (None, "busy")
    assert answer.row.task_id == row.task_id


@pytest.mark.parametrize("make", [succeeded, dead, cancelled])
def test_a_row_that_is_over_is_done(ledger, make):
    assert attempt(ledger, make(ledger).task_id).why == "done"


@pytest.mark.parametrize("make", [succeeded, dead, cancelled])
def test_a_row_that_is_over_and_still_owes_says_so(ledger, make):
    row = make(ledger, owes=True)

    answer = attempt(ledger, row.task_id)

    assert (answer.claim, answer.why) == (None, "owing")
    assert answer.row.continuation_pending is not None


def test_an_old_doorbell_is_stale(ledger):
    row = queued(ledger)
    claim = attempt(ledger, row.task_id, envelope_no=1).claim
    sent = message(row.task_id, body=b"[[9],{},{}]")
    ledger.settle(claim, failing(retry=retry(0, sent=sent)), actor="w")
    make_due(ledger, row.row_id, "wake_at")
    ledger.release(10, actor="sweep")

    assert attempt(ledger, row.task_id, "t2", envelope_no=1).why == "stale"
    assert attempt(ledger, row.task_id, "t3", envelope_no=2).claim is not None


def test_a_row_past_its_deadline_is_expired(ledger):
    row = queued(ledger, deadline_at=now(ledger) - SECOND)

    assert attempt(ledger, row.task_id).why == "expired"
    assert row_of(ledger, row.row_id).state == "queued"


def test_a_row_before_its_deadline_runs(ledger):
    row = queued(ledger, deadline_at=now(ledger) + 60 * SECOND)

    assert attempt(ledger, row.task_id).claim is not None


def test_eight_deliveries_of_one_message_get_one_claim(ledger):
    row = queued(ledger)

    answers = race(8, lambda n: attempt(ledger, row.task_id, f"token-{n}"))

    assert sorted(a.why for a in answers) == ["busy"] * 7 + ["granted"]
    assert row_of(ledger, row.row_id).claims == 1
    assert verbs(ledger, row.row_id) == ["submit", "claim"]


def test_renew_extends_the_leases_of_these_claims_only(ledger):
    mine, other = running(ledger, lease=5), running(ledger, lease=5)

    assert ledger.renew({mine.task_id: mine.token}, 60) == {mine.task_id: False}

    assert 50 < seconds_ahead(ledger, row_of(ledger, mine.row_id).lease_expires_at) <= 60
    assert seconds_ahead(ledger, row_of(ledger, other.row_id).lease_expires_at) <= 5


def test_renew_needs_the_token(ledger):
    claim = running(ledger, lease=5)

    assert ledger.renew({claim.task_id: "another"}, 60) == {}
    assert seconds_ahead(ledger, row_of(ledger, claim.row_id).lease_expires_at) <= 5


def test_renew_of_what_is_over_says_nothing(ledger):
    claim = succeeded(ledger)
    before = row_of(ledger, claim.row_id)

    assert ledger.renew({claim.task_id: claim.token}, 60) == {}
    assert row_of(ledger, claim.row_id) == before


def test_renew_of_nothing_asks_nobody(ledger):
    assert ledger.renew({}, 60) == {}


def test_renew_tells_of_a_cancellation(ledger):
    flagged, other = running(ledger), running(ledger)
    ledger.cancel_row(flagged.row_id, "stop", actor="ann")

    answer = ledger.renew({c.task_id: c.token for c in (flagged, other)}, 60)

    assert answer == {flagged.task_id: True, other.task_id: False}


def test_renew_passes_over_a_row_that_somebody_holds(ledger):
    if not ledger.dialect.skip_locked:
        pytest.skip(f"{ledger.dialect.name} locks the whole database, so no row alone can be held")
    held, free = running(ledger, lease=5), running(ledger, lease=5)

    with transaction(ledger) as connection:
        lock(ledger, connection, held.row_id)
        answer = ledger.renew({c.task_id: c.token for c in (held, free)}, 60)

    assert answer == {free.task_id: False}


def test_a_claim_survives_others_of_the_same_worker(ledger):
    first, second = running(ledger), running(ledger)

    succeed(ledger, first)

    assert row_of(ledger, second.row_id).state == "running"
    assert claimed(ledger, queued(ledger).task_id).claims == 1
