"""Results: in the ledger, and in the stock result backend where there is one."""

from __future__ import annotations

import pytest
from celery import chain, chord, group

from celery_durable import DurableTask
from tests.waiting import wait_until
from tests.worker.kit import alter, over, record, redis_of, rows, settled, working


def test_state_and_result(results):
    @results.task(base=DurableTask)
    def add(x, y):
        return {"sum": x + y}

    result = add.delay(1, 2)
    assert result.state == "PENDING"
    with working(results):
        assert result.get(timeout=30) == {"sum": 3}
        row = settled(results, result)

    assert (result.state, result.successful()) == ("SUCCESS", True)
    assert row.as_json()["result"] == {"sum": 3}
    assert row.finished_at >= row.started_at >= row.submitted_at


def test_a_failure_with_its_traceback(results):
    @results.task(base=DurableTask, name="shop.fail")
    def fail():
        raise KeyError("no such card")

    with working(results):
        result = fail.delay()
        with pytest.raises(KeyError, match="no such card"):
            result.get(timeout=30)
        row = settled(results, result)

    assert result.state == "FAILURE"
    assert "in fail" in result.traceback
    assert row.state == "dead"
    assert (row.failure.exception, row.failure.claim) == ("KeyError", 1)
    assert "in fail" in row.failure.traceback
    assert row.failure.fingerprint
    assert row.as_json()["failure"]["kind"] == row.failure_kind


def test_canvas_results(results):
    @results.task(base=DurableTask)
    def add(x, y):
        return x + y

    @results.task(base=DurableTask)
    def total(numbers):
        return sum(numbers)

    with working(results):
        linked = chain(add.s(1, 1), add.s(2), add.s(3)).apply_async()
        assert linked.get(timeout=30) == 7
        assert (linked.parent.get(timeout=30), linked.parent.parent.get(timeout=30)) == (4, 2)
        grouped = group(add.s(n, 1) for n in range(4)).apply_async()
        assert grouped.get(timeout=30) == [1, 2, 3, 4]
        assert chord((add.s(n, 1) for n in range(4)), total.s())().get(timeout=30) == 10
        for row in rows(results):
            assert settled(results, row.task_id).state == "succeeded"


def test_an_error_in_a_chord_is_told_to_its_callback(results):
    told = []

    @results.task(base=DurableTask)
    def part(n):
        if n == 1:
            raise ValueError("part 1")
        return n

    @results.task(base=DurableTask)
    def total(numbers):
        return sum(numbers)

    @results.task(base=DurableTask)
    def sorry(task_id):
        told.append(task_id)

    with working(results):
        result = chord([part.s(0), part.s(1)])(total.s().on_error(sorry.s()))
        with pytest.raises(Exception, match="part 1"):
            result.get(timeout=30)
        wait_until(lambda: told, timeout=30)

    assert len(told) == 1


def test_ignore_result(results, broker_url):
    @results.task(base=DurableTask, ignore_result=True)
    def quiet():
        return "nobody asks"

    @results.task(base=DurableTask)
    def loud():
        return "somebody asks"

    with working(results):
        results_of = [quiet.delay(), loud.apply_async(ignore_result=True), loud.delay()]
        for result in results_of:
            assert settled(results, result).state == "succeeded"

    kept = [redis_of(broker_url).exists(f"celery-task-meta-{r.id}") for r in results_of]
    assert kept == [0, 0, 1]
    assert [bool(record(results, r).owes) for r in results_of] == [False, False, True]


def test_a_result_that_cannot_be_stored(results):
    ran = []

    @results.task(base=DurableTask, name="shop.odd")
    def odd():
        ran.append(1)
        return object()

    with working(results):
        result = odd.delay()
        with pytest.raises(Exception, match="the result, a object, cannot be serialised as json"):
            result.get(timeout=30)
        row = settled(results, result)

    assert (result.state, row.state, row.failure_kind) == ("FAILURE", "dead", "permanent")
    assert "Return plain data, or set ignore_result=True" in row.failure.message
    assert len(ran) == 1


def test_the_same_result_without_a_backend_is_a_success(app):
    @app.task(base=DurableTask)
    def odd():
        return object()

    with working(app):
        row = over(app, odd.delay())

    assert (row.state, row.result, row.continuation_pending) == ("succeeded", None, None)


def test_a_result_that_returns_a_result(results):
    @results.task(base=DurableTask)
    def inner():
        return 1

    @results.task(base=DurableTask)
    def outer():
        return inner.delay()

    with working(results):
        assert settled(results, outer.delay()).state == "succeeded"


def test_a_continuation_that_cannot_be_sent_stays_owed(results):
    """The body succeeded and nobody may say otherwise; what follows is tried again, and sent once that is mended."""
    told = []

    @results.task(base=DurableTask)
    def first():
        return 1

    @results.task(base=DurableTask, idempotency_key="{missing}")
    def then(seen):
        return seen

    @results.task(base=DurableTask)
    def sorry(task_id):
        told.append(task_id)

    last = chain(first.s(), then.s()).apply_async(link_error=sorry.s())
    with working(results):
        row = over(results, last.parent)
    assert row.state == "succeeded"
    assert record(results, last.parent).continuation_pending is not None
    assert (last.parent.state, told) == ("PENDING", [])

    type(results.tasks[then.name]).idempotency_key = None
    alter(results, last.parent, publish_at=0)
    with working(results):
        assert last.get(timeout=30) == 1
        settled(results, last.parent)
    assert (last.parent.state, told) == ("SUCCESS", [])


def test_a_result_store_that_is_down_when_the_task_ends(make, redis_server, tmp_path):
    from tests.services import Redis

    with Redis() as store:
        app = make(
            result_backend=store.db(),
            durable_republish_after=1,
            result_backend_always_retry=False,
            redis_retry_on_timeout=False,
            redis_socket_connect_timeout=1,
        )
        ran = []

        @app.task(base=DurableTask)
        def work():
            ran.append(1)
            store.kill()
            return "kept"

        result = work.delay()
        with working(app):
            row = over(app, result)
            assert (row.state, row.decoded_result()) == ("succeeded", "kept")
            store.start()
            assert wait_until(lambda: result.state == "SUCCESS", timeout=60)
            settled(app, result)

    assert (len(ran), result.id) == (1, record(app, result).task_id)
