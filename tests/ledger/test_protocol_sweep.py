"""The rules of the protocol about queue, sweep and clocks: each fails when its rule is taken out."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.ledger.kit import (
    BROKER,
    QUEUE,
    SECOND,
    Background,
    cancelled,
    change,
    claimed,
    dead,
    gone,
    lock,
    make_due,
    now,
    queued,
    row_of,
    running,
    seconds_ahead,
    succeeded,
    transaction,
    until_blocked,
    verbs,
    waiting,
)


def attempt(ledger, task_id, token, **options):
    return ledger.claim(task_id, token, owner="w", pid=1, lease=30, **options)


def test_rule_07_every_row_that_a_sweep_must_see_says_when(ledger):
    rung = [queued(ledger), cancelled(ledger, owes=True), dead(ledger, owes=True), succeeded(ledger, owes=True)]
    lost = running(ledger)
    ledger.lose(lost.task_id, lost.token, gone(), owed_token="o", actor="k")

    for row in [*rung, lost]:
        assert row_of(ledger, row.row_id).publish_at is not None


def test_rule_07_a_ring_has_moved_on_and_is_committed_before_it_is_handed_out(ledger):
    row = queued(ledger)
    make_due(ledger, row.row_id, "publish_at")

    rings, _ = ledger.take_rings(BROKER, 10, depths={})

    assert len(rings) == 1
    assert seconds_ahead(ledger, row_of(ledger, row.row_id).publish_at) > 20


def test_rule_07_intervals_grow_to_ten_minutes_and_restart_at_each_move_into_queued(ledger):
    row = queued(ledger)
    change(ledger, row.row_id, rings=30)
    make_due(ledger, row.row_id, "publish_at")
    ledger.take_rings(BROKER, 10, depths={})
    assert seconds_ahead(ledger, row_of(ledger, row.row_id).publish_at) == pytest.approx(600, abs=5)

    claim = claimed(ledger, row.task_id)
    ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="k")
    assert row_of(ledger, row.row_id).rings == 0
    ledger.take_rings(BROKER, 10, depths={})
    assert seconds_ahead(ledger, row_of(ledger, row.row_id).publish_at) == pytest.approx(30, abs=5)


def test_rule_07_a_failed_publish_grows_no_interval(ledger):
    row = queued(ledger)
    for _ in range(5):
        make_due(ledger, row.row_id, "publish_at")
        rings, _ = ledger.take_rings(BROKER, 10, depths={})
        ledger.ring_again([r.row_id for r in rings], at_once=False)

    assert seconds_ahead(ledger, row_of(ledger, row.row_id).publish_at) == pytest.approx(60, abs=5)


def test_rule_08_a_busy_queue_puts_a_row_off_three_times_at_most(ledger):
    row = queued(ledger)
    heard = []
    for _ in range(4):
        make_due(ledger, row.row_id, "publish_at")
        heard.append(len(ledger.take_rings(BROKER, 10, depths={QUEUE: 9})[0]))

    assert heard == [0, 0, 0, 1]


def test_rule_08_an_unknown_depth_counts_as_zero(ledger):
    row = queued(ledger)
    make_due(ledger, row.row_id, "publish_at")

    assert len(ledger.take_rings(BROKER, 10, depths={})[0]) == 1


def test_rule_08_a_sweeper_rings_its_own_broker_only(ledger):
    row = queued(ledger, broker="broker-b")
    make_due(ledger, row.row_id, "publish_at")

    assert not ledger.glance(BROKER).rings
    assert ledger.rung_before(BROKER, 10) == set()
    assert ledger.take_rings(BROKER, 10, depths={}) == ([], 0)
    assert row_of(ledger, row.row_id).publish_count == 1


def test_rule_10_stored_times_are_those_after_a_lock_wait(postgres_ledger):
    ledger = postgres_ledger
    row = queued(ledger)
    with transaction(ledger) as connection:
        connection.execute(sa.update(ledger.t.task).where(ledger.t.task.c.id == row.row_id).values(priority=1))
        waiter = Background(lambda: attempt(ledger, row.task_id, "t"))
        until_blocked(ledger)
        connection.exec_driver_sql("SELECT pg_sleep(0.2)")  # time that passes in the database, not a wait for it
        unlocked = now(ledger)
    assert waiter.answer().claim is not None

    stored = row_of(ledger, row.row_id)
    assert stored.started_at >= unlocked
    assert stored.lease_expires_at >= unlocked + 30 * SECOND


def test_rule_11_a_locked_row_stops_no_renewal_and_no_expiry(ledger):
    if not ledger.dialect.skip_locked:
        pytest.skip(f"{ledger.dialect.name} locks the whole database, so no row alone can be held")
    held, free, expired = (running(ledger) for _ in range(3))
    for claim in (held, expired):
        make_due(ledger, claim.row_id, "lease_expires_at")

    with transaction(ledger) as connection:
        lock(ledger, connection, held.row_id)
        renewed = Background(lambda: ledger.renew({c.task_id: c.token for c in (held, free)}, 60)).answer(5)
        ended = Background(lambda: ledger.expire_leases(10, actor="sweep")).answer(5)

    assert renewed == {free.task_id: False}
    assert ended == [expired.task_id]


def test_waiting_rows_are_never_rung(ledger):
    row = waiting(ledger)

    assert row_of(ledger, row.row_id).publish_at is None
    assert verbs(ledger, row.row_id) == ["submit"]
