"""What follows a task when Celery's own parts take part: stock tasks, stock result backends, a broker that fails."""

from __future__ import annotations

import pytest
from celery import Task, chain, chord
from kombu.exceptions import OperationalError

from celery_durable import DurableTask, ledger
from tests.task.test_canvas import Shop
from tests.waiting import wait_until
from tests.worker.kit import Gate, events, record, redis_of, rows, settled, working


def test_a_stock_continuation_that_cannot_be_sent_makes_no_failure_of_the_task(make, broker_url):
    """It is owed, and sent by a later sweep; nobody is told a failure meanwhile."""
    app = make(result_backend=broker_url, durable_republish_after=1)
    refused, told = [], []

    class Fickle(Task):
        def apply_async(self, *args, **kwargs):
            if len(refused) < 2:
                refused.append(1)
                raise OperationalError("the broker is away")
            return super().apply_async(*args, **kwargs)

    @app.task(base=DurableTask)
    def first():
        return 1

    @app.task(base=Fickle)
    def then(value):
        return value + 1

    @app.task(base=DurableTask)
    def sorry(task_id):
        told.append(task_id)

    seen = set()
    last = chain(first.s(), then.s()).apply_async(link_error=sorry.s())
    with working(app):
        wait_until(lambda: seen.add(last.parent.state) or (len(refused) == 2 and last.state == "SUCCESS"), timeout=60)
        settled(app, last.parent)
    assert (last.get(timeout=30), last.parent.state, told) == (2, "SUCCESS", [])
    assert seen <= {"PENDING", "SUCCESS"}


@pytest.mark.parametrize("milliseconds", [200, pytest.param(2500, marks=pytest.mark.slow)])
def test_a_body_that_a_dead_delivery_has_claimed_is_sent_all_the_same(make, broker_url, milliseconds):
    """Redis lets one delivery at a time send a chord's body: one that died with that claim does not lose it."""
    app = make(result_backend=broker_url, durable_republish_after=1)

    @app.task(base=DurableTask)
    def part(n):
        claim = app.backend.get_key_for_group(result.parent.id, ".c")
        redis_of(broker_url).set(claim, "somebody who is dead", px=milliseconds)
        return n

    @app.task(base=DurableTask)
    def total(numbers):
        return sum(numbers)

    result = chord([part.s(1), part.s(2)])(total.s())
    with working(app):
        assert result.get(timeout=60) == 3
        for row in rows(app):
            settled(app, row.task_id)
    assert len(rows(app)) == 3


@pytest.mark.parametrize("backend", ["database", "cache"])
def test_backends_that_cannot_count_parts_poll_for_them(make, tmp_path, backend):
    """Celery's own `chord_unlock` is durable with `task_cls`; that it asks again is no failure of it."""
    url = f"db+sqlite:///{tmp_path / 'results.db'}" if backend == "database" else "cache+memory://"
    shop = Shop(make(task_cls=DurableTask, result_backend=url, result_chord_retry_interval=0.3))
    with working(shop.app):
        assert chain(shop.add.s(1, 1), shop.add.s(1)).apply_async().get(timeout=30) == 3
        result = chord([shop.add.s(1, 1), shop.add.s(2, 2).set(countdown=2)], shop.total.s()).apply_async()
        assert result.get(timeout=60) == 6
    unlock = [r for r in rows(shop.app) if r.task == "celery.chord_unlock"]
    assert len(unlock) == (backend == "database")
    for row in unlock:
        assert (row.state, row.retries, row.failure) == ("succeeded", 0, None)
        assert "wait" in [e.verb for e in events(shop.app, row.task_id)]


@pytest.mark.parametrize("ends", ["cancelled", "dead"])
def test_a_row_that_a_canvas_stands_in_for_ends_with_its_part(make, broker_url, ends):
    """And comes back when that part is replayed."""
    app = make(result_backend="durable://")
    broken = [1]

    @app.task(base=DurableTask, throws=(ValueError,))
    def part(x):
        if broken:
            raise ValueError("as planned")
        return x

    @app.task(base=DurableTask, bind=True)
    def delegate(self, form):
        first = part.s(1).set(countdown=600) if ends == "cancelled" else part.s(1)
        raise self.replace(chain(first, part.s()))

    with working(app):
        result = delegate.delay(ends)
        wait_until(lambda: len(rows(app)) == 2, timeout=30)
        one = next(r for r in rows(app) if r.task_id != result.id)
        if ends == "cancelled":
            assert record(app, result).wait_kind == "replaced"
            ledger(app).cancel(one.task_id, reason="not wanted")
        row = settled(app, result)
        assert row.state == ends
        with pytest.raises(Exception, match="not wanted" if ends == "cancelled" else "as planned"):
            result.get(timeout=30)
        settled(app, one.task_id)
        broken.clear()
        result.backend._cache.clear()
        ledger(app).replay(one.task_id)
        assert settled(app, one.task_id)
        wait_until(lambda: record(app, result).state == "succeeded", timeout=30)
    assert record(app, result).decoded_result() == 1


def test_a_row_that_is_cancelled_while_a_canvas_stands_in_for_it_stays_cancelled(make):
    app = make(result_backend="durable://")
    gate = Gate()

    @app.task(base=DurableTask)
    def held():
        gate.hold()

    @app.task(base=DurableTask)
    def last():
        raise AssertionError("it was cancelled")

    @app.task(base=DurableTask, bind=True)
    def delegate(self):
        raise self.replace(chain(held.si(), last.si()))

    with working(app):
        result = delegate.apply_async(expires=600)
        gate.await_body()
        assert record(app, result).deadline_at is None
        ledger(app).cancel(result.id, reason="not wanted")
        gate.let_go()
        for row in rows(app):
            settled(app, row.task_id)
    assert (record(app, result).state, result.state) == ("cancelled", "REVOKED")
