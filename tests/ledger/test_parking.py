"""Messages that cannot run where they arrived: kept, moved, released, handed over, on every database."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from celery_durable import failures
from celery_durable.ledger import Parcel, Sighting
from tests.ledger import kit
from tests.ledger.kit import history, make_due, now, row_of, rows, submission, verbs

ACTOR = "worker-1"


def flawed(message: str = "the id is missing"):
    failure = failures.loss("undecodable", "celery_durable.Undecodable", message, worker=ACTOR, pid=None, claim=0)
    return replace(failure, retryable=False)


def bad(**options) -> Parcel:
    return Parcel(submission(**options), flawed())


def told_otherwise(parcel: Parcel) -> Parcel:
    envelope = replace(parcel.submission.envelope, body=b"something else")
    return replace(parcel, submission=replace(parcel.submission, envelope=envelope))


def unknown(**options) -> Parcel:
    return Parcel(submission(**options))


def test_many_bad_messages_become_dead_rows_with_history_and_failure(ledger):
    parcels = [bad() for _ in range(7)]

    assert ledger.take_in(parcels, actor=ACTOR) == ["parked"] * 7

    for parcel in parcels:
        found = ledger.get(parcel.submission.task_id)
        assert (found.state, found.failure_kind, found.failure.message) == ("dead", "undecodable", "the id is missing")
        assert history(ledger, found.id) == [("park", None, "dead", ACTOR)]
    assert ledger.verify() == []


def test_a_bad_message_whose_id_is_taken_gets_one_of_its_own(ledger):
    taken = kit.queued(ledger)
    other = bad()
    parcels = [told_otherwise(bad(task_id=taken.task_id)), other, told_otherwise(other)]

    assert ledger.take_in(parcels, actor=ACTOR) == ["parked"] * 3

    assert row_of(ledger, taken.task_id).state == "queued"
    assert len(rows(ledger)) == 4
    assert sorted(r.idempotency_key for r in rows(ledger) if r.state == "dead") == sorted(
        p.submission.key for p in parcels
    )
    assert ledger.verify() == []


def test_a_bad_message_that_comes_again_has_one_row(ledger):
    """It is delivered again where a worker died before it was acknowledged, or the reply to its row was lost."""
    twice = bad()

    assert ledger.take_in([twice, replace(twice), bad()], actor=ACTOR) == ["parked", "known", "parked"]
    assert ledger.take_in([twice], actor=ACTOR) == ["known"]
    waits = unknown()
    assert ledger.take_in([waits], actor=ACTOR) == ["parked"]
    assert ledger.take_in([replace(waits, failure=flawed())], actor=ACTOR) == ["known"], "read in another way"

    assert len(rows(ledger)) == 3
    assert ledger.verify() == []


def test_an_unknown_task_waits_and_says_for_what(ledger):
    parcel = unknown(task="shop.new")

    assert ledger.take_in([parcel], actor=ACTOR) == ["parked"]

    found = ledger.get(parcel.submission.task_id)
    assert (found.state, found.wait_kind) == ("waiting", "unregistered")
    assert "'shop.new'" in found.wait_reason
    assert 5 < kit.seconds_ahead(ledger, found.wake_at) <= 10
    assert ledger.take_in([parcel], actor=ACTOR) == ["known"], "delivered twice"


@pytest.mark.parametrize("readable", [True, False])
def test_a_recorded_message_moves_its_own_row(ledger, readable):
    row = kit.queued(ledger)
    sub = submission(task_id=row.task_id)
    parcel = Parcel(sub, None if readable else flawed(), (row.task_id, 1))

    assert ledger.take_in([parcel], actor=ACTOR) == ["parked"]
    assert ledger.take_in([parcel], actor=ACTOR) == ["known"]

    assert row_of(ledger, row.task_id).state == ("waiting" if readable else "dead")
    assert verbs(ledger, row.row_id) == ["submit", "park"]
    assert len(ledger.failures(row.row_id)) == (0 if readable else 1)
    assert ledger.verify() == []


def test_a_stale_or_running_row_is_left_alone(ledger):
    row, claim = kit.queued(ledger), kit.running(ledger)
    parcels = [
        Parcel(submission(task_id=row.task_id), flawed(), (row.task_id, 2)),
        Parcel(submission(task_id=claim.task_id), flawed(), (claim.task_id, 1)),
    ]

    assert ledger.take_in(parcels, actor=ACTOR) == ["known", "known"]

    assert [r.state for r in rows(ledger)] == ["queued", "running"]


def test_a_marked_message_without_a_row_is_dead(ledger):
    task_id = str(uuid4())

    ledger.take_in([Parcel(submission(task_id=task_id), None, (task_id, 1))], actor=ACTOR)

    assert ledger.get(task_id).failure_kind == "rejected"


def test_work_takes_the_id_of_what_could_not_be_read(ledger):
    parcel = bad()
    ledger.take_in([parcel], actor=ACTOR)
    task_id = parcel.submission.task_id
    assert ledger.claim(task_id, "t", owner=ACTOR, pid=1, lease=30).why == "absent"

    submitted = ledger.submit(submission(task_id=task_id), verb="adopt")

    assert (submitted.outcome, submitted.task_id) == ("new", task_id)
    kit.claimed(ledger, task_id)
    assert sorted(r.state for r in rows(ledger)) == ["dead", "running"]
    assert ledger.verify() == []


def test_work_takes_an_observed_row_over(ledger):
    ledger.observe([Sighting(task_id="seen", task=kit.TASK, state="running", worker="w", queue=kit.QUEUE)])

    submitted = ledger.submit(submission(task_id="seen", key="order-1"), verb="adopt")

    assert submitted.outcome == "new"
    assert ledger.get("order-1").observed is False
    assert verbs(ledger, submitted.row_id) == ["observe", "observe"]
    kit.claimed(ledger, "seen")
    assert ledger.verify() == []


def test_an_observed_row_gives_way_where_the_key_is_taken(ledger):
    first = kit.queued(ledger, "order-1")
    ledger.observe([Sighting(task_id="seen", task=kit.TASK, state="queued")])

    submitted = ledger.submit(submission(task_id="seen", key="order-1"), verb="adopt")

    assert (submitted.outcome, submitted.task_id) == ("existing", first.task_id)
    assert sorted(r.state for r in rows(ledger)) == ["cancelled", "queued"]
    assert ledger.verify() == []


# Strangers.


def stranger(ledger, **options):
    """A due row of an unknown task."""
    parcel = unknown(**options)
    ledger.take_in([parcel], actor=ACTOR)
    row = row_of(ledger, parcel.submission.task_id)
    make_due(ledger, row.id, "wake_at")
    return row


def test_no_ordinary_release_moves_a_stranger(ledger):
    row = stranger(ledger)

    ledger.release(100, actor=ACTOR)

    assert row_of(ledger, row.id).state == "waiting"
    assert [s.row_id for s in ledger.strangers(10)] == [row.id]


def test_a_worker_that_knows_the_task_makes_it_due(ledger):
    parcels = [unknown(task="shop.new"), unknown(task="shop.other")]
    ledger.take_in(parcels, actor=ACTOR)
    assert ledger.strangers(10) == []

    assert ledger.strangers_return({"shop.new"}) == 1

    assert [s.task for s in ledger.strangers(10)] == ["shop.new"]


def test_a_welcome_queues_the_row_with_what_its_task_says(ledger):
    row = stranger(ledger)
    sub = submission(task_id=row.task_id, key="order-1", max_losses=7, on_loss="dead")

    ledger.welcome(row.id, sub, actor=ACTOR)
    ledger.welcome(row.id, sub, actor="worker-2")

    found = row_of(ledger, row.id)
    assert (found.state, found.max_losses, found.on_loss) == ("queued", 7, "dead")
    assert found.publish_at <= now(ledger)
    assert ledger.get("order-1").task_id == row.task_id
    assert verbs(ledger, row.id) == ["park", "release"]
    assert ledger.verify() == []


@pytest.mark.parametrize("state", ["queued", "succeeded", "dead"])
def test_a_welcome_meets_the_holder_of_its_key(ledger, state):
    holder = getattr(kit, state)(ledger, "order-1")
    row = stranger(ledger)

    ledger.welcome(row.id, submission(task_id=row.task_id, key="order-1"), actor=ACTOR)

    found = row_of(ledger, row.id)
    assert (found.state, found.wait_kind) == ("waiting", "duplicate")
    assert row_of(ledger, found.duplicate_of).state == ("queued" if state == "dead" else state), "dead is brought back"
    if state == "succeeded":
        assert found.wake_at <= now(ledger)
        ledger.follow(10, actor=ACTOR)
        assert row_of(ledger, row.id).state == "succeeded"
    assert holder is not None
    assert ledger.verify() == []


def test_a_stranger_that_its_task_cannot_take_is_turned_away(ledger):
    row = stranger(ledger)

    ledger.turn_away(row.id, flawed("no such argument"), actor=ACTOR)

    assert row_of(ledger, row.id).failure_kind == "undecodable"
    assert ledger.verify() == []


def test_strangers_are_put_off_unless_a_live_worker_knows_them(ledger):
    from celery_durable.ledger import Presence

    ledger.enter(Presence("w1", "w1@h", 1, [kit.QUEUE], ["shop.new"], kit.BROKER, 30.0))
    known, nobodys = stranger(ledger, task="shop.new"), stranger(ledger, task="shop.other")

    ledger.put_off(ledger.strangers(10))

    assert [s.row_id for s in ledger.strangers(10)] == [known.id]
    assert row_of(ledger, nobodys.id).wake_at > now(ledger)


# Handing over.


def test_a_queued_row_is_handed_over_once_and_its_message_as_often_as_it_comes(ledger):
    row = kit.queued(ledger)

    assert ledger.hand_over(row.task_id, 2, actor=ACTOR) is False, "another message"
    assert ledger.hand_over(row.task_id, 1, actor=ACTOR) is True
    assert ledger.hand_over(row.task_id, 1, actor=ACTOR) is True

    found = ledger.get(row.task_id)
    assert (found.state, found.observed) == ("cancelled", True)
    assert verbs(ledger, row.row_id) == ["submit", "hand_over"]
    ledger.observe(
        [Sighting(task_id=row.task_id, task=kit.TASK, state=s, worker="w") for s in ("running", "succeeded")]
    )
    assert ledger.get(row.task_id).state == "succeeded"
    assert ledger.verify() == []


def test_what_is_not_queued_is_not_handed_over(ledger):
    claim, waits = kit.running(ledger), kit.waiting(ledger)

    assert ledger.hand_over(claim.task_id, 1, actor=ACTOR) is False
    assert ledger.hand_over(waits.task_id, 1, actor=ACTOR) is False
    assert ledger.hand_over("nobody", 1, actor=ACTOR) is False


def test_an_unknown_task_expires_as_others_do(ledger):
    parcel = unknown(deadline_at=now(ledger) - 1)
    ledger.take_in([parcel], actor=ACTOR)

    assert ledger.expire_deadlines(10, actor=ACTOR) == 1

    assert ledger.get(parcel.submission.task_id).failure_kind == "expired"
