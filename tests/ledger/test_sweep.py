"""glance, release, expire_leases and expire_deadlines: what is due is moved, and only that."""

from __future__ import annotations

import pytest

from celery_durable import states
from tests.ledger.kit import (
    BROKER,
    SECOND,
    change,
    dead,
    history,
    lock,
    make_due,
    now,
    queued,
    race,
    row_of,
    running,
    succeeded,
    transaction,
    verbs,
    waiting,
)


def seen(ledger, broker=BROKER):
    glance = ledger.glance(broker)
    return {name for name in ("waits", "leases", "rings", "deadlines") if getattr(glance, name)}


def test_a_glance_at_rows_that_are_not_due_sees_nothing(ledger):
    for make in (queued, running, waiting, succeeded, dead):
        make(ledger)
    queued(ledger, deadline_at=now(ledger) + 60 * SECOND)

    assert seen(ledger) == set()
    assert abs(ledger.glance(BROKER).now - now(ledger)) < 10 * SECOND


def test_a_glance_tells_what_is_due(ledger):
    make_due(ledger, waiting(ledger).row_id, "wake_at")
    assert seen(ledger) == {"waits"}
    make_due(ledger, running(ledger).row_id, "lease_expires_at")
    assert seen(ledger) == {"waits", "leases"}
    make_due(ledger, queued(ledger).row_id, "publish_at")
    assert seen(ledger) == {"waits", "leases", "rings"}
    make_due(ledger, queued(ledger).row_id, "deadline_at")
    assert seen(ledger) == {"waits", "leases", "rings", "deadlines"}


def test_a_glance_sees_owed_outcomes_and_no_other_brokers_rows(ledger):
    make_due(ledger, succeeded(ledger, owes=True).row_id, "publish_at")

    assert seen(ledger) == {"rings"}
    assert seen(ledger, "broker-b") == set()


def test_a_deadline_of_a_row_that_runs_or_is_over_is_not_due(ledger):
    for make in (running, succeeded, dead):
        make_due(ledger, make(ledger, deadline_at=now(ledger) + 60 * SECOND).row_id, "deadline_at")

    assert seen(ledger) == set()
    assert ledger.expire_deadlines(10, actor="sweep") == 0


def test_release_queues_due_waits_and_rings_them_at_once(ledger):
    due, later = waiting(ledger), waiting(ledger)
    make_due(ledger, due.row_id, "wake_at")
    change(ledger, due.row_id, rings=5, deferrals=2)

    assert ledger.release(10, actor="sweep") == 1

    row = row_of(ledger, due.row_id)
    assert (row.state, row.wait_kind, row.wait_reason, row.wake_at) == ("queued", None, None, None)
    assert (row.rings, row.deferrals) == (0, 0)
    assert row.publish_at <= now(ledger)
    assert row_of(ledger, later.row_id).state == "waiting"
    assert history(ledger, due.row_id)[-1] == ("release", "waiting", "queued", "sweep")
    assert ledger.events(due.row_id)[-1].reason == "scheduled is due"


def test_release_takes_the_longest_due_first_and_no_more_than_the_limit(ledger):
    made = [waiting(ledger) for _ in range(3)]
    for age, row in enumerate(made, 1):
        change(ledger, row.row_id, wake_at=now(ledger) - age * SECOND)

    assert ledger.release(2, actor="sweep") == 2

    assert [row_of(ledger, r.row_id).state for r in made] == ["waiting", "queued", "queued"]


def test_many_sweepers_release_each_row_once(ledger):
    made = [waiting(ledger) for _ in range(12)]
    for row in made:
        make_due(ledger, row.row_id, "wake_at")

    def sweep(number):
        moved = 0
        while count := ledger.release(2, actor=f"sweep-{number}"):
            moved += count
        return moved

    assert sum(race(4, sweep)) == 12
    assert all(verbs(ledger, r.row_id) == ["submit", "release"] for r in made)


def test_an_expired_lease_is_a_loss(ledger):
    due, live = running(ledger), running(ledger)
    make_due(ledger, due.row_id, "lease_expires_at")

    assert ledger.expire_leases(10, actor="sweep") == [due.task_id]

    row = row_of(ledger, due.row_id)
    (failure,) = ledger.failures(due.row_id)
    assert (row.state, row.losses, row.retries, row.claim_token, row.lease_owner) == ("queued", 1, 0, None, None)
    assert row.publish_at <= now(ledger)
    assert (failure.kind, failure.worker, failure.pid, failure.claim) == ("lease_expired", "worker-1", 101, 1)
    assert row_of(ledger, live.row_id).state == "running"
    assert history(ledger, due.row_id)[-1] == ("lose", "running", "queued", "sweep")


@pytest.mark.parametrize(("options", "kind"), [({"max_losses": 1}, "poison"), ({"on_loss": "dead"}, "lease_expired")])
def test_a_lease_may_expire_once_too_often(ledger, options, kind):
    claim = running(ledger, owes=True, **options)
    make_due(ledger, claim.row_id, "lease_expires_at")

    ledger.expire_leases(10, actor="sweep")

    row = row_of(ledger, claim.row_id)
    assert (row.state, row.failure_kind) == ("dead", kind)
    assert row.continuation_pending is not None
    assert row.publish_at <= now(ledger)


def test_many_sweepers_expire_each_lease_once(ledger):
    made = [running(ledger) for _ in range(8)]
    for claim in made:
        make_due(ledger, claim.row_id, "lease_expires_at")

    ended = race(4, lambda n: ledger.expire_leases(10, actor=f"sweep-{n}"))

    assert sorted(sum(ended, [])) == sorted(c.task_id for c in made)
    assert all(row_of(ledger, c.row_id).losses == 1 for c in made)


@pytest.mark.parametrize("make", [queued, waiting])
def test_a_row_past_its_deadline_dies_before_it_runs(ledger, make):
    row = make(ledger, owes=True)
    make_due(ledger, row.row_id, "deadline_at")

    assert ledger.expire_deadlines(10, actor="sweep") == 1

    stored = row_of(ledger, row.row_id)
    assert (stored.state, stored.failure_kind) == ("dead", "expired")
    assert stored.continuation_pending is not None
    assert [f.kind for f in ledger.failures(row.row_id)] == ["expired"]
    assert history(ledger, row.row_id)[-1] == ("expire", row.state, "dead", "sweep")


@pytest.mark.parametrize("verb", ["release", "expire_leases", "expire_deadlines", "follow"])
def test_a_row_that_somebody_holds_stops_no_sweep(ledger, verb):
    if not ledger.dialect.skip_locked:
        pytest.skip(f"{ledger.dialect.name} locks the whole database, so no row alone can be held")
    held, free = due_for(ledger, verb), due_for(ledger, verb)

    with transaction(ledger) as connection:
        lock(ledger, connection, held)
        done = getattr(ledger, verb)(10, actor="sweep")

    assert (len(done) if isinstance(done, list) else done) == 1
    assert row_of(ledger, free).state != row_of(ledger, held).state


def due_for(ledger, verb):
    """A row that is due for a verb of the sweep."""
    if verb == "expire_leases":
        row_id = running(ledger).row_id
        make_due(ledger, row_id, "lease_expires_at")
    elif verb == "expire_deadlines":
        row_id = queued(ledger).row_id
        make_due(ledger, row_id, "deadline_at")
    elif verb == "follow":
        first = succeeded(ledger)
        key = ledger.get(first.task_id).key
        row_id = queued(ledger, key, awaited=True).row_id
        make_due(ledger, row_id, "wake_at")
    else:
        row_id = waiting(ledger).row_id
        make_due(ledger, row_id, "wake_at")
    return row_id


def test_an_aliass_wait_is_never_released(ledger):
    queued(ledger, "order-1")
    other = queued(ledger, "order-1", awaited=True)
    make_due(ledger, other.row_id, "wake_at")

    assert ledger.release(10, actor="sweep") == 0
    assert row_of(ledger, other.row_id).wait_kind == states.DUPLICATE
