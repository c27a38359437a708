"""What runs: what is asked of it, how far it says it is, how it is handed over; on every dialect."""

from __future__ import annotations

import json

import pytest

from celery_durable import states
from celery_durable.errors import BadRequest, LeaseLost
from celery_durable.ledger.registry import Presence
from tests.ledger import kit


def asked(ledger, claim):
    return ledger.asked(claim.task_id, claim.token)


def flag(ledger, claim, **options):
    return ledger.cancel_row(claim.row_id, "not wanted", actor="me", **options)


def drain(ledger, claim):
    """What a child does."""
    return ledger.settle(claim, lambda row: states.drain(row, "w1 shuts down", token="o", owes=False), actor="w1")


def take_over(ledger, claim):
    """What its parent does in its place."""
    decide = lambda row: states.take_over(row, "w1 was shut down", "o")  # noqa: E731
    return ledger.end(claim.task_id, claim.token, decide, actor="w1")


def test_a_live_claim_hears_of_its_cancellation(ledger):
    claim = kit.running(ledger)
    assert asked(ledger, claim)[:3] == (True, False, False)
    assert flag(ledger, claim) == "running"
    assert asked(ledger, claim)[:4] == (True, True, False, "not wanted")
    assert flag(ledger, claim, terminate=True) == "running"
    assert asked(ledger, claim).terminate


def test_a_claim_that_is_over_is_told_so(ledger):
    claim = kit.running(ledger)
    flag(ledger, claim)
    assert not ledger.asked(claim.task_id, "another").live
    ledger.lose(claim.task_id, claim.token, kit.gone(), owed_token="o", actor="w")
    assert not asked(ledger, claim).live
    assert not ledger.asked("nobody", claim.token).live


@pytest.mark.parametrize("phase", ["running", "stopping"])
def test_a_claim_hears_that_its_worker_shuts_down(ledger, phase):
    claim = kit.running(ledger)
    owner = kit.row_of(ledger, claim.row_id).lease_owner
    ledger.enter(Presence(owner, "w1@host", 7, [kit.QUEUE], [kit.TASK], kit.BROKER, 30, "prefork"))
    ledger.beat(owner, phase=phase, running=1)
    assert asked(ledger, claim).draining is (phase == "stopping")


def test_a_glance_sees_the_cancelled_ones_of_those_that_it_is_asked_about(ledger):
    mine, other = kit.running(ledger), kit.running(ledger)
    flag(ledger, other)
    assert not ledger.glance(kit.BROKER, [mine.task_id]).cancels
    assert not ledger.glance(kit.BROKER).cancels
    flag(ledger, mine)
    assert ledger.glance(kit.BROKER, [mine.task_id, "nobody"]).cancels


def test_terminate_is_refused_for_pools_that_cannot(ledger):
    claim = kit.running(ledger)
    owner = kit.row_of(ledger, claim.row_id).lease_owner
    ledger.enter(Presence(owner, "w1@host", 7, [kit.QUEUE], [kit.TASK], kit.BROKER, 30, "gevent"))
    with pytest.raises(BadRequest, match="w1@host, in a pool of gevent"):
        flag(ledger, claim, terminate=True)
    assert kit.row_of(ledger, claim.row_id).cancel_requested_at is None


def test_a_replay_forgets_what_was_asked(ledger):
    claim = kit.running(ledger)
    flag(ledger, claim, terminate=True)
    ledger.settle(claim, lambda row: states.cancelled(row, "", token="o", owes=False), actor="w")
    row = kit.row_of(ledger, claim.row_id)
    assert (row.state, row.cancel_reason) == ("cancelled", "not wanted")
    assert ledger.replay_row(claim.row_id, "wanted", actor="me")
    row = kit.row_of(ledger, claim.row_id)
    assert (row.cancel_requested_at, row.cancel_reason, row.cancel_terminate) == (None, None, 0)


@pytest.mark.parametrize("by", [drain, take_over])
def test_a_task_is_handed_over_without_a_loss(ledger, by):
    claim = kit.running(ledger)
    assert by(ledger, claim) == "waiting"
    row = kit.row_of(ledger, claim.row_id)
    assert (row.wait_kind, row.losses, row.retries, row.waits) == ("drain", 0, 0, 0)
    assert kit.seconds_ahead(ledger, row.wake_at) <= 0
    ledger.release(10, actor="s")
    again = kit.claimed(ledger, claim.task_id)
    assert again.claims == 2
    assert ledger.failures(claim.row_id) == []
    assert ledger.verify() == []


@pytest.mark.parametrize("by", [drain, take_over])
def test_a_cancelled_task_is_not_handed_over(ledger, by):
    claim = kit.running(ledger)
    flag(ledger, claim)
    assert by(ledger, claim) == "cancelled"
    assert kit.row_of(ledger, claim.row_id).cancel_reason == "not wanted"


def test_a_body_whose_parent_handed_it_over_is_fenced(ledger):
    """It may live for a while: nothing that it still says may pass for its own."""
    claim = kit.running(ledger)
    take_over(ledger, claim)
    with pytest.raises(LeaseLost):
        kit.succeed(ledger, claim)
    assert take_over(ledger, claim) is None


def test_progress_is_kept_and_fenced(ledger):
    claim = kit.running(ledger)
    assert ledger.get(claim.task_id).decoded_progress() is None
    ledger.progress(claim, json.dumps({"done": 1, "total": 2, "note": "größer ☂"}))
    told = ledger.get(claim.task_id).as_json()["progress"]
    assert (told["done"], told["total"], told["note"]) == (1, 2, "größer ☂")
    assert told["at"] is not None
    ledger.lose(claim.task_id, claim.token, kit.gone(), owed_token="o", actor="w")
    ledger.progress(claim, json.dumps({"done": 2, "total": 2, "note": ""}))
    assert ledger.get(claim.task_id).decoded_progress()["done"] == 1


def test_many_rows_are_made_due_at_once_and_only_queued_ones(ledger):
    waiting, running = kit.waiting(ledger), kit.running(ledger)
    queued = [kit.queued(ledger) for _ in range(3)]
    for sub in queued:
        kit.change(ledger, sub.row_id, publish_at=2**60, rings=3, deferrals=2)
    ledger.due_now(*(sub.task_id for sub in queued), waiting.task_id, running.task_id)
    for sub in queued:
        row = kit.row_of(ledger, sub.row_id)
        assert (row.rings, row.deferrals) == (0, 0)
        assert kit.seconds_ahead(ledger, row.publish_at) <= 0
    assert kit.row_of(ledger, waiting.row_id).publish_at is None
    assert ledger.verify() == []
