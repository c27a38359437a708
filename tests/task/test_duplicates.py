"""One key, one piece of work: what a second submission of it gets."""

from __future__ import annotations

import threading

import pytest
from celery import signals

from celery_durable import DurableTask, KeyConflict, ledger
from tests.waiting import wait_until
from tests.worker.kit import (
    count,
    on_redis,
    reached,
    record,
    redis_of,
    settled,
    verbs,
    working,
)


def test_a_live_key_gives_the_first_ones_result(app, broker_url):
    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id): ...

    first = charge.delay("o-1")

    assert charge.delay("o-1").id == first.id
    assert (count(app), len(on_redis(broker_url))) == (1, 1)


def test_a_conflict_can_be_raised(app, broker_url):
    @app.task(base=DurableTask, name="shop.charge", idempotency_key="{order_id}")
    def charge(order_id): ...

    first = charge.delay("o-1")
    with pytest.raises(KeyConflict, match=f"shop.charge was already .*'o-1'.*queued as task {first.id}") as met:
        charge.apply_async(("o-1",), on_conflict="raise")

    assert (met.value.task_id, met.value.state) == (first.id, "queued")
    assert (count(app), len(on_redis(broker_url))) == (1, 1)


def test_a_collapsed_duplicate_fires_no_sent_signal_and_leaves_no_trail(results):
    @results.task(base=DurableTask, name="shop.charge", idempotency_key="{order_id}")
    def charge(order_id): ...

    @results.task(base=DurableTask, bind=True, name="shop.parent")
    def parent(self):
        charge.delay("o-1")
        charge.delay("o-1")
        return [c.id for c in self.request.children]

    told = []
    signals.after_task_publish.connect(lambda sender, **_: told.append(sender), weak=False, dispatch_uid="told")
    try:
        with working(results):
            children = parent.delay().get(timeout=30)
    finally:
        signals.after_task_publish.disconnect(dispatch_uid="told")

    assert children == [record(results, "shop.charge/o-1").task_id]
    assert told == ["shop.parent", "shop.charge"]


def test_many_at_once_are_one(app, broker_url):
    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id): ...

    charge.delay("warm up")
    start, ids = threading.Barrier(8), []

    def submit():
        start.wait(30)
        ids.append(charge.delay("o-1").id)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert (len(ids), len(set(ids))) == (8, 1)
    assert (count(app), len(on_redis(broker_url))) == (2, 2)


def test_a_done_key_gives_the_first_result(results):
    ran = []

    @results.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id):
        ran.append(order_id)
        return f"token-{order_id}"

    with working(results):
        first = charge.delay("o-1")
        assert first.get(timeout=30) == "token-o-1"
        again = charge.delay("o-1")
        assert (again.id, again.get(timeout=30)) == (first.id, "token-o-1")

    assert ran == ["o-1"]


def test_a_done_key_gives_the_first_result_when_the_backend_forgot_it(results, broker_url):
    ran = []

    @results.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id):
        ran.append(order_id)
        return {"token": order_id}

    with working(results):
        charge.delay("o-1").get(timeout=30)
        settled(results, "o-1")
    redis_of(broker_url).flushdb()

    assert charge.delay("o-1").get(timeout=30) == {"token": "o-1"}
    assert (ran, on_redis(broker_url)) == (["o-1"], [])


@pytest.mark.parametrize("how", ["dead", "cancelled"])
def test_a_key_whose_work_failed_is_submitted_again(results, how):
    seen = []

    @results.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id, cents):
        seen.append(cents)
        if cents < 0:
            raise ValueError("negative")
        return cents

    if how == "cancelled":
        first = charge.delay("o-1", -1)
        ledger(results).cancel("o-1", "a typing error")
    with working(results):
        if how == "dead":
            first = charge.delay("o-1", -1)
        assert settled(results, "o-1").state == how
        again = charge.delay("o-1", 5)
        assert reached(results, first, "succeeded").claims == len(seen)
        # The stock backend still holds the first outcome until the second one is stored.
        wait_until(lambda: again.state == "SUCCESS", timeout=30)

    assert (again.id, again.result, seen[-1]) == (first.id, 5, 5)
    assert "replay" in verbs(results, first)
    assert count(results) == 1


def test_a_dead_key_is_submitted_again_with_on_conflict_raise(app):
    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id): ...

    first = charge.delay("o-1")
    ledger(app).cancel("o-1", "not wanted")

    assert charge.apply_async(("o-1",), on_conflict="raise").id == first.id
    assert record(app, first).state == "queued"


def test_a_dead_key_is_submitted_again_with_a_countdown(app, broker_url):
    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id): ...

    first = charge.delay("o-1")
    ledger(app).cancel("o-1", "not wanted")
    redis_of(broker_url).flushdb()

    charge.apply_async(("o-1",), countdown=600)

    assert record(app, first).as_json()["wait"]["kind"] == "scheduled"
    assert on_redis(broker_url) == []
