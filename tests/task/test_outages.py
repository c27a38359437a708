"""Submitting while something is away: the broker, the ledger, the result store."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest

from celery_durable import DurableTask, LedgerSchemaError, LedgerUnavailable
from tests.worker.kit import closed_port, count, migrated, on_redis, over, record, rows, silent_listener, sweep, working

QUICK = 4.0  # seconds; the promise is 2, this machine may be busy


@contextmanager
def quickly(limit: float = QUICK):
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < limit


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_refuses_costs_nothing_but_a_later_ring(make, scheme):
    with closed_port() as port:
        app = make(broker=f"{scheme}://127.0.0.1:{port}/")

        @app.task(base=DurableTask)
        def charge(order_id): ...

        with quickly():
            result = charge.delay("o-1")

        row = record(app, result)
    assert (row.state, row.publish_count) == ("queued", 0)
    assert row.publish_at <= row.now, "due for the next sweep"


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_accepts_and_stays_silent_is_given_up(make, scheme):
    with silent_listener() as port:
        app = make(broker=f"{scheme}://127.0.0.1:{port}/")

        @app.task(base=DurableTask)
        def charge(order_id): ...

        with quickly():
            result = charge.delay("o-1")
        with quickly(1.0):
            charge.delay("o-2")  # for a moment nobody asks again

        assert [r.state for r in rows(app)] == ["queued", "queued"]
        assert record(app, result).publish_count == 0


def test_a_paused_broker_is_given_up_and_rung_when_it_is_back(make, redis_server):
    app = make(broker=redis_server.db())

    @app.task(base=DurableTask)
    def charge(order_id): ...

    charge.delay("warm up")
    redis_server.pause()
    with quickly():
        result = charge.delay("o-1")
    redis_server.resume()
    sweep(app)

    assert {m["headers"]["id"] for m in on_redis(app.conf.broker_url)} >= {result.id}


def test_a_broker_that_was_restarted_is_used_at_once(make, redis_server):
    app = make(broker=redis_server.db())

    @app.task(base=DurableTask)
    def charge(order_id): ...

    charge.delay("warm up")
    redis_server.kill()
    redis_server.start()
    result = charge.delay("o-1")

    assert record(app, result).publish_count == 1
    assert len(on_redis(app.conf.broker_url)) == 2


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "silent"])
def test_a_result_store_that_is_away_does_not_hold_up_a_submission(make, silent):
    with (silent_listener if silent else closed_port)() as port:
        app = make(result_backend=f"redis://127.0.0.1:{port}/0")

        @app.task(base=DurableTask)
        def charge(order_id): ...

        with quickly():
            result = charge.delay("o-1")

        assert record(app, result).state == "queued"
        assert record(app, result).publish_count == 1
        assert len(on_redis(app.conf.broker_url)) == 1


def test_results_by_rpc_arrive(make, rabbitmq_server):
    app = make(broker=rabbitmq_server.vhost(), result_backend="rpc://")

    @app.task(base=DurableTask)
    def add(x, y):
        return x + y

    with working(app):
        assert add.delay(1, 2).get(timeout=30) == 3


def test_a_ledger_that_is_away_fails_the_call_and_nothing_is_published(make, broker_url):
    with closed_port() as port:
        app = make(ledger_url=f"postgresql://nobody@127.0.0.1:{port}/none")

        @app.task(base=DurableTask)
        def charge(order_id): ...

        with quickly(10), pytest.raises(LedgerUnavailable, match="did not answer"):
            charge.delay("o-1")

    assert on_redis(broker_url) == []


def test_a_ledger_that_goes_away_fails_the_call_and_nothing_is_published(make, broker_url, postgres_server):
    app = make(ledger_url=postgres_server.database())
    migrated(app)

    @app.task(base=DurableTask)
    def charge(order_id): ...

    charge.delay("warm up")
    postgres_server.kill()
    with pytest.raises(LedgerUnavailable) as caught:
        charge.apply_async(("o-1",), task_id="mine")
    postgres_server.start()

    assert caught.value.task_id == "mine"
    assert caught.value.outcome in {"not recorded", "unknown"}
    assert len(on_redis(broker_url)) == 1
    # Trying again with the same id is safe, whatever became of the first.
    assert charge.apply_async(("o-1",), task_id="mine").id == "mine"
    assert count(app) == 2


def test_a_ledger_without_tables_says_what_to_do(make, broker_url, postgres_server):
    app = make(ledger_url=postgres_server.database())

    @app.task(base=DurableTask)
    def charge(order_id): ...

    with pytest.raises(LedgerSchemaError, match="durable migrate"):
        charge.delay("o-1")

    assert on_redis(broker_url) == []


def test_what_was_submitted_while_the_broker_was_down_runs_when_it_is_back(make, redis_server):
    app = make(broker=redis_server.db())

    @app.task(base=DurableTask)
    def charge(order_id):
        return order_id

    redis_server.kill()
    with quickly():
        result = charge.delay("o-1")
    redis_server.start()
    with working(app):
        assert over(app, result).decoded_result() == "o-1"
