"""When a message is acknowledged: a recorded one as soon as the pool has it, any other once it is settled."""

from __future__ import annotations

import pytest

from celery_durable import DurableTask
from tests.waiting import wait_until
from tests.worker.kit import Gate, on_redis, over, record, redis_of, settled, verbs, working


@pytest.fixture
def held(results):
    gate = Gate()
    gate.ran = []

    @results.task(base=DurableTask, name="shop.hold")
    def hold():
        gate.ran.append(1)
        gate.hold()
        return "done"

    gate.task = hold
    return gate


def unacked(url: str) -> int:
    return redis_of(url).hlen("unacked")


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_recorded_message_is_acknowledged_while_the_body_runs(results, broker_url, held, pool):
    with working(results, pool=pool, concurrency=1):
        result = held.task.delay()
        held.await_body()
        wait_until(lambda: unacked(broker_url) == 0, timeout=30)
        assert record(results, result).state == "running"
        held.let_go()
        assert over(results, result).state == "succeeded"


def test_an_unrecorded_message_is_acknowledged_only_when_it_is_settled(results, broker_url, held):
    with working(results):
        result = results.send_task("shop.hold")
        held.await_body()
        assert unacked(broker_url) == 1
        assert record(results, result).state == "running"
        held.let_go()
        settled(results, result)
        wait_until(lambda: unacked(broker_url) == 0, timeout=30)


def test_on_rabbitmq_too(make, rabbitmq_server):
    url = rabbitmq_server.vhost()
    app, gate = make(broker=url), Gate()

    @app.task(base=DurableTask)
    def hold():
        gate.hold()

    def unacknowledged() -> str:
        vhost = url.rpartition("/")[2]
        listed = rabbitmq_server.ctl("list_queues", "-p", vhost, "name", "messages_unacknowledged", "messages_ready")
        return next(line for line in listed.splitlines() if line.startswith("celery\t"))

    with working(app):
        result = hold.delay()
        gate.await_body()
        wait_until(lambda: unacknowledged() == "celery\t0\t0", timeout=30)
        gate.let_go()
        assert over(app, result).state == "succeeded"


def test_a_visibility_timeout_shorter_than_the_task_does_not_run_it_twice(make, broker_url):
    app, gate, ran = (
        make(broker_transport_options={"visibility_timeout": 1, "unacked_restore_limit": 1}),
        Gate(),
        [],
    )

    @app.task(base=DurableTask, name="shop.hold")
    def hold():
        ran.append(1)
        gate.hold()

    @app.task(base=DurableTask, name="shop.tick")
    def tick(): ...

    with working(app):
        result = hold.delay()
        gate.await_body()
        begun = record(app, result).now
        # Other work goes by while the timeout passes several times over.
        wait_until(lambda: over(app, tick.delay()) and record(app, result).now - begun > 4_000_000, timeout=30)
        gate.let_go()
        settled(app, result)

    assert ran == [1]
    assert verbs(app, result) == ["submit", "claim", "succeed"]
    assert (on_redis(broker_url), unacked(broker_url)) == ([], 0)
