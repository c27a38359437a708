"""A broker that forgets, is away, or delivers ten times: the row, not the message, is the work."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import redis

from tests.crash.kit import QUEUE
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.services import RabbitMQ, Redis


def test_flushall_while_200_tasks_are_queued_and_no_worker_is_up(stage, redis_server: Redis) -> None:
    """Celery#4354: whatever Redis forgets is rung again."""
    crash = stage("redis", "sqlite")
    crash.submit_many(200)
    assert crash.depth() == 200
    redis_server.flush()
    assert crash.depth() == 0
    crash.worker()
    crash.await_all(200)
    assert crash.witness.count() == 200, "each body ran once"
    assert crash.ledger.verify() == []


def test_flushall_while_workers_are_busy_with_200_tasks(stage, redis_server: Redis) -> None:
    crash = stage("redis", "postgresql")
    worker = crash.worker()
    worker.freeze()
    crash.submit_many(200, seconds=0.03)
    worker.thaw()
    crash.await_(lambda: crash.witness.count() > 10, "work did not begin")
    redis_server.flush()
    assert crash.states()["queued"] > 50, "the flush came too late to matter"
    crash.await_all(200)
    assert crash.ledger.verify() == []


def test_protocol_8_lost_rows_run_although_other_traffic_keeps_the_queue_filled(stage, redis_server: Redis) -> None:
    """Queue depth defers a ring three times at most: FULL queues must not starve what was lost."""
    crash = stage("redis", "sqlite", durable_republish_after=0.4)
    lost = crash.submit_many(5)
    redis_server.flush()
    filler = crash.submit_many(30, seconds=0.05)
    crash.worker(concurrency=1)
    depths = []

    def all_run() -> bool:
        depths.append(crash.depth())
        if depths[-1] < 20:
            filler.extend(crash.submit_many(20, seconds=0.05))
        return set(lost) <= crash.witness.finished()

    crash.await_(all_run, "the lost rows starve")
    assert min(depths) > 0, "the queue ran empty: nothing was shown"
    assert all(crash.row(i).publish_count > 1 for i in lost), "they were rung again"


def _client(crash) -> redis.Redis:
    return redis.Redis.from_url(crash.app.conf.broker_url)


def test_ten_deliveries_of_one_redis_message_run_the_body_once(stage) -> None:
    crash = stage("redis", "postgresql")
    task = crash.submit("work", 1, 0.5)
    client = _client(crash)
    message = client.lindex(QUEUE, 0)
    client.rpush(QUEUE, *[message] * 9)
    assert crash.depth() == 10
    worker = crash.worker(concurrency=4)
    crash.await_state(task.id, "succeeded")
    crash.await_(lambda: worker.output.count("was not run") == 9, "nine deliveries were not dropped")
    assert (crash.witness.count(), crash.row(task.id).claims) == (1, 1)
    assert client.hlen("unacked") == 0
    client.close()


def test_ten_deliveries_by_rabbitmq_run_the_body_once(stage) -> None:
    """Five while it is queued, five after it is done."""
    crash = stage("rabbitmq", "mariadb")
    task = crash.submit("work", 1, 0.5)
    crash.copies(task.id, 4)
    crash.await_(lambda: crash.depth() == 5, "the copies are not there")
    worker = crash.worker(concurrency=4)
    crash.await_state(task.id, "succeeded")
    crash.copies(task.id, 5)
    crash.await_(lambda: worker.output.count("was not run") == 9, "nine deliveries were not dropped")
    assert (crash.witness.count(), crash.row(task.id).claims) == (1, 1)
    assert crash.verbs(task.id) == ["submit", "claim", "succeed"]


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
@pytest.mark.parametrize("warm", [True, False], ids=["used before", "never used"])
def test_the_broker_is_stopped_and_comes_back(stage, request, kind: str, warm: bool) -> None:
    """`.delay()` costs two seconds at most, the row is queued; once the broker is back it runs by itself."""
    crash = stage(kind, "sqlite")
    server: Redis | RabbitMQ = request.getfixturevalue(f"{kind}_server")
    crash.worker()
    if warm:
        crash.await_state(crash.submit("work", 0).id, "succeeded")
    _ = crash.side.settings, crash.side.broker  # configuration is not what is timed
    server.stop()
    began = time.monotonic()
    tasks = [crash.submit("work", n) for n in range(1, 4)]
    took = time.monotonic() - began
    assert took < 2, f"three submissions took {took:.2f} s"
    crash.outlast(2)  # sweeps meet the broker that is down
    assert [crash.get(t.id).state for t in tasks] == ["queued"] * 3
    # A sweep that is just trying has counted its message already (PROTOCOL 7).
    crash.await_(lambda: all(crash.row(t.id).publish_count == 0 for t in tasks), "what was not sent counts")
    server.start()
    for task in tasks:
        crash.await_state(task.id, "succeeded")
    assert all(len(crash.witness.of(t.id)) == 1 for t in tasks)
    assert crash.ledger.verify() == []


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_a_broker_that_accepts_and_stays_silent_does_not_hang_a_submission(stage, request, kind: str) -> None:
    crash = stage(kind, "sqlite")
    server = request.getfixturevalue(f"{kind}_server")
    crash.submit("work", 0)
    server.pause()
    began = time.monotonic()
    task = crash.submit("work", 1)
    took = time.monotonic() - began
    server.resume()
    assert took < 8, f"a submission took {took:.2f} s"
    assert crash.get(task.id).state == "queued"
    crash.worker()
    wait_until(lambda: crash.get(task.id).state == "succeeded", 120)
