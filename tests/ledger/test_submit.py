"""submit, adopt and park: a row before a broker or worker sees anything."""

from __future__ import annotations

import pytest

from celery_durable import states
from celery_durable.errors import KeyConflict, TaskIdConflict
from celery_durable.records import Envelope
from tests.ledger.kit import (
    REPUBLISH,
    SECOND,
    boom,
    cancelled,
    dead,
    history,
    now,
    queued,
    race,
    row_of,
    rows,
    running,
    seconds_ahead,
    submission,
    succeeded,
    waiting,
)


def test_a_new_submission_is_queued_and_to_be_published_by_the_submitter(ledger):
    sub = submission("order-1", priority=3, root_id="root", parent_id="parent", owes=True, deadline_at=2**52)

    done = ledger.submit(sub, actor="shop@host")

    row = row_of(ledger, sub.task_id)
    assert (done.outcome, done.state, done.envelope_no, done.publish) == ("new", "queued", 1, True)
    assert done.row_id == row.id
    assert (row.state, row.task, row.idempotency_key, row.queue, row.broker) == (
        "queued", "shop.charge", "order-1", "celery", "broker-a",
    )  # fmt: skip
    assert (row.priority, row.root_id, row.parent_id, row.owes, row.deadline_at) == (3, "root", "parent", 1, 2**52)
    assert (row.claims, row.losses, row.retries, row.rings, row.publish_count) == (0, 0, 0, 1, 1)
    assert row.submitted_by == "shop"
    assert history(ledger, row.id) == [("submit", None, "queued", "shop@host")]


def test_the_sweep_sees_a_new_row_only_when_the_submitter_may_have_failed(ledger):
    row = row_of(ledger, queued(ledger).row_id)

    assert REPUBLISH - 10 < seconds_ahead(ledger, row.publish_at) <= REPUBLISH
    assert abs(row.submitted_at - now(ledger)) < 10 * SECOND


def test_the_envelope_comes_back_as_it_was_given(ledger):
    sub = submission(body=b"\x00\xff" + "ä🎉".encode() * 50_000)

    ledger.submit(sub)

    row = row_of(ledger, sub.task_id)
    assert Envelope.load(row.envelope, row.body) == sub.envelope


@pytest.mark.parametrize("wake", [states.After(120), states.At(2**52)])
def test_an_eta_makes_a_scheduled_wait_that_nobody_publishes(ledger, wake):
    done = ledger.submit(submission(wake=wake))

    row = row_of(ledger, done.row_id)
    assert (done.state, done.publish) == ("waiting", False)
    assert (row.wait_kind, row.publish_at, row.publish_count) == ("scheduled", None, 0)
    assert row.wake_at == 2**52 if isinstance(wake, states.At) else 110 < seconds_ahead(ledger, row.wake_at) <= 120
    assert history(ledger, row.id) == [("submit", None, "waiting", "shop")]


def test_the_same_submission_again_finds_its_own_row(ledger):
    sub = submission("order-1")
    first = ledger.submit(sub)

    again = ledger.submit(sub, on_conflict="raise")

    assert (again.outcome, again.row_id, again.task_id) == ("own", first.row_id, sub.task_id)
    assert len(rows(ledger)) == 1
    assert len(ledger.events(first.row_id)) == 1


def test_ones_own_submission_that_has_succeeded_brings_its_result(ledger):
    sub = submission()
    ledger.submit(sub)
    claim = ledger.claim(sub.task_id, "t", owner="w", pid=1, lease=30).claim
    ledger.succeed(claim, b"42", "application/json", owes=False, actor="w", continuation_grace=30)

    again = ledger.submit(sub)

    assert (again.outcome, again.state, again.result, again.result_type) == (
        "own", "succeeded", b"42", "application/json",
    )  # fmt: skip


@pytest.mark.parametrize("make", [queued, running, waiting, succeeded])
def test_a_taken_key_returns_its_holder(ledger, make):
    holder = make(ledger, "order-1")
    before = rows(ledger)

    done = queued(ledger, "order-1")

    assert (done.outcome, done.task_id, done.publish) == ("existing", holder.task_id, False)
    assert done.result == (b"42" if make is succeeded else None)
    assert rows(ledger) == before


@pytest.mark.parametrize("make", [queued, running, waiting, succeeded])
def test_a_taken_key_raises_when_asked_to(ledger, make):
    holder = make(ledger, "order-1")

    with pytest.raises(KeyConflict, match="order-1") as caught:
        ledger.submit(submission("order-1"), on_conflict="raise")

    assert caught.value.task_id == holder.task_id
    assert caught.value.state == row_of(ledger, holder.row_id).state
    assert len(rows(ledger)) == 1


def test_one_key_serves_two_tasks(ledger):
    queued(ledger, "order-1", task="shop.charge")

    assert queued(ledger, "order-1", task="shop.ship").outcome == "new"


@pytest.mark.parametrize("on_conflict", ["return", "raise"])
@pytest.mark.parametrize("make", [dead, cancelled])
def test_the_key_of_a_failed_row_replays_it_under_its_id_with_the_new_message(ledger, make, on_conflict):
    holder = make(ledger, "order-1")
    sub = submission("order-1", body=b"[[2],{},{}]", queue="priority", owes=True, max_losses=7, on_loss="dead")

    done = ledger.submit(sub, on_conflict=on_conflict, actor="shop@two")

    row = row_of(ledger, holder.row_id)
    sent = Envelope.load(row.envelope, row.body)
    assert (done.outcome, done.task_id, done.state, done.publish) == ("replayed", holder.task_id, "queued", True)
    assert (row.state, row.envelope_no, row.queue) == ("queued", 2, "priority")
    assert done.envelope_no == 2
    assert (row.owes, row.max_losses, row.on_loss, row.failure_kind) == (1, 7, "dead", None)
    assert sent.body == b"[[2],{},{}]"
    assert sent.headers["id"] == sent.headers["root_id"] == sent.properties["correlation_id"] == holder.task_id
    assert history(ledger, row.id)[-1] == ("replay", make.__name__, "queued", "shop@two")
    assert len(rows(ledger)) == 1


def test_a_replayed_key_with_an_eta_waits_for_it(ledger):
    holder = dead(ledger, "order-1")

    done = queued(ledger, "order-1", wake=states.After(60))

    assert (done.outcome, done.state, done.publish) == ("replayed", "waiting", False)
    assert history(ledger, holder.row_id)[-1] == ("replay", "dead", "waiting", "shop")


@pytest.mark.parametrize("other", [{"task": "shop.ship"}, {"key": "order-2"}])
def test_a_task_id_of_another_task_or_key_is_an_error_of_its_own(ledger, other):
    first = submission("order-1")
    ledger.submit(first)

    with pytest.raises(TaskIdConflict, match=first.task_id):
        ledger.submit(submission(**({"key": "order-1"} | other), task_id=first.task_id))

    assert len(rows(ledger)) == 1


def test_eight_submitters_of_one_key_make_one_row(ledger):
    done = race(8, lambda _: queued(ledger, "order-1"))

    assert sorted(d.outcome for d in done) == ["existing"] * 7 + ["new"]
    assert len({d.task_id for d in done}) == 1
    assert len(rows(ledger)) == 1


def test_eight_replies_lost_at_once_make_one_row(ledger):
    sub = submission("order-1")

    done = race(8, lambda _: ledger.submit(sub))

    assert sorted(d.outcome for d in done) == ["new"] + ["own"] * 7
    assert len(ledger.events(done[0].row_id)) == 1


def test_eight_submitters_replay_a_dead_key_once(ledger):
    holder = dead(ledger, "order-1")

    done = race(8, lambda _: queued(ledger, "order-1"))

    assert sorted(d.outcome for d in done) == ["existing"] * 7 + ["replayed"]
    assert row_of(ledger, holder.row_id).envelope_no == 2


def test_an_adopted_message_is_a_row_like_any_other(ledger):
    done = ledger.submit(submission(), verb="adopt", actor="worker-1")

    assert history(ledger, done.row_id) == [("adopt", None, "queued", "worker-1")]


def test_a_parked_message_is_dead_with_its_failure(ledger):
    sub = submission()

    row_id = ledger.park(sub, boom("no such row", "rejected"), actor="worker-1")

    row = row_of(ledger, sub.task_id)
    assert (row.id, row.state, row.failure_kind, row.publish_at) == (row_id, "dead", "rejected", None)
    assert [f.message for f in ledger.failures(row_id)] == ["no such row"]
    assert history(ledger, row_id) == [("park", None, "dead", "worker-1")]


def test_parking_what_is_known_changes_nothing(ledger):
    first = submission("order-1")
    known = ledger.submit(first)

    assert ledger.park(first, boom(), actor="w") is None
    assert ledger.park(submission("order-1"), boom(), actor="w") is None
    assert row_of(ledger, known.row_id).state == "queued"
    assert ledger.failures(known.row_id) == []


def test_a_message_that_the_broker_did_not_take_is_due_at_once(ledger):
    row = queued(ledger)

    ledger.unpublished(row.row_id, row.envelope_no)

    stored = row_of(ledger, row.row_id)
    assert stored.publish_at <= now(ledger)
    assert (stored.rings, stored.publish_count) == (0, 0)


@pytest.mark.parametrize("envelope_no", [1, 2])
def test_unpublished_leaves_a_row_alone_that_has_moved_on(ledger, envelope_no):
    claim = running(ledger)
    if envelope_no == 2:
        ledger.cancel_row(claim.row_id, "", actor="ann")
    before = row_of(ledger, claim.row_id)

    ledger.unpublished(claim.row_id, envelope_no)

    assert row_of(ledger, claim.row_id) == before
