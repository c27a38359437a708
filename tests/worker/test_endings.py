"""The other ways for a body to end: throws, Ignore, Reject, replace."""

from __future__ import annotations

import pytest
from celery import chain, chord
from celery.exceptions import Ignore, Reject

from celery_durable import DurableTask
from tests.worker.kit import (
    events,
    over,
    reached,
    record,
    rows,
    settled,
    verbs,
    working,
)

# Other ways for a body to end.


def test_throws_is_a_permanent_failure(results):
    @results.task(base=DurableTask, throws=(KeyError,))
    def pick():
        raise KeyError("x")

    with working(results):
        result = pick.delay()
        with pytest.raises(KeyError):
            result.get(timeout=30)
        row = settled(results, result)

    assert (row.state, row.failure_kind, row.failure.kind) == ("dead", "permanent", "permanent")


def test_ignore_succeeds_without_a_result(results):
    after = []

    @results.task(base=DurableTask)
    def skip():
        raise Ignore("not for me")

    @results.task(base=DurableTask)
    def then(_):
        after.append(1)

    with working(results):
        result = chain(skip.s(), then.s()).apply_async().parent
        row = settled(results, result)
        again = skip.delay()
        settled(results, again)

    assert (row.state, row.result, result.state, after) == ("succeeded", None, "PENDING", [])


def test_reject_is_dead(results):
    @results.task(base=DurableTask)
    def refuse():
        raise Reject("not mine", requeue=False)

    with working(results):
        row = settled(results, refuse.delay())

    assert (row.state, row.failure_kind, row.claims) == ("dead", "rejected", 1)


def test_reject_with_requeue_waits_and_runs_again(results):
    @results.task(base=DurableTask, bind=True)
    def refuse(self):
        if record(results, self.request.id).claims == 1:
            raise Reject("not now", requeue=True)
        return "now"

    with working(results):
        result = refuse.delay()
        assert result.get(timeout=30) == "now"

    assert (record(results, result).retries, record(results, result).claims) == (0, 2)
    assert [e.verb for e in events(results, result)].count("claim") == 2


def test_replace_keeps_the_id_and_changes_the_task(results):
    ran = []

    @results.task(base=DurableTask, name="shop.double")
    def double(x):
        ran.append(x)
        return 2 * x

    @results.task(base=DurableTask, bind=True, name="shop.delegate", idempotency_key="{x}")
    def delegate(self, x):
        raise self.replace(double.s(x + 1))

    with working(results):
        result = delegate.delay(1)
        assert result.get(timeout=30) == 4
        row = settled(results, result)

    assert (ran, row.task, row.key, row.envelope_no) == ([2], "shop.delegate", "1", 2)
    assert verbs(results, result) == ["submit", "claim", "replace", "claim", "succeed"]
    assert [r.task_id for r in rows(results)] == [result.id]


def test_replace_within_a_chain_keeps_the_chain(results):
    @results.task(base=DurableTask)
    def double(x):
        return 2 * x

    @results.task(base=DurableTask, bind=True)
    def delegate(self, x):
        raise self.replace(double.s(x))

    with working(results):
        result = chain(delegate.s(1), double.s()).apply_async()
        assert result.get(timeout=30) == 4


def test_replace_with_a_countdown_waits(results):
    @results.task(base=DurableTask)
    def double(x):
        return 2 * x

    @results.task(base=DurableTask, bind=True)
    def delegate(self, x):
        raise self.replace(double.s(x).set(countdown=600))

    with working(results):
        assert reached(results, delegate.delay(1), "waiting").wait_kind == "scheduled"


@pytest.mark.parametrize("form", ["chain", "chord"])
def test_replace_with_a_canvas(results, form):
    @results.task(base=DurableTask)
    def add(x, y):
        return x + y

    @results.task(base=DurableTask)
    def total(numbers):
        return sum(numbers)

    @results.task(base=DurableTask, bind=True)
    def delegate(self, x):
        canvas = chain(add.s(x, 1), add.s(1)) if form == "chain" else chord([add.s(x, 1), add.s(x, 2)], total.s())
        raise self.replace(canvas)

    with working(results):
        result = delegate.delay(1)
        assert result.get(timeout=30) == {"chain": 3, "chord": 5}[form]
        assert over(results, result).state == "succeeded"


def test_replace_with_a_stock_task(results):
    @results.task
    def stock(x):
        return 2 * x

    @results.task(base=DurableTask, bind=True)
    def delegate(self, x):
        raise self.replace(stock.s(x))

    with working(results):
        result = delegate.delay(2)
        assert result.get(timeout=30) == 4
        assert over(results, result).state == "succeeded"
