"""A submission that somebody waits for under its own id gets a row of its own, which follows the first."""

from __future__ import annotations

import pytest

from celery_durable import states
from celery_durable.errors import KeyConflict
from tests.ledger.kit import (
    boom,
    cancelled,
    claimed,
    dead,
    fails,
    gone,
    history,
    make_due,
    now,
    queued,
    race,
    row_of,
    rows,
    running,
    seconds_ahead,
    succeed,
    succeeded,
    waiting,
    waits,
)


def alias(ledger, key="order-1", *, owes=True):
    return queued(ledger, key, awaited=True, owes=owes)


@pytest.mark.parametrize("make", [queued, running, waiting])
def test_an_awaited_duplicate_waits_for_the_live_holder_of_its_key(ledger, make):
    first = make(ledger, "order-1")

    done = alias(ledger)

    row = row_of(ledger, done.row_id)
    assert (done.outcome, done.state, done.publish) == ("alias", "waiting", False)
    assert done.task_id != first.task_id
    assert (row.wait_kind, row.duplicate_of, row.key_digest) == ("duplicate", first.row_id, None)
    assert first.task_id in row.wait_reason
    assert (row.publish_at, row.publish_count, row.rings) == (None, 0, 0)
    assert row_of(ledger, first.row_id).aliases == 1
    assert history(ledger, row.id) == [("submit", None, "waiting", "shop")]


def test_nobody_claims_or_releases_an_alias(ledger):
    queued(ledger, "order-1")
    done = alias(ledger)
    make_due(ledger, done.row_id, "wake_at")

    assert ledger.claim(done.task_id, "t", owner="w", pid=1, lease=30).why == "busy"
    assert ledger.release(10, actor="sweep") == 0
    assert row_of(ledger, done.row_id).state == "waiting"


def test_an_alias_whose_first_is_live_looks_again_later(ledger):
    queued(ledger, "order-1")
    done = alias(ledger)
    make_due(ledger, done.row_id, "wake_at")

    ledger.follow(10, actor="sweep")

    row = row_of(ledger, done.row_id)
    assert row.state == "waiting"
    assert 0 < seconds_ahead(ledger, row.wake_at) <= states.FOLLOW_INTERVAL


def test_an_alias_takes_the_result_of_its_first(ledger):
    claim = running(ledger, "order-1")
    done = alias(ledger)

    succeed(ledger, claim, b'{"paid": true}')
    assert row_of(ledger, done.row_id).wake_at <= now(ledger)  # woken, not left to its interval
    assert ledger.follow(10, actor="sweep") == 1

    row = row_of(ledger, done.row_id)
    assert (row.state, row.result, row.result_type) == ("succeeded", b'{"paid": true}', "application/json")
    assert row.continuation_pending is not None
    assert row.publish_at <= now(ledger)
    assert row.claims == 0
    assert history(ledger, row.id)[-1] == ("follow", "waiting", "succeeded", "sweep")


def test_an_alias_takes_the_failure_of_its_first(ledger):
    claim = running(ledger, "order-1")
    done = alias(ledger)

    ledger.settle(claim, fails(), actor="worker-1")
    assert ledger.follow(10, actor="sweep") == 1

    row = row_of(ledger, done.row_id)
    assert (row.state, row.failure_kind) == ("dead", "permanent")
    mine, theirs = ledger.failures(row.id), ledger.failures(claim.row_id)
    assert mine == theirs
    assert mine[0].message == boom().message
    assert history(ledger, row.id)[-1] == ("follow", "waiting", "dead", "sweep")


def test_an_alias_of_a_cancelled_first_is_cancelled(ledger):
    first = queued(ledger, "order-1")
    done = alias(ledger)

    ledger.cancel_row(first.row_id, "not wanted", actor="ann")
    assert ledger.follow(10, actor="sweep") == 1

    row = row_of(ledger, done.row_id)
    assert (row.state, row.failure_kind) == ("cancelled", None)
    assert history(ledger, row.id)[-1] == ("follow", "waiting", "cancelled", "sweep")


@pytest.mark.parametrize("end", ["settle", "lose"])
def test_an_alias_is_woken_by_whatever_ends_its_first(ledger, end):
    claim = running(ledger, "order-1", max_losses=1)
    done = alias(ledger)

    if end == "lose":
        ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="keeper")
    else:
        ledger.settle(claim, fails(), actor="worker-1")

    assert row_of(ledger, done.row_id).wake_at <= now(ledger)


def test_an_alias_is_not_woken_by_a_wait_of_its_first(ledger):
    claim = running(ledger, "order-1")
    done = alias(ledger)

    ledger.settle(claim, waits(), actor="worker-1")

    assert row_of(ledger, done.row_id).wake_at > now(ledger)


def test_an_awaited_duplicate_of_a_succeeded_row_follows_at_once(ledger):
    succeeded(ledger, "order-1")

    done = alias(ledger)

    assert ledger.follow(10, actor="sweep") == 1
    assert row_of(ledger, done.row_id).result == b"42"


def test_an_alias_owes_only_what_is_awaited(ledger):
    succeeded(ledger, "order-1")

    done = alias(ledger, owes=False)
    ledger.follow(10, actor="sweep")

    row = row_of(ledger, done.row_id)
    assert (row.continuation_pending, row.publish_at) == (None, None)


@pytest.mark.parametrize("make", [dead, cancelled])
def test_an_awaited_duplicate_of_a_failed_row_replays_it_and_follows(ledger, make):
    first = make(ledger, "order-1")

    done = alias(ledger)

    assert done.outcome == "alias"
    assert row_of(ledger, first.row_id).state == "queued"
    succeed(ledger, claimed(ledger, first.task_id))
    ledger.follow(10, actor="sweep")
    assert row_of(ledger, done.row_id).state == "succeeded"


@pytest.mark.parametrize("make", [dead, cancelled])
def test_a_first_replayed_for_an_alias_is_rung_by_the_next_sweep(ledger, make):
    """Its message is not the submitter's to send: the submitter was answered with the alias."""
    first = make(ledger, "order-1")

    alias(ledger)

    rings, _ = ledger.take_rings("broker-a", 10, depths={"celery": 9})
    assert [r.task_id for r in rings] == [first.task_id]


def test_raise_comes_before_an_alias(ledger):
    queued(ledger, "order-1")

    with pytest.raises(KeyConflict):
        ledger.submit(_awaited("order-1"), on_conflict="raise")

    assert len(rows(ledger)) == 1


def _awaited(key):
    from tests.ledger.kit import submission

    return submission(key, awaited=True)


def test_an_awaited_submission_of_a_free_key_is_no_alias(ledger):
    assert alias(ledger).outcome == "new"


def test_eight_replies_lost_at_once_make_one_alias(ledger):
    first = queued(ledger, "order-1")
    sub = _awaited("order-1")

    done = race(8, lambda _: ledger.submit(sub))

    assert sorted(d.outcome for d in done) == ["alias"] + ["own"] * 7
    assert row_of(ledger, first.row_id).aliases == 1


def test_the_same_alias_again_is_ones_own(ledger):
    first = queued(ledger, "order-1")
    sub = _awaited("order-1")
    ledger.submit(sub)

    assert ledger.submit(sub).outcome == "own"
    assert row_of(ledger, first.row_id).aliases == 1


def test_an_alias_of_a_row_that_is_gone_is_dead(ledger):
    import sqlalchemy as sa

    first = queued(ledger, "order-1")
    done = alias(ledger)
    ledger.db.run(lambda c: c.execute(sa.delete(ledger.t.task).where(ledger.t.task.c.id == first.row_id)))
    make_due(ledger, done.row_id, "wake_at")

    ledger.follow(10, actor="sweep")

    row = row_of(ledger, done.row_id)
    assert (row.state, row.failure_kind) == ("dead", "rejected")
    assert row.continuation_pending is not None


@pytest.mark.parametrize("end", [dead, cancelled])
def test_a_replayed_alias_follows_again_instead_of_running(ledger, end):
    claim = running(ledger, "order-1")
    done = alias(ledger)
    if end is dead:
        ledger.settle(claim, fails(), actor="worker-1")
        ledger.follow(10, actor="sweep")
    else:
        ledger.cancel_row(done.row_id, "not wanted", actor="ann")

    assert ledger.replay_row(done.row_id, "again", actor="ann")

    assert ledger.claim(done.task_id, "t", owner="w", pid=1, lease=30).claim is None
    assert row_of(ledger, done.row_id).wait_kind == "duplicate"
