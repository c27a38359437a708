"""A worker that shows a sign of death: what it ran is queued at once, uncounted, and its late writes are refused."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from celery_durable.errors import LeaseLost
from celery_durable.ledger import Held
from celery_durable.ledger.burying import GONE
from tests.ledger.kit import SECOND, claimed, queued, row_of, running, succeed
from tests.ledger.test_registry import age, presence

ME, NUMBER = "worker-1", 77  # the kit's claims are worker-1's


@pytest.fixture(autouse=True)
def entered(ledger):
    ledger.enter(presence(ME, broker="broker-a", lock=Held(NUMBER, "here")))


def bury(ledger, number=NUMBER, limit=10):
    return ledger.bury(ME, number, limit, actor="worker-2")


def again(ledger, claim):
    """Its row is taken once more by a worker of the same name, which shows no sign of death as yet."""
    ledger.beat(ME, phase="running", running=1, lock=Held(NUMBER, "here"))
    silence(ledger)
    return claimed(ledger, claim.task_id)


def silence(ledger):
    """Nobody has heard of it since before its latest burial."""
    age(ledger, ME, 3600)


def test_what_it_ran_is_due_at_once_and_nothing_is_counted(ledger):
    claim = running(ledger, lease=300)

    assert bury(ledger) == ([claim.task_id], True)

    row = row_of(ledger, claim.row_id)
    assert (row.state, row.losses, row.rings, row.claim_token) == ("queued", 0, 0, None)
    assert [r.task_id for r in ledger.take_rings("broker-a", 10, depths={})[0]] == [claim.task_id]
    (failure,) = ledger.failures(claim.row_id)
    assert (failure.kind, failure.exception, failure.worker) == ("worker_lost", GONE, ME)
    assert "free, 300 s before the end" in failure.message
    assert ledger.events(claim.row_id)[-1].actor == "worker-2"


def test_it_is_told_as_gone_and_not_buried_again(ledger):
    bury(ledger)

    (worker,) = ledger.workers()
    assert (worker.phase, worker.live) == ("gone", False)
    running(ledger)
    assert bury(ledger) == ([], True)


def test_who_holds_another_lock_by_now_is_left_alone(ledger):
    """It has noticed by itself that its session was lost."""
    claim = running(ledger)
    ledger.beat(ME, phase="running", running=1, lock=Held(78, "here"))

    assert bury(ledger) == ([], True)
    assert row_of(ledger, claim.row_id).state == "running"


def test_who_was_buried_alive_is_refused_and_reports_itself_again(ledger):
    claim = running(ledger)
    bury(ledger)
    other = claimed(ledger, claim.task_id)

    with pytest.raises(LeaseLost):
        succeed(ledger, claim)
    assert ledger.renew({claim.task_id: claim.token}, 30) == {}
    succeed(ledger, other)
    assert ledger.beat(ME, phase="running", running=0, lock=Held(78, "here"))
    assert ledger.workers()[0].live
    assert row_of(ledger, claim.row_id).losses == 0


def test_others_are_left_alone(ledger):
    ledger.enter(presence("worker-2", lock=Held(NUMBER + 1, "here")))
    claim = running(ledger)

    assert ledger.bury("worker-2", NUMBER + 1, 10, actor="w") == ([], True)
    assert row_of(ledger, claim.row_id).state == "running"


def test_what_must_not_be_begun_twice_waits_for_its_lease(ledger):
    claim = running(ledger, on_loss="dead")

    assert bury(ledger) == ([], True)
    assert row_of(ledger, claim.row_id).state == "running"


def test_a_cancelled_task_ends_with_it(ledger):
    claim = running(ledger)
    ledger.cancel_row(claim.row_id, "not wanted", actor="ann")

    bury(ledger)

    assert row_of(ledger, claim.row_id).state == "cancelled"


def test_many_are_ended_in_bounded_batches(ledger):
    claims = [running(ledger) for _ in range(5)]

    first, second, third = (bury(ledger, limit=2) for _ in range(3))

    assert [len(b.task_ids) for b in (first, second, third)] == [2, 2, 1]
    assert [b.over for b in (first, second, third)] == [False, False, True]
    assert {row_of(ledger, c.row_id).state for c in claims} == {"queued"}


def test_messages_that_it_may_have_held_are_sent_again(ledger):
    """Redis gives them back after an hour."""
    taken, unsent, elsewhere = queued(ledger), queued(ledger), queued(ledger, queue="other")
    ledger.take_rings("broker-a", 10, depths={})
    t, c = ledger.t.task, ledger.t.task.c
    never = sa.update(t).where(c.id == unsent.row_id).values(rings=0)
    ledger.db.run(lambda connection: connection.execute(never))

    bury(ledger)

    assert [r.task_id for r in ledger.take_rings("broker-a", 10, depths={})[0]] == [taken.task_id]
    assert row_of(ledger, elsewhere.row_id).publish_at - row_of(ledger, elsewhere.row_id).submitted_at > 20 * SECOND


def test_a_task_that_takes_its_worker_with_it_each_time_is_poison_in_the_end(ledger):
    """A sign counts once it has turned out true: that worker was never heard of again."""
    claim = running(ledger, max_losses=3)
    told = []
    for _ in range(4):
        bury(ledger)
        told.append((row_of(ledger, claim.row_id).losses, row_of(ledger, claim.row_id).state))
        if told[-1][1] == "queued":
            claim = again(ledger, claim)

    assert told == [(0, "queued"), (1, "queued"), (2, "queued"), (3, "dead")]
    assert row_of(ledger, claim.row_id).failure_kind == "poison"


def test_false_signs_never_count(ledger):
    claim = running(ledger, max_losses=1)
    for _ in range(5):
        bury(ledger)
        ledger.beat(ME, phase="running", running=1, lock=Held(NUMBER, "here"))  # it lives
        claim = claimed(ledger, claim.task_id)

    assert row_of(ledger, claim.row_id).losses == 0


def test_a_replay_forgets_them(ledger):
    claim = running(ledger, max_losses=1)
    bury(ledger)
    again(ledger, claim)
    bury(ledger)
    assert row_of(ledger, claim.row_id).state == "dead"
    ledger.replay_row(claim.row_id, reason="again", actor="ann")
    again(ledger, claim)

    bury(ledger)

    assert (row_of(ledger, claim.row_id).state, row_of(ledger, claim.row_id).losses) == ("queued", 0)
