"""Redis keeps no copy of a message that only rings a row; every other it keeps as kombu has it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from kombu import Connection, Consumer, Queue

from celery_durable import DurableTask
from celery_durable.worker.doorbells import Doorbells
from tests.waiting import wait_until
from tests.worker.kit import Gate, on_redis, over, redis_of, working


@pytest.fixture
def reading(broker_url):
    """A consumer of four messages, of which the even ones are doorbells, and what it got."""
    with Connection(broker_url) as connection:
        channel, got = connection.channel(), []
        queue = Queue("celery", channel=channel)
        queue.declare()
        consumer = Consumer(channel, [queue], callbacks=[lambda _, message: got.append(message)], accept=["json"])
        Doorbells.install(
            SimpleNamespace(task_consumer=consumer), lambda message: json.loads(message.body)["n"] % 2 == 0
        )
        consumer.qos(prefetch_count=4)
        producer = connection.Producer(serializer="json")
        for n in range(5):
            producer.publish({"n": n}, routing_key="celery", headers={"mark": n})
        with consumer:
            while len(got) < 4:
                connection.drain_events(timeout=10)
            yield SimpleNamespace(connection=connection, channel=channel, got=got, redis=redis_of(broker_url))


def marks(redis) -> list[int]:
    """Marks of the messages in the queue, the next one to be read first."""
    return [json.loads(m)["headers"]["mark"] for m in reversed(redis.lrange("celery", 0, -1))]


def test_only_what_is_no_doorbell_lies_in_unacked(reading):
    assert sorted(json.loads(m)[0]["headers"]["mark"] for m in reading.redis.hvals("unacked")) == [1, 3]


def test_both_count_towards_the_prefetch_limit(reading):
    assert not reading.channel.qos.can_consume()
    reading.got[0].ack()
    assert reading.channel.qos.can_consume()
    while len(reading.got) < 5:
        reading.connection.drain_events(timeout=10)
    assert not reading.channel.qos.can_consume()


def test_an_acknowledged_one_is_gone_and_a_rejected_one_is_put_back_last(reading):
    by_mark = {m.headers["mark"]: m for m in reading.got}
    by_mark[0].ack()
    by_mark[1].ack()
    for mark in (2, 3):
        by_mark[mark].headers.clear()  # as reading a request does with its mark
        by_mark[mark].reject(requeue=mark == 2)
    assert reading.redis.hlen("unacked") == 0
    assert marks(reading.redis) == [4, 2]


def test_a_channel_that_closes_puts_back_what_is_not_acknowledged(reading):
    reading.got[0].ack()
    for message in reading.got:
        message.headers.clear()
    reading.channel.close()
    assert reading.redis.hlen("unacked") == 0
    assert sorted(marks(reading.redis)) == [1, 2, 3, 4]


def test_a_channel_whose_connection_is_taken_apart_closes_in_peace(reading):
    """Celery closes a broken connection so, and an error that is none of a connection would end the worker."""
    reading.channel.connection.client = None
    reading.channel.close()
    assert reading.redis.hlen("unacked") == 2
    assert marks(reading.redis) == [4]


def test_a_worker_leaves_no_copy_of_what_it_has_reserved(results, broker_url):
    gate, ran = Gate(), []

    @results.task(base=DurableTask)
    def hold(n):
        ran.append(n)
        if n == 0:
            gate.hold()

    first = hold.delay(0)
    with working(results, pool="threads", concurrency=1):
        gate.await_body()
        others = [hold.delay(n) for n in range(1, 4)]
        wait_until(lambda: not on_redis(broker_url), timeout=30)
        assert redis_of(broker_url).hlen("unacked") == 0
        gate.let_go()
        for result in (first, *others):
            assert over(results, result).state == "succeeded"
    assert sorted(ran) == [0, 1, 2, 3]
