"""Calls inside a transaction of the caller's: ids at once, messages after its COMMIT, nothing after its ROLLBACK."""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import suppress

import pytest
import sqlalchemy as sa
from celery import chain, chord, group
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from celery_durable import BadRequest, DurableTask, KeyConflict, SubmitError, ledger
from tests.ledger.kit import Background
from tests.worker.kit import (
    closed_port,
    count,
    migrated,
    on_redis,
    over,
    record,
    rows,
    sweep,
    the_ledger,
    working,
)


class RollBack(Exception):
    """Ends a transaction."""


@pytest.fixture
def shop(make, ledger_url):
    """An app, and a user's session on its ledger's database, on every dialect."""
    app = migrated(make(ledger_url=ledger_url))
    yield from with_session(app)


@pytest.fixture
def small(results):
    """The same on SQLite, with a result backend."""
    the_ledger(results).migrate()
    yield from with_session(results)


def with_session(app):
    engine = sa.create_engine(the_ledger(app).db.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id VARCHAR(20) PRIMARY KEY)")
    yield app, orm.Session(engine)
    engine.dispose()


def order(session, order_id):
    session.execute(sa.text("INSERT INTO orders VALUES (:id)"), {"id": order_id})


def orders(session):
    with session:
        return set(session.execute(sa.text("SELECT id FROM orders")).scalars())


def test_a_call_is_part_of_the_transaction_from_its_begin_to_its_end(shop, broker_url):
    app, session = shop

    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id):
        return f"charged {order_id}"

    with session.begin(), ledger(app).transaction(session):
        order(session, "o-1")
        first = charge.delay("o-1")
        again = charge.delay("o-1")
        assert first.id == again.id
        with pytest.raises(KeyConflict):
            charge.apply_async(("o-1",), on_conflict="raise")
        with suppress(RollBack), session.begin_nested():
            order(session, "o-2")
            charge.delay("o-2")
            raise RollBack
        charge.apply_async(("o-3",), countdown=3600)
        assert on_redis(broker_url) == []
    with suppress(RollBack), session.begin(), ledger(app).transaction(session):
        order(session, "o-4")
        charge.delay("o-4")
        raise RollBack
    charge.delay("o-5")

    assert orders(session) == {"o-1"}
    assert [(r.key, r.state, r.publish_count) for r in rows(app)] == [
        ("o-1", "queued", 1), ("o-3", "waiting", 0), ("o-5", "queued", 1),
    ]  # fmt: skip
    assert [m["headers"]["id"] for m in on_redis(broker_url)] == [first.id, rows(app)[2].task_id]
    assert on_redis(broker_url)[0]["headers"]["durable"]["envelope"] == 1
    with working(app):
        assert over(app, first).state == "succeeded"


def test_a_connections_commit_is_followed_by_a_sweep(small, broker_url):
    app, session = small

    @app.task(base=DurableTask)
    def charge(order_id): ...

    with session.get_bind().connect() as connection, ledger(app).transaction(connection):
        result = charge.delay("o-1")
        connection.commit()
        assert on_redis(broker_url) == []
    sweep(app)

    assert [m["headers"]["id"] for m in on_redis(broker_url)] == [result.id]


def test_one_session_commits_time_and_again(small, broker_url):
    app, session = small

    @app.task(base=DurableTask)
    def charge(order_id): ...

    with session, ledger(app).transaction(session):
        for n in range(3):
            order(session, f"o-{n}")
            charge.delay(f"o-{n}")
            session.commit()
            assert len(on_redis(broker_url)) == n + 1
        with pytest.raises(SubmitError, match="transaction of this block is over"):
            charge.delay("o-4")

    assert count(app) == 3


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_away_fails_no_commit(make, scheme):
    with closed_port() as port:
        app = make(broker=f"{scheme}://127.0.0.1:{port}/")

        @app.task(base=DurableTask)
        def charge(order_id): ...

        with orm.Session(the_ledger(app).db.engine) as session, session.begin(), ledger(app).transaction(session):
            result = charge.delay("o-1")

        row = record(app, result)
    assert (row.state, row.publish_count) == ("queued", 0)
    assert row.publish_at <= row.now, "due for the next sweep"


def test_a_ledger_that_goes_away_after_the_commit_fails_nothing(small, monkeypatch, broker_url):
    app, session = small

    @app.task(base=DurableTask)
    def charge(order_id): ...

    def away(*_, **__):
        raise ConnectionError

    with session.begin(), ledger(app).transaction(session):
        charge.delay("o-1")
        monkeypatch.setattr(the_ledger(app), "take_rings", away)

    assert (count(app), on_redis(broker_url)) == (1, [])


def test_canvas_goes_with_the_transaction(small, broker_url):
    app, session = small

    @app.task(base=DurableTask)
    def add(x, y):
        return x + y

    @app.task(base=DurableTask)
    def total(numbers):
        return sum(numbers)

    def send():
        yield chain(add.s(1, 2), add.s(3)).apply_async()
        yield group(add.s(1, 1), add.s(2, 2)).apply_async()
        yield chord([add.s(3, 3), add.s(4, 4)], total.s()).apply_async()

    with suppress(RollBack), session.begin(), ledger(app).transaction(session):
        list(send())
        raise RollBack
    assert (count(app), on_redis(broker_url)) == (0, [])

    with session.begin(), ledger(app).transaction(session):
        sent = list(send())
        assert on_redis(broker_url) == []
    with working(app):
        assert [r.get(timeout=30) for r in sent] == [6, [2, 4], 14]
    assert {r.state for r in rows(app)} == {"succeeded"}
    assert count(app) == 7


def test_a_body_submits_in_its_own_transaction(small):
    app, session = small

    @app.task(base=DurableTask)
    def ship(order_id):
        return order_id

    @app.task(base=DurableTask)
    def charge(order_id):
        with session, session.begin(), ledger(app).transaction(session):
            order(session, order_id)
            return ship.delay(order_id).id

    with working(app):
        shipped = over(app, charge.delay("o-1").get(timeout=30))

    assert (shipped.state, orders(session)) == ("succeeded", {"o-1"})
    assert shipped.parent_id == rows(app)[0].task_id


# --- what is refused ---------------------------------------------------------------------------------


def test_other_threads_are_not_in_the_block(small, broker_url):
    app, session = small

    @app.task(base=DurableTask)
    def charge(order_id): ...

    with session.begin(), ledger(app).transaction(session):
        charge.delay("o-1")
        inherited = contextvars.copy_context()
        with pytest.raises(SubmitError, match="inherited the block"):
            Background(lambda: inherited.run(charge.delay, "o-2")).answer()
    Background(lambda: inherited.run(charge.delay, "o-3")).answer()  # the block is over: a call like any other
    Background(lambda: charge.delay("o-4")).answer()

    assert len(on_redis(broker_url)) == count(app) == 3


def test_a_task_of_another_ledger_is_refused_and_a_stock_task_goes_its_way(small, make, tmp_path, broker_url):
    app, session = small
    other = make(ledger_url=tmp_path / "other.db")

    @other.task(base=DurableTask)
    def foreign(): ...

    @app.task
    def stock(): ...

    with session.begin(), ledger(app).transaction(session):
        with pytest.raises(SubmitError, match=r"belongs to the ledger sqlite.*outside of the block"):
            foreign.delay()
        stock.delay()

    assert (count(app), count(other), len(on_redis(broker_url))) == (0, 0, 1)


def test_an_asynchronous_session_is_refused_and_its_plain_side_taken(make, postgres_server, broker_url):
    app = migrated(make(ledger_url=postgres_server.database()))

    @app.task(base=DurableTask)
    def charge(order_id): ...

    def submit(session):
        with ledger(app).transaction(session):
            return charge.delay("o-1").id

    async def shop():
        engine = create_async_engine(the_ledger(app).db.url)
        async with AsyncSession(engine) as session, session.begin():
            with pytest.raises(BadRequest, match=r"AsyncSession.*asynchronous.*await session\.run_sync\(submit\)"):
                submit(session)
            task_id = await session.run_sync(submit)
            assert on_redis(broker_url) == []
        await engine.dispose()
        return task_id

    task_id = asyncio.run(shop())

    assert [m["headers"]["id"] for m in on_redis(broker_url)] == [task_id]
