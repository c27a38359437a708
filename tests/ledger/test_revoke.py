"""revoke and due_now: what Celery decided about a delivery, carried out on the row."""

from __future__ import annotations

import pytest

from tests.ledger.kit import (
    cancelled,
    claimed,
    dead,
    history,
    now,
    queued,
    row_of,
    running,
    seconds_ahead,
    succeeded,
    verbs,
    waiting,
)


def revoke(ledger, task_id, token="", *, expired=False):
    return ledger.revoke(task_id, token, expired=expired, reason="revoked", actor="worker-1")


@pytest.mark.parametrize("make", [queued, waiting])
def test_a_revoked_row_that_nobody_runs_is_cancelled_and_owes(ledger, make):
    row = make(ledger, owes=True)

    assert revoke(ledger, row.task_id) == "cancelled"

    stored = row_of(ledger, row.row_id)
    assert (stored.state, stored.cancel_reason) == ("cancelled", "revoked")
    assert stored.continuation_pending is not None
    assert history(ledger, row.row_id)[-1] == ("cancel", row.state, "cancelled", "worker-1")


def test_ones_own_running_delivery_that_was_terminated_is_cancelled(ledger):
    claim = running(ledger, owes=True)

    assert revoke(ledger, claim.task_id, claim.token) == "cancelled"

    row = row_of(ledger, claim.row_id)
    assert (row.claim_token, row.lease_owner) == (None, None)
    assert row.continuation_pending is not None
    assert len(ledger.failures(claim.row_id)) == 1


def test_a_row_that_runs_elsewhere_is_flagged(ledger):
    claim = running(ledger)

    assert revoke(ledger, claim.task_id, "another") == "running"

    assert row_of(ledger, claim.row_id).cancel_requested_at is not None
    assert ledger.renew({claim.task_id: claim.token}, 30) == {claim.task_id: True}


@pytest.mark.parametrize("make", [queued, waiting])
def test_an_expired_row_is_dead_of_that(ledger, make):
    row = make(ledger, owes=True)

    assert revoke(ledger, row.task_id, expired=True) == "dead"

    stored = row_of(ledger, row.row_id)
    assert stored.failure_kind == "expired"
    assert stored.continuation_pending is not None


def test_what_runs_elsewhere_does_not_expire(ledger):
    claim = running(ledger)
    before = row_of(ledger, claim.row_id)

    assert revoke(ledger, claim.task_id, "another", expired=True) == "running"
    assert row_of(ledger, claim.row_id) == before


@pytest.mark.parametrize("make", [succeeded, dead, cancelled])
@pytest.mark.parametrize("expired", [True, False])
def test_what_is_over_stays_as_it_is(ledger, make, expired):
    row = make(ledger)
    before = row_of(ledger, row.row_id)

    assert revoke(ledger, row.task_id, expired=expired) == before.state
    assert row_of(ledger, row.row_id) == before


def test_revoking_twice_is_revoking_once(ledger):
    row = queued(ledger)

    assert revoke(ledger, row.task_id) == revoke(ledger, row.task_id) == "cancelled"
    assert verbs(ledger, row.row_id) == ["submit", "cancel"]


def test_what_is_not_there_cannot_be_revoked(ledger):
    assert revoke(ledger, "nobody") is None


def test_a_message_that_is_known_to_be_gone_is_rung_at_once(ledger):
    row = queued(ledger)
    assert seconds_ahead(ledger, row_of(ledger, row.row_id).publish_at) > 20

    ledger.due_now(row.task_id)

    assert row_of(ledger, row.row_id).publish_at <= now(ledger)


def test_a_row_that_is_not_queued_is_not_rung(ledger):
    claim = claimed(ledger, queued(ledger).task_id)
    before = row_of(ledger, claim.row_id)

    ledger.due_now(claim.task_id)

    assert row_of(ledger, claim.row_id) == before
