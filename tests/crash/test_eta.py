"""Waiting costs a row: no message in a broker, no memory in a worker (celery#2481, #6760)."""

from __future__ import annotations

import pytest
import redis

from tests.crash.kit import QUEUE


def held_by_broker(crash, server) -> int:
    """Messages of any kind, delivered or not."""
    url = crash.app.conf.broker_url
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            return client.llen(QUEUE) + client.hlen("unacked")
    counts = server.ctl("list_queues", "-p", url.rpartition("/")[2], "--no-table-headers", "messages")
    return sum(int(line) for line in counts.split())


@pytest.mark.parametrize(("broker", "ledger"), [("redis", "postgresql"), ("rabbitmq", "mariadb")])
def test_a_countdown_holds_nothing_and_survives_the_death_of_everything(
    stage, request, broker: str, ledger: str
) -> None:
    """Worker, broker and its messages, database: all of it is killed between submission and due time."""
    crash = stage(broker, ledger)
    queues = request.getfixturevalue(f"{broker}_server")
    database = request.getfixturevalue({"postgresql": "postgres_server", "mariadb": "mariadb_server"}[ledger])
    worker = crash.worker()
    task = crash.submit("work", 7, countdown=120)
    other = crash.submit("work", 8)  # it comes later and overtakes
    crash.await_state(other.id, "succeeded")
    row = crash.get(task.id)
    assert (row.state, row.wait_kind, crash.row(task.id).publish_count) == ("waiting", "scheduled", 0)
    assert 100e6 < row.wake_at - row.now <= 120e6
    inspect = crash.app.control.inspect(timeout=5, limit=1)
    assert inspect.scheduled() == {"w1@crash": []}
    assert inspect.reserved() == {"w1@crash": []}
    assert held_by_broker(crash, queues) == 0

    worker.kill()
    queues.kill()
    database.kill()
    database.start()
    queues.start()
    if broker == "redis":
        queues.flush()
    assert crash.get(task.id).state == "waiting"
    assert crash.witness.of(task.id) == []

    crash.worker()
    crash.await_state(crash.submit("work", 9).id, "succeeded")
    assert crash.get(task.id).wake_at == row.wake_at, "nothing has moved it"
    crash.sql(f"UPDATE durable_task SET wake_at = wake_at - 120000000 WHERE task_id = '{task.id}'")
    crash.await_state(task.id, "succeeded")
    assert crash.verbs(task.id) == ["submit", "release", "claim", "succeed"]
    assert len(crash.witness.of(task.id)) == 1
    assert crash.ledger.verify() == []


def test_a_task_is_not_released_before_its_time(stage) -> None:
    crash = stage("redis", "sqlite")
    crash.worker()
    task = crash.submit("work", 1, countdown=2)
    crash.await_state(task.id, "succeeded")
    events = {e.verb: e.at for e in crash.ledger.events(crash.get(task.id).id)}
    assert 2_000_000 <= events["release"] - events["submit"] < 60_000_000
