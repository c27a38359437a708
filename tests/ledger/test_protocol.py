"""The rules of the protocol about claims, keys and duplicates: each fails when its rule is taken out.

`python -m tests.mutants` takes them out one at a time.
"""

from __future__ import annotations

import pytest

from celery_durable import keys, states
from celery_durable.errors import IdempotencyKeyError, KeyConflict, LeaseLost, TaskIdConflict
from tests.ledger.kit import (
    boom,
    cancelled,
    change,
    claimed,
    dead,
    envelope,
    fails,
    gone,
    make_due,
    queued,
    retry,
    row_of,
    rows,
    running,
    submission,
    succeed,
)


def attempt(ledger, task_id, token, **options):
    return ledger.claim(task_id, token, owner="w", pid=1, lease=30, **options)


def same_number_again(ledger):
    """Two claims with one number: the database lost the commit of the first."""
    first = running(ledger)
    change(ledger, first.row_id, claims=0, **_queued(ledger))
    second = claimed(ledger, first.task_id)
    assert first.claims == second.claims
    return first, second


def _queued(ledger):
    moved = ledger.writer.values(states.into_queued())
    return moved | {"claim_token": None, "started_at": None}


def test_rule_01_a_claim_is_ones_own_only_by_token(ledger):
    first, second = same_number_again(ledger)

    with pytest.raises(LeaseLost):
        succeed(ledger, first)
    with pytest.raises(LeaseLost):
        ledger.settle(first, fails(), actor="w")
    assert ledger.renew({first.task_id: first.token}, 60) == {}
    assert ledger.lose(first.task_id, first.token, gone(), owed_token="o", actor="k") is None
    assert attempt(ledger, first.task_id, first.token).why == "busy"

    row = row_of(ledger, second.row_id)
    assert (row.state, row.claim_token, row.losses) == ("running", second.token, 0)


def test_rule_01_a_settled_row_of_another_token_is_not_ones_own(ledger):
    first, second = same_number_again(ledger)
    succeed(ledger, second, b'"theirs"')

    with pytest.raises(LeaseLost):
        succeed(ledger, first, b'"mine"')
    assert row_of(ledger, first.row_id).result == b'"theirs"'


def test_rule_01_a_claim_that_was_lost_can_settle_nothing(ledger):
    claim = running(ledger)
    ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="keeper")

    with pytest.raises(LeaseLost):
        succeed(ledger, claim)
    assert row_of(ledger, claim.row_id).state == "queued"


def test_rule_02_an_old_doorbell_runs_nothing(ledger):
    claim = running(ledger)
    ledger.settle(claim, fails(retry=retry(0, sent=envelope(claim.task_id, body=b"[[2],{},{}]"))), actor="w")
    make_due(ledger, claim.row_id, "wake_at")
    ledger.release(10, actor="sweep")

    assert attempt(ledger, claim.task_id, "t", envelope_no=1).why == "stale"
    assert row_of(ledger, claim.row_id).claims == 1
    assert attempt(ledger, claim.task_id, "t", envelope_no=2).claim is not None


def test_rule_02_a_replace_changes_the_message_and_never_the_identity(ledger):
    claim = running(ledger, "order-1")
    other = envelope(claim.task_id, "shop.refund")
    move = states.Move("replace", states.QUEUED, states.into_queued(), "replaced", envelope=other)

    ledger.settle(claim, lambda _: move, actor="w")

    assert attempt(ledger, claim.task_id, "t", envelope_no=1).why == "stale"
    record = ledger.get("shop.charge/order-1")
    assert (record.task_id, record.task, record.envelope_no) == (claim.task_id, "shop.charge", 2)
    assert queued(ledger, "order-1").outcome == "existing"


NAMES = ["ORD-a", "ord-A", "ORD-á", "ORD-a ", "ORD-a\t", "ord-a"]


def test_rule_03_keys_that_a_collation_confuses_are_different_keys(ledger):
    made = [queued(ledger, key) for key in NAMES]

    assert [m.outcome for m in made] == ["new"] * len(NAMES)
    for key, row in zip(NAMES, made, strict=True):
        assert queued(ledger, key).task_id == row.task_id
        assert ledger.get(key).id == row.row_id


def test_rule_03_a_task_id_is_compared_byte_by_byte(ledger):
    queued(ledger, "k0", task_id="ORD-a")

    for number, other in enumerate(NAMES[1:], 1):
        assert attempt(ledger, other, "t").why == "absent"
        if ledger.dialect.name == "mysql" and other == "ORD-a ":
            # Its index passes over trailing blanks: it cannot hold both, and nothing is mixed up.
            with pytest.raises(TaskIdConflict, match="'ORD-a '"):
                queued(ledger, f"k{number}", task_id=other)
        else:
            assert queued(ledger, f"k{number}", task_id=other).outcome == "new"


def test_rule_03_the_bounds_of_task_and_key_are_part_of_the_digest(ledger):
    assert queued(ledger, "b", task="shop.a").outcome == "new"
    assert queued(ledger, "ab", task="shop.").outcome == "new"


@pytest.mark.parametrize("key", ["ORD\0a", "\0", "ORD-\ud800"])
def test_rule_03_a_key_that_databases_take_differently_is_refused(key):
    with pytest.raises(IdempotencyKeyError, match="NUL"):
        keys.checked("shop.charge", key)


def test_rule_04_a_duplicate_that_is_awaited_gets_its_own_row_and_the_firsts_outcome(ledger):
    claim = running(ledger, "order-1")
    other = queued(ledger, "order-1", awaited=True, owes=True)
    assert other.outcome == "alias"

    succeed(ledger, claim, b'"paid"')
    ledger.follow(10, actor="sweep")

    row = row_of(ledger, other.row_id)
    assert (row.state, row.result, row.claims, row.key_digest) == ("succeeded", b'"paid"', 0, None)
    assert row.continuation_pending is not None


def test_rule_04_raise_comes_before_anything_is_written(ledger):
    queued(ledger, "order-1")

    for awaited in (True, False):
        with pytest.raises(KeyConflict):
            ledger.submit(submission("order-1", awaited=awaited), on_conflict="raise")
    assert len(rows(ledger)) == 1


def test_rule_04_a_task_id_under_another_key_is_no_key_conflict(ledger):
    first = queued(ledger, "order-1")

    with pytest.raises(TaskIdConflict):
        queued(ledger, "order-2", task_id=first.task_id)


@pytest.mark.parametrize("make", [dead, cancelled])
def test_rule_04_the_key_of_a_failed_row_is_never_swallowed(ledger, make):
    first = make(ledger, "order-1")

    done = ledger.submit(submission("order-1", body=b"[[2],{},{}]"), actor="submitter")

    row = row_of(ledger, first.row_id)
    assert (done.outcome, done.task_id) == ("replayed", first.task_id)
    assert (row.state, row.body, row.envelope_no) == ("queued", b"[[2],{},{}]", 2)
    assert ledger.events(row.id)[-1].actor == "submitter"


def test_rule_06_a_message_without_its_row_is_parked_and_can_be_replayed(ledger):
    sub = submission()
    assert attempt(ledger, sub.task_id, "t").why == "absent"

    row_id = ledger.park(sub, boom("no such row", "rejected"), actor="w")

    row = row_of(ledger, row_id)
    assert (row.state, row.failure_kind) == ("dead", "rejected")
    assert attempt(ledger, sub.task_id, "t").why == "done"
    assert ledger.replay_row(row_id, "its submission was real", actor="ann")
    assert attempt(ledger, sub.task_id, "t").claim is not None
