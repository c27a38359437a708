"""take_rings, ring_again and clear_continuations: a message is only a doorbell, and it is rung until heard."""

from __future__ import annotations

import pytest

from celery_durable.ledger.sweeping import MAX_DEFERRALS, MAX_INTERVAL
from tests.ledger.kit import (
    BROKER,
    QUEUE,
    REPUBLISH,
    cancelled,
    change,
    claimed,
    dead,
    fails,
    lock,
    make_due,
    now,
    queued,
    race,
    retry,
    row_of,
    running,
    seconds_ahead,
    succeeded,
    transaction,
    waiting,
)


def due(ledger, **options):
    row = queued(ledger, **options)
    make_due(ledger, row.row_id, "publish_at")
    return row


def take(ledger, *, broker=BROKER, limit=10, depth=0, reserved=()):
    rings, _ = ledger.take_rings(broker, limit, depths={QUEUE: depth}, reserved=reserved)
    return [r.task_id for r in rings]


def test_a_due_row_is_handed_out_with_its_message(ledger):
    row = due(ledger, deadline_at=2**52)
    change(ledger, row.row_id, retries=4)

    (ring,), count = ledger.take_rings(BROKER, 10, depths={})

    stored = row_of(ledger, row.row_id)
    assert count == 1
    assert (ring.row_id, ring.task_id, ring.envelope_no, ring.state) == (row.row_id, row.task_id, 1, "queued")
    assert (ring.retries, ring.deadline_at) == (4, 2**52)
    assert ring.envelope.headers["id"] == row.task_id
    assert ring.now <= now(ledger)
    assert (stored.rings, stored.publish_count) == (2, 2)
    assert stored.published_at <= now(ledger)


def test_the_row_has_moved_on_before_anything_is_published(ledger):
    row = due(ledger)

    take(ledger)

    assert row_of(ledger, row.row_id).publish_at > now(ledger)
    assert take(ledger) == []


def test_intervals_double_up_to_ten_minutes(ledger):
    row = due(ledger)
    change(ledger, row.row_id, rings=0)
    intervals = []
    for _ in range(8):
        assert take(ledger) == [row.task_id]
        intervals.append(seconds_ahead(ledger, row_of(ledger, row.row_id).publish_at))
        make_due(ledger, row.row_id, "publish_at")

    assert intervals == pytest.approx([30, 60, 120, 240, 480, 600, 600, 600], abs=5)
    assert MAX_INTERVAL == 600


def test_the_largest_number_of_rings_is_still_ten_minutes(ledger):
    row = due(ledger)
    change(ledger, row.row_id, rings=2**30)

    take(ledger)

    assert seconds_ahead(ledger, row_of(ledger, row.row_id).publish_at) == pytest.approx(600, abs=5)


def test_a_queue_with_messages_puts_a_ring_off_three_times_at_most(ledger):
    row = due(ledger)
    heard = []
    for _ in range(2 * (MAX_DEFERRALS + 1)):
        heard.append(take(ledger, depth=5) == [row.task_id])
        make_due(ledger, row.row_id, "publish_at")

    assert heard == [False, False, False, True] * 2


def test_a_deferral_is_no_ring(ledger):
    row = due(ledger)

    assert ledger.take_rings(BROKER, 10, depths={QUEUE: 1}) == ([], 1)

    stored = row_of(ledger, row.row_id)
    assert (stored.rings, stored.publish_count, stored.deferrals) == (1, 1, 1)
    assert seconds_ahead(ledger, stored.publish_at) == pytest.approx(2 * REPUBLISH, abs=5)


def test_the_first_ring_of_a_row_is_never_put_off_for_the_queues_sake(ledger):
    row = due(ledger)
    ledger.unpublished(row.row_id, 1)

    assert take(ledger, depth=1000) == [row.task_id]


def test_another_queues_messages_put_nothing_off(ledger):
    row = due(ledger, queue="quiet")

    assert take(ledger, depth=1000) == [row.task_id]


def test_a_row_whose_message_sits_in_this_process_is_put_off_three_times_at_most(ledger):
    row = due(ledger)
    ledger.unpublished(row.row_id, 1)
    heard = []
    for _ in range(MAX_DEFERRALS + 1):
        heard.append(take(ledger, reserved={row.task_id}) == [row.task_id])
        make_due(ledger, row.row_id, "publish_at")

    assert heard == [False, False, False, True]


def test_another_brokers_rows_are_left_alone(ledger):
    row = due(ledger, broker="broker-b")
    before = row_of(ledger, row.row_id)

    assert take(ledger) == []
    assert row_of(ledger, row.row_id) == before
    assert take(ledger, broker="broker-b") == [row.task_id]


@pytest.mark.parametrize("make", [running, waiting, succeeded, dead, cancelled])
def test_a_row_that_is_not_queued_and_owes_nothing_is_never_rung(ledger, make):
    row = row_of(ledger, make(ledger).row_id)

    assert row.publish_at is None
    assert take(ledger) == []


@pytest.mark.parametrize("make", [succeeded, dead, cancelled])
def test_an_owed_outcome_is_rung_like_a_queued_row(ledger, make):
    row = make(ledger, owes=True)
    make_due(ledger, row.row_id, "publish_at")

    (ring,), _ = ledger.take_rings(BROKER, 10, depths={})

    assert (ring.task_id, ring.state) == (row.task_id, row_of(ledger, row.row_id).state)


def test_each_move_into_queued_rings_anew(ledger):
    row = due(ledger)
    for _ in range(5):
        take(ledger)
        make_due(ledger, row.row_id, "publish_at")
    claim = claimed(ledger, row.task_id)
    assert row_of(ledger, row.row_id).rings == 0

    ledger.settle(claim, fails(retry=retry()), actor="w")
    make_due(ledger, row.row_id, "wake_at")
    ledger.release(10, actor="sweep")

    assert take(ledger, depth=1000) == [row.task_id]
    assert seconds_ahead(ledger, row_of(ledger, row.row_id).publish_at) == pytest.approx(REPUBLISH, abs=5)


def test_the_longest_due_comes_first_and_no_more_than_the_limit(ledger):
    first, second = due(ledger), due(ledger)
    change(ledger, second.row_id, publish_at=now(ledger) - 60_000_000)

    assert take(ledger, limit=1) == [second.task_id]
    assert take(ledger, limit=1) == [first.task_id]


def test_many_sweepers_ring_each_row_once(ledger):
    made = [due(ledger) for _ in range(12)]

    rung = race(4, lambda _: take(ledger, limit=12))

    assert sorted(sum(rung, [])) == sorted(r.task_id for r in made)


def test_a_row_that_somebody_holds_stops_no_ring(ledger):
    if not ledger.dialect.skip_locked:
        pytest.skip(f"{ledger.dialect.name} locks the whole database, so no row alone can be held")
    held, free = due(ledger), due(ledger)

    with transaction(ledger) as connection:
        lock(ledger, connection, held.row_id)
        assert take(ledger) == [free.task_id]


def test_rung_before_names_the_queues_worth_a_look(ledger):
    due(ledger, queue="heard")
    fresh = due(ledger, queue="fresh")
    ledger.unpublished(fresh.row_id, 1)
    queued(ledger, queue="not-due")
    due(ledger, queue="elsewhere", broker="broker-b")

    assert ledger.rung_before(BROKER, 10) == {"heard"}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_ring_that_the_broker_did_not_take_grows_no_interval(ledger, at_once):
    row = due(ledger)
    take(ledger)

    ledger.ring_again([row.row_id], at_once=at_once)

    stored = row_of(ledger, row.row_id)
    assert (stored.rings, stored.publish_count) == (1, 1)
    assert (stored.publish_at <= now(ledger)) is at_once
    make_due(ledger, row.row_id, "publish_at")
    assert take(ledger) == [row.task_id]
    assert seconds_ahead(ledger, row_of(ledger, row.row_id).publish_at) == pytest.approx(2 * REPUBLISH, abs=5)


def test_ring_again_leaves_rows_alone_that_moved_on(ledger):
    row = due(ledger)
    take(ledger)
    claimed(ledger, row.task_id)
    before = row_of(ledger, row.row_id)

    ledger.ring_again([row.row_id], at_once=True)
    ledger.ring_again([], at_once=True)

    assert row_of(ledger, row.row_id) == before


def test_an_outcome_that_was_told_is_owed_no_more(ledger):
    claim = succeeded(ledger, owes=True)
    other = succeeded(ledger, owes=True)

    assert ledger.clear_continuations({claim.task_id: claim.token}) == 1

    row = row_of(ledger, claim.row_id)
    assert (row.continuation_pending, row.publish_at) == (None, None)
    assert row_of(ledger, other.row_id).continuation_pending == other.token
    assert ledger.clear_continuations({claim.task_id: claim.token}) == 0
    assert ledger.clear_continuations({}) == 0


def test_only_the_token_of_that_outcome_clears_it(ledger):
    claim = succeeded(ledger, owes=True)
    before = row_of(ledger, claim.row_id)

    assert ledger.clear_continuations({claim.task_id: "another"}) == 0
    assert row_of(ledger, claim.row_id) == before


def test_the_outcome_of_a_replay_outlives_the_telling_of_the_first(ledger):
    first = dead(ledger, owes=True)
    ledger.replay_row(first.row_id, "again", actor="ann")
    second = claimed(ledger, first.task_id)
    ledger.settle(second, fails(owes=True, token="second"), actor="w")

    assert ledger.clear_continuations({first.task_id: "owed-by-fail"}) == 0
    assert row_of(ledger, first.row_id).continuation_pending == "second"
