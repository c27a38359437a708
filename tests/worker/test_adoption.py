"""Messages that were not submitted here: adopted, parked or followed, never run unrecorded."""

from __future__ import annotations

import json

import pytest
from celery import Celery
from kombu import Connection

from celery_durable import DurableTask
from celery_durable.outbox import HEADER
from tests.waiting import wait_until
from tests.worker.kit import (
    alter,
    count,
    events,
    forget,
    on_redis,
    over,
    record,
    redis_of,
    rows,
    settled,
    sweep,
    verbs,
    working,
)


@pytest.fixture
def shop(results):
    ran = []

    @results.task(base=DurableTask, name="shop.charge", bind=True, idempotency_key="{order_id}")
    def charge(self, order_id, cents=100):
        ran.append((order_id, cents))
        if cents == 13 and self.request.retries == 0:
            raise self.retry(countdown=0.01)
        return f"token-{order_id}"

    charge.ran = ran
    return charge


@pytest.fixture
def stranger(broker_url):
    """An app without the plugin that knows the broker and the name."""
    app = Celery("stranger", broker=broker_url, backend=broker_url, set_as_current=False)
    yield app
    app.close()


def test_a_message_by_name_is_adopted(shop, results, stranger):
    with working(results):
        result = stranger.send_task("shop.charge", ["o-1"], {"cents": 5})
        assert result.get(timeout=30) == "token-o-1"
        row = settled(results, result)

    assert (row.key, row.state, row.claims, row.queue) == ("o-1", "succeeded", 1, "celery")
    assert verbs(results, result) == ["adopt", "claim", "succeed"]
    assert events(results, result)[0].actor.startswith("w")
    assert shop.ran == [("o-1", 5)]


def test_send_task_of_the_app_itself_is_adopted(shop, results):
    with working(results):
        result = results.send_task("shop.charge", ["o-1"])
        assert result.get(timeout=30) == "token-o-1"

    assert verbs(results, result) == ["adopt", "claim", "succeed"]


def test_an_adopted_task_retries_like_any_other(shop, results, stranger):
    with working(results):
        result = stranger.send_task("shop.charge", ["o-1", 13], headers={"tenant": "acme"})
        assert result.get(timeout=30) == "token-o-1"

    assert verbs(results, result) == ["adopt", "claim", "fail", "release", "claim", "succeed"]


def test_an_adopted_retry_keeps_its_count(results, stranger):
    seen = []

    @results.task(base=DurableTask, name="shop.count", bind=True)
    def count_retries(self):
        seen.append(self.request.retries)

    with working(results):
        result = stranger.send_task("shop.count", retries=4)
        row = settled(results, wait_for(results, result.id))

    assert (seen, row.retries) == ([4], 4)


def test_an_adopted_duplicate_follows_the_first(shop, results, stranger):
    with working(results):
        first = shop.delay("o-1")
        assert first.get(timeout=30) == "token-o-1"
        second = stranger.send_task("shop.charge", ["o-1"])
        assert second.get(timeout=30) == "token-o-1"
        assert settled(results, second).state == "succeeded"

    assert (len(shop.ran), count(results)) == (1, 2)
    assert verbs(results, second) == ["adopt", "follow"]


def test_a_message_that_comes_many_times_runs_once(shop, results, stranger, broker_url):
    stranger.send_task("shop.charge", ["o-1"])
    raw = redis_of(broker_url).lrange("celery", 0, -1)[0]
    for number in range(9):
        message = json.loads(raw)
        message["properties"]["delivery_tag"] = f"copy-{number}"
        redis_of(broker_url).lpush("celery", json.dumps(message))
    with working(results, concurrency=4):
        wait_until(lambda: not on_redis(broker_url), timeout=30)
        [row] = wait_until(lambda: rows(results), timeout=30)
        settled(results, row.task_id)
        shop.delay("the last").get(timeout=30)

    assert sorted(shop.ran) == [("o-1", 100), ("the last", 100)]


def test_a_message_of_another_ledger_is_adopted(shop, results, make, tmp_path, broker_url):
    other = make(ledger_url=tmp_path / "other.db", result_backend=broker_url)

    @other.task(base=DurableTask, name="shop.charge", shared=False)
    def charge(order_id): ...

    result = charge.delay("o-1")
    with working(results):
        assert result.get(timeout=30) == "token-o-1"

    assert verbs(results, result) == ["adopt", "claim", "succeed"]
    assert record(other, result).state == "queued"


def test_a_mark_that_does_not_fit_its_message_counts_for_nothing(shop, results, broker_url):
    first = shop.delay("o-1")
    message = json.loads(redis_of(broker_url).lpop("celery"))
    assert message["headers"][HEADER]["id"] == first.id
    message["headers"]["id"] = message["properties"]["correlation_id"] = "forged"
    redis_of(broker_url).lpush("celery", json.dumps(message))
    with working(results):
        wait_for(results, "forged")

    assert events(results, "forged")[0].verb == "adopt"


def test_a_marked_message_without_a_row_is_parked(shop, results, broker_url):
    result = shop.delay("o-1")
    forget(results, result)
    with working(results):
        row = wait_until(lambda: rows(results), timeout=30)[0]

    assert (row.task_id, row.state, row.failure_kind, row.claims) == (result.id, "dead", "rejected", 0)
    assert "no such row" in row.failure.message
    assert shop.ran == []


def test_a_parked_message_can_be_replayed(shop, results):
    from celery_durable import ledger

    result = shop.delay("o-1")
    forget(results, result)
    with working(results):
        wait_until(lambda: rows(results), timeout=30)
        assert ledger(results).replay(result.id, "it is wanted")
        assert over(results, result).decoded_result() == "token-o-1"


def test_an_adopted_message_survives_the_loss_of_the_broker(shop, results, stranger, broker_url):
    """Once it has a row it is as safe as any other."""
    with working(results):
        result = stranger.send_task("shop.charge", ["o-1"])
        settled(results, wait_for(results, result.id))
    redis_of(broker_url).flushdb()
    alter(results, result, state="queued", finished_at=None, publish_at=1)
    sweep(results)

    [message] = on_redis(broker_url)
    assert (message["headers"]["id"], message["headers"]["task"]) == (result.id, "shop.charge")
    assert message["headers"][HEADER]["id"] == result.id


def test_an_adopted_chain_goes_on(shop, results, stranger):
    @results.task(base=DurableTask, name="shop.note")
    def note(token):
        return f"noted {token}"

    with working(results):
        stranger.send_task("shop.charge", ["o-1"], chain=[stranger.signature("shop.note").set(task_id="next")])
        assert results.AsyncResult("next").get(timeout=30) == "noted token-o-1"


def test_a_message_of_protocol_1_is_adopted(shop, results, broker_url):
    with Connection(broker_url) as connection:
        producer = connection.Producer(serializer="json")
        body = {"task": "shop.charge", "id": "old", "args": ["o-1"], "kwargs": {}, "retries": 0, "eta": None}
        producer.publish(body, routing_key="celery", exchange="", declare=[results.amqp.queues["celery"]])
    with working(results):
        assert over(results, wait_for(results, "old")).decoded_result() == "token-o-1"


def wait_for(app, task_id):
    wait_until(lambda: [r for r in rows(app) if r.task_id == task_id], timeout=30)
    return task_id
