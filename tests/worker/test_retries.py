"""Celery's retries: the row waits where a message would have, and nothing of the call gets lost."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from urllib.request import urlopen

import pytest
from celery import chain, chord
from celery.exceptions import MaxRetriesExceededError, Retry

from celery_durable import DurableTask
from tests.task.failing.world import World
from tests.waiting import wait_until
from tests.worker.kit import (
    alter,
    clock,
    on_redis,
    reached,
    record,
    redis_of,
    rows,
    settled,
    sweep,
    the_ledger,
    verbs,
    working,
)


def failures(app, ref):
    return the_ledger(app).failures(record(app, ref).id)


def test_a_retry_is_a_wait_of_the_row(results, broker_url):
    @results.task(base=DurableTask, bind=True)
    def flaky(self):
        try:
            raise ValueError("not yet")  # noqa: TRY301
        except ValueError as exc:
            raise self.retry(countdown=600, exc=exc) from exc

    with working(results):
        result = flaky.delay()
        row = reached(results, result, "waiting")
        wait_until(lambda: result.state == "RETRY", timeout=30)

    assert (row.wait_kind, row.retries, row.claims, row.losses) == ("retry", 1, 1, 0)
    assert "retry 1 after ValueError: not yet" in row.wait_reason
    assert abs(row.wake_at - clock(results) - 600e6) < 60e6
    [failure] = failures(results, result)
    assert (failure.exception, failure.message, failure.retryable) == ("ValueError", "not yet", True)
    assert "ValueError: not yet" in failure.traceback
    assert on_redis(broker_url) == []


@pytest.mark.parametrize(
    "when",
    [
        lambda: {"countdown": 600},
        lambda: {"eta": datetime.now(timezone.utc) + timedelta(seconds=600)},
        dict,
    ],
    ids=["countdown", "eta", "default delay"],
)
def test_when_a_retry_comes_back(results, when):
    @results.task(base=DurableTask, bind=True, default_retry_delay=600)
    def flaky(self):
        raise self.retry(**when())

    with working(results):
        row = reached(results, flaky.delay(), "waiting")

    assert abs(row.wake_at - clock(results) - 600e6) < 60e6


def test_a_retry_comes_back_with_what_the_request_said(results):
    seen = []

    @results.task(base=DurableTask, bind=True)
    def flaky(self, x, *, y):
        seen.append((x, y, self.request.retries, self.request.headers, self.request.id, self.request.origin))
        if self.request.retries < 2:
            raise self.retry(countdown=0.01, kwargs={"y": y + 1})
        return "done"

    with working(results):
        result = flaky.apply_async((1,), {"y": 0}, headers={"tenant": "acme"}, expires=600)
        assert result.get(timeout=30) == "done"

    assert [s[:4] for s in seen] == [(1, n, n, {"tenant": "acme"}) for n in range(3)]
    assert {s[4] for s in seen} == {result.id}
    row = record(results, result)
    assert (row.retries, row.claims, row.envelope_no) == (2, 3, 3)
    assert verbs(results, result) == ["submit", *["claim", "fail", "release"] * 2, "claim", "succeed"]


def test_a_retry_may_change_queue_and_arguments(results, broker_url):
    @results.task(base=DurableTask, bind=True, idempotency_key="{x}")
    def move(self, x):
        raise self.retry(args=("other",), queue="slow", countdown=600, priority=3)

    with working(results):
        result = move.delay("first")
        row = reached(results, result, "waiting")
    alter(results, result, wake_at=1)
    sweep(results)

    assert (row.key, row.queue) == ("first", "slow")
    [message] = on_redis(broker_url, "slow\x06\x163")
    assert (message["headers"]["id"], message["headers"]["retries"]) == (result.id, 1)
    assert "other" in message["headers"]["argsrepr"]


def test_autoretry_with_backoff(results):
    @results.task(base=DurableTask, autoretry_for=(OSError,), retry_backoff=2, retry_jitter=False, max_retries=3)
    def flaky():
        raise OSError("away")

    with working(results):
        result = flaky.delay()
        waits = []
        for n in range(1, 4):
            row = wait_until(lambda n=n: (r := record(results, result)).state == "waiting" and r.retries == n and r, 30)
            waits.append(round((row.wake_at - row.wait_since) / 1e6))
            alter(results, result, wake_at=1)
        row = settled(results, result)

    assert waits == [2, 4, 8]
    assert (row.state, row.retries, row.claims) == ("dead", 3, 4)
    assert [f.kind for f in failures(results, result)] == ["transient"] * 4
    assert row.failure.exception == "OSError"


def test_a_retry_waits_as_long_as_the_server_asked_and_is_spread_beyond(results):
    @results.task(base=DurableTask, retry_backoff=100)
    def fetch(url):
        urlopen(url).close()  # noqa: S310 - a local server

    with World() as world, working(results):
        calls = [fetch.delay(f"{world.url}/status/503?retry-after=300") for _ in range(4)]
        waits = [(r.wake_at - r.wait_since) / 1e6 for r in [reached(results, call, "waiting") for call in calls]]

    assert all(300 <= wait < 401 for wait in waits), waits
    assert len({round(wait) for wait in waits}) > 1, "all of them come back at once"


def test_the_limit_of_retries_ends_in_the_cause(results):
    @results.task(base=DurableTask, bind=True)
    def flaky(self, with_cause):
        try:
            raise ValueError("the cause")  # noqa: TRY301
        except ValueError as exc:
            raise self.retry(max_retries=0, exc=exc if with_cause else None, countdown=0) from None

    with working(results):
        caused, plain = flaky.delay(True), flaky.delay(False)
        with pytest.raises(ValueError, match="the cause"):
            caused.get(timeout=30)
        assert settled(results, caused).failure.message == "the cause"
        settled(results, plain)

    assert record(results, plain).state == "dead"


def test_max_retries_exceeded(results):
    @results.task(base=DurableTask, bind=True, max_retries=1)
    def flaky(self):
        raise self.retry(countdown=0.01)

    with working(results):
        result = flaky.delay()
        with pytest.raises(MaxRetriesExceededError):
            result.get(timeout=30)
        row = settled(results, result)

    assert (row.state, row.retries, row.failure.exception) == ("dead", 1, "celery.exceptions.MaxRetriesExceededError")


def test_a_retry_without_throw_does_not_succeed_too(results):
    """Stock Celery stores SUCCESS and sends the chain *and* retries (CELERY.md)."""
    after, ran = [], []

    @results.task(base=DurableTask, bind=True)
    def flaky(self):
        ran.append(self.request.retries)
        if self.request.retries == 0:
            self.retry(throw=False, countdown=0.01)
            return "too early"
        return "in the end"

    @results.task(base=DurableTask)
    def then(seen):
        after.append(seen)

    with working(results):
        result = chain(flaky.s(), then.s()).apply_async()
        settled(results, result.parent)
        settled(results, result)

    assert (ran, after) == ([0, 1], ["in the end"])
    assert result.parent.result == "in the end"


def test_a_retry_within_a_chain_keeps_chain_and_links(results):
    after = []

    @results.task(base=DurableTask, bind=True)
    def flaky(self, x):
        if self.request.retries < 2:
            raise self.retry(countdown=0.01)
        return x + 1

    @results.task(base=DurableTask)
    def note(seen, tag):
        after.append((tag, seen))
        return seen

    with working(results):
        signature = flaky.s().set(link=note.s("linked"))
        result = chain(flaky.s(0), signature, note.s("chained")).apply_async()
        assert result.get(timeout=30) == 2
        for row in rows(results):
            settled(results, row.task_id)

    assert sorted(after) == [("chained", 2), ("linked", 2)]


def test_a_retry_within_a_chord_is_counted_once(results):
    @results.task(base=DurableTask, bind=True)
    def flaky(self, x):
        if self.request.retries < 1:
            raise self.retry(countdown=0.01)
        return x

    @results.task(base=DurableTask)
    def total(numbers):
        return sum(numbers)

    with working(results):
        assert chord([flaky.s(1), flaky.s(2)])(total.s()).get(timeout=30) == 3


def test_a_raised_retry_without_a_message(results):
    """`raise Retry(when=...)` by hand: stock Celery never sends it again; the ledger takes it at its word."""

    @results.task(base=DurableTask, bind=True)
    def flaky(self):
        if record(results, self.request.id).claims == 1:
            raise Retry("by hand", when=0.01)
        return "again"

    with working(results):
        result = flaky.delay()
        assert result.get(timeout=30) == "again"


def test_a_retry_outlives_the_broker(results, broker_url):
    @results.task(base=DurableTask, bind=True)
    def flaky(self):
        if self.request.retries == 0:
            raise self.retry(countdown=600)
        return "later"

    with working(results):
        result = flaky.delay()
        reached(results, result, "waiting")
    redis_of(broker_url).flushdb()
    alter(results, result, wake_at=1)
    with working(results):
        assert result.get(timeout=30) == "later"
