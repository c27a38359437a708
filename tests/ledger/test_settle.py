"""succeed, fail, wait, replace and lose: every write proves its claim."""

from __future__ import annotations

import pytest

from celery_durable import states
from celery_durable.errors import LeaseLost
from celery_durable.ledger.moves import IllegalMove
from celery_durable.records import Envelope
from tests.ledger.kit import (
    boom,
    claimed,
    envelope,
    fails,
    gone,
    history,
    make_due,
    now,
    queued,
    retry,
    row_of,
    running,
    seconds_ahead,
    succeed,
    verbs,
    waits,
)


def replaces(sent):
    return lambda _row: states.Move("replace", states.QUEUED, states.into_queued(), "replaced", envelope=sent)


SETTLERS = {
    "succeed": succeed,
    "fail": lambda ledger, claim: ledger.settle(claim, fails(), actor="worker-1"),
    "retry": lambda ledger, claim: ledger.settle(claim, fails(retry=retry()), actor="worker-1"),
    "wait": lambda ledger, claim: ledger.settle(claim, waits(), actor="worker-1"),
    "replace": lambda ledger, claim: ledger.settle(claim, replaces(envelope(claim.task_id)), actor="worker-1"),
}


@pytest.fixture(params=SETTLERS.values(), ids=SETTLERS.keys())
def settle(request):
    return request.param


def overtaken(ledger):
    """A claim whose lease has passed and whose row runs under another by now."""
    claim = running(ledger)
    make_due(ledger, claim.row_id, "lease_expires_at")
    assert ledger.expire_leases(10, actor="sweep") == [claim.task_id]
    claimed(ledger, claim.task_id)
    return claim


def test_succeed_stores_the_result(ledger):
    claim = running(ledger)

    succeed(ledger, claim, b'{"paid": true}')

    row = row_of(ledger, claim.row_id)
    assert (row.state, row.result, row.result_type) == ("succeeded", b'{"paid": true}', "application/json")
    assert (row.lease_owner, row.lease_expires_at, row.lease_pid) == (None, None, None)
    assert (row.continuation_pending, row.publish_at) == (None, None)
    assert row.finished_at >= row.started_at
    assert history(ledger, row.id)[-1] == ("succeed", "running", "succeeded", "worker-1")
    assert ledger.events(row.id)[-1].claim == 1


def test_succeed_without_a_result(ledger):
    claim = running(ledger)

    ledger.succeed(claim, None, None, owes=False, actor="worker-1", continuation_grace=30)

    assert ledger.get(claim.task_id).decoded_result() is None


def test_a_success_that_owes_is_rung_when_its_teller_may_have_died(ledger):
    claim = running(ledger, owes=True)

    succeed(ledger, claim, owes=True, grace=20)

    row = row_of(ledger, claim.row_id)
    assert row.continuation_pending == claim.token
    assert 10 < seconds_ahead(ledger, row.publish_at) <= 20


def test_a_failure_is_a_row_and_the_task_is_dead(ledger):
    claim = running(ledger)

    assert ledger.settle(claim, fails(), actor="worker-1") == "dead"

    row = row_of(ledger, claim.row_id)
    (failure,) = ledger.failures(row.id)
    assert (row.state, row.failure_kind, row.lease_owner) == ("dead", "permanent", None)
    assert (failure.kind, failure.exception, failure.message) == ("permanent", "ValueError", "card refused")
    assert (failure.claim, failure.worker, failure.retryable) == (1, "worker-1", False)
    assert failure.occurred_at <= now(ledger)
    assert failure.fingerprint == boom().fingerprint
    assert history(ledger, row.id)[-1] == ("fail", "running", "dead", "worker-1")


def test_a_retried_failure_waits_with_a_reason_and_a_time(ledger):
    claim = running(ledger)

    assert ledger.settle(claim, fails(retry=retry(60, retries=3)), actor="worker-1") == "waiting"

    row = row_of(ledger, claim.row_id)
    assert (row.state, row.wait_kind, row.wait_reason, row.retries) == ("waiting", "retry", "retry 1 of 20", 3)
    assert 50 < seconds_ahead(ledger, row.wake_at) <= 60
    assert row.wait_since <= now(ledger)
    assert (row.envelope_no, row.failure_kind, row.publish_at) == (1, None, None)
    assert len(ledger.failures(row.id)) == 1
    assert history(ledger, row.id)[-1] == ("fail", "running", "waiting", "worker-1")


def test_a_retry_with_other_arguments_is_another_envelope(ledger):
    claim = running(ledger)
    sent = envelope(claim.task_id, body=b"[[2],{},{}]", queue="slow")

    ledger.settle(claim, fails(retry=retry(sent=sent)), actor="worker-1")

    row = row_of(ledger, claim.row_id)
    assert (row.envelope_no, row.queue) == (2, "slow")
    assert Envelope.load(row.envelope, row.body) == sent


def test_a_wait_burns_no_retry(ledger):
    claim = running(ledger)

    assert ledger.settle(claim, waits("rates are late"), actor="worker-1") == "waiting"

    row = row_of(ledger, claim.row_id)
    assert (row.wait_kind, row.wait_reason, row.retries, row.losses) == ("condition", "rates are late", 0, 0)
    assert ledger.failures(row.id) == []
    assert history(ledger, row.id)[-1] == ("wait", "running", "waiting", "worker-1")
    assert ledger.events(row.id)[-1].reason == "rates are late"


def test_a_replaced_task_is_queued_with_another_message_under_the_same_identity(ledger):
    claim = running(ledger, "order-1")
    sent = envelope(claim.task_id, "shop.refund")

    assert ledger.settle(claim, replaces(sent), actor="worker-1") == "queued"

    row = row_of(ledger, claim.row_id)
    assert (row.task, row.idempotency_key, row.envelope_no) == ("shop.charge", "order-1", 2)
    assert Envelope.load(row.envelope, row.body).headers["task"] == "shop.refund"
    assert row.publish_at <= now(ledger)
    assert history(ledger, row.id)[-1] == ("replace", "running", "queued", "worker-1")


def test_a_move_that_the_table_does_not_have_is_a_defect(ledger):
    claim = running(ledger)
    before = row_of(ledger, claim.row_id)

    with pytest.raises(IllegalMove, match="wait: running -> queued"):
        ledger.settle(claim, lambda _: states.Move("wait", states.QUEUED, states.into_queued()), actor="w")

    assert row_of(ledger, claim.row_id) == before


def test_a_claim_that_was_overtaken_changes_nothing_but_history(ledger, settle):
    claim = overtaken(ledger)
    before = row_of(ledger, claim.row_id)
    failures = ledger.failures(claim.row_id)

    with pytest.raises(LeaseLost, match=claim.task_id):
        settle(ledger, claim)

    assert row_of(ledger, claim.row_id) == before
    assert ledger.failures(claim.row_id) == failures
    assert history(ledger, claim.row_id)[-1] == ("fenced", "running", "running", "worker-1")
    assert ledger.events(claim.row_id)[-1].claim == 1


def test_an_expired_claim_that_nobody_took_over_yet_is_fenced_too(ledger, settle):
    claim = running(ledger)
    make_due(ledger, claim.row_id, "lease_expires_at")
    ledger.expire_leases(10, actor="sweep")

    with pytest.raises(LeaseLost):
        settle(ledger, claim)

    assert row_of(ledger, claim.row_id).state == "queued"
    assert verbs(ledger, claim.row_id)[-1] == "fenced"


def test_a_lease_that_has_passed_unseen_still_belongs_to_its_claim(ledger, settle):
    """Until a sweep has ended the claim nobody else can have taken the row."""
    claim = running(ledger)
    make_due(ledger, claim.row_id, "lease_expires_at")

    settle(ledger, claim)

    assert row_of(ledger, claim.row_id).state != "running"


def test_settling_twice_is_the_lost_reply_of_the_first(ledger, settle):
    claim = running(ledger)
    settle(ledger, claim)
    before, told = row_of(ledger, claim.row_id), ledger.events(claim.row_id)

    settle(ledger, claim)

    assert row_of(ledger, claim.row_id) == before
    assert ledger.events(claim.row_id) == told
    assert len(ledger.failures(claim.row_id)) <= 1


def test_a_settled_claim_cannot_end_a_later_one_of_its_row(ledger, settle):
    claim = running(ledger)
    ledger.settle(claim, waits(seconds=0), actor="worker-1")
    make_due(ledger, claim.row_id, "wake_at")
    ledger.release(10, actor="sweep")
    claimed(ledger, claim.task_id)

    with pytest.raises(LeaseLost):
        settle(ledger, claim)


@pytest.mark.parametrize(("max_losses", "state"), [(3, "queued"), (1, "dead")])
def test_a_loss_counts_on_its_own_until_the_task_is_poison(ledger, max_losses, state):
    claim = running(ledger, max_losses=max_losses, owes=True)

    assert ledger.lose(claim.task_id, claim.token, gone(), owed_token="owed", actor="keeper") == state

    row = row_of(ledger, claim.row_id)
    assert (row.state, row.losses, row.retries, row.claims, row.claim_token) == (state, 1, 0, 1, None)
    assert row.failure_kind == ("poison" if state == "dead" else None)
    assert row.continuation_pending == ("owed" if state == "dead" else None)
    assert row.publish_at <= now(ledger)
    assert [f.kind for f in ledger.failures(row.id)] == ["worker_lost"]
    assert history(ledger, row.id)[-1] == ("lose", "running", state, "keeper")


def test_losses_add_up_over_claims(ledger):
    row = queued(ledger, max_losses=3)
    ended = []
    for _ in range(3):
        claim = claimed(ledger, row.task_id)
        ended.append(ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="keeper"))

    assert ended == ["queued", "queued", "dead"]
    assert row_of(ledger, row.row_id).claims == 3


def test_a_task_that_must_not_run_twice_dies_of_its_first_loss(ledger):
    claim = running(ledger, on_loss="dead")

    assert ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="keeper") == "dead"
    assert row_of(ledger, claim.row_id).failure_kind == "worker_lost"


def test_a_loss_needs_the_token_of_the_live_claim(ledger):
    claim = overtaken(ledger)
    before = row_of(ledger, claim.row_id)

    assert ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="keeper") is None
    assert row_of(ledger, claim.row_id) == before
