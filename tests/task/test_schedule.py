"""ETA, countdown and expires: a time belongs to the row, never to a broker or a worker's memory."""

from __future__ import annotations

import zoneinfo
from datetime import datetime, timedelta, timezone

import pytest

from celery_durable import DurableTask
from tests.worker.kit import (
    Gate,
    alter,
    clock,
    column,
    events,
    on_redis,
    over,
    reached,
    record,
    redis_of,
    settled,
    sweep,
    verbs,
    working,
)

SOON = 600
SLACK = 30 * 1_000_000  # the machine may be busy


def now() -> datetime:
    return datetime.now(timezone.utc)


def micros(when: datetime) -> int:
    return round(when.timestamp() * 1_000_000)


def test_a_countdown_waits_in_the_ledger(app, broker_url):
    @app.task(base=DurableTask)
    def remind(): ...

    result = remind.apply_async(countdown=SOON)

    row = record(app, result)
    assert (row.state, row.wait_kind, row.publish_at) == ("waiting", "scheduled", None)
    assert abs(row.wake_at - clock(app) - SOON * 1_000_000) < SLACK
    assert row.as_json()["wait"]["reason"]
    assert redis_of(broker_url).dbsize() == 0


@pytest.mark.parametrize(
    ("form", "enable_utc"),
    [
        (lambda when: when, True),
        (lambda when: when.astimezone(zoneinfo.ZoneInfo("Asia/Tokyo")), True),
        (lambda when: when.isoformat(), True),
        (lambda when: when.strftime("%Y-%m-%dT%H:%M:%SZ"), True),
        (lambda when: when.replace(tzinfo=None), True),
        (lambda when: when.replace(tzinfo=None), False),  # stock workers take it for UTC too
    ],
    ids=["aware", "tokyo", "iso", "zulu", "naive", "naive-elsewhere"],
)
def test_an_eta_in_every_form(make, broker_url, form, enable_utc):
    app = make(enable_utc=enable_utc, timezone="UTC" if enable_utc else "Asia/Tokyo")

    @app.task(base=DurableTask)
    def remind(): ...

    when = (now() + timedelta(seconds=SOON)).replace(microsecond=0)
    row = record(app, remind.apply_async(eta=form(when)))

    assert (row.state, row.wake_at) == ("waiting", micros(when))
    assert redis_of(broker_url).dbsize() == 0


def test_a_countdown_of_a_task_in_a_chain_waits_in_the_ledger(results):
    @results.task(base=DurableTask)
    def first(): ...

    @results.task(base=DurableTask)
    def second(_): ...

    with working(results):
        result = (first.s() | second.s().set(countdown=SOON)).apply_async()
        settled(results, result.parent)
        assert reached(results, result, "waiting").wait_kind == "scheduled"


def test_a_scheduled_task_runs_when_it_is_due(results):
    @results.task(base=DurableTask)
    def remind():
        return "now"

    result = remind.apply_async(countdown=0.3)
    assert record(results, result).state == "waiting"
    with working(results):
        assert result.get(timeout=30) == "now"

    assert verbs(results, result) == ["submit", "release", "claim", "succeed"]


def test_no_time_reaches_the_message(app, broker_url):
    @app.task(base=DurableTask)
    def remind(): ...

    result = remind.apply_async(countdown=SOON)
    alter(app, result, wake_at=1)
    sweep(app)

    [message] = on_redis(broker_url)
    assert message["headers"]["eta"] is None


@pytest.mark.parametrize("countdown", [0, None, -5])
def test_a_countdown_of_nothing_is_now(app, broker_url, countdown):
    @app.task(base=DurableTask)
    def remind(): ...

    assert record(app, remind.apply_async(countdown=countdown)).state in {"queued", "waiting"}
    sweep(app)
    assert len(on_redis(broker_url)) == 1


@pytest.mark.parametrize("form", [lambda s: s, lambda s: now() + timedelta(seconds=s)], ids=["seconds", "moment"])
def test_expires_is_a_deadline_of_the_row_and_of_the_message(app, broker_url, form):
    @app.task(base=DurableTask)
    def offer(): ...

    result = offer.apply_async(expires=form(SOON))

    row = record(app, result)
    assert abs(row.deadline_at - clock(app) - SOON * 1_000_000) < SLACK
    [message] = on_redis(broker_url)
    assert message["headers"]["expires"]
    assert 0 < float(message["properties"]["expiration"]) <= SOON * 1000


def test_the_expiration_of_a_message_that_is_sent_again_is_what_is_left(app, broker_url):
    @app.task(base=DurableTask)
    def offer(): ...

    result = offer.apply_async(expires=SOON)
    redis_of(broker_url).flushdb()
    alter(app, result, publish_at=1, deadline_at=clock(app) + 60 * 1_000_000)
    sweep(app)

    [message] = on_redis(broker_url)
    assert 20_000 < float(message["properties"]["expiration"]) <= 60_000


def test_what_expired_never_runs_and_is_told(results):
    ran = []

    @results.task(base=DurableTask)
    def offer():
        ran.append(1)

    late = offer.apply_async(expires=SOON)
    later = offer.apply_async(expires=SOON, countdown=SOON)
    alter(results, late, deadline_at=1)
    alter(results, later, deadline_at=1)
    with working(results):
        for result in (late, later):
            row = settled(results, result)
            assert (row.state, row.failure_kind, row.failure.kind) == ("dead", "expired", "expired")
            assert row.claims == 0
        offer.delay().get(timeout=30)
        assert late.state == "REVOKED"

    assert ran == [1]
    assert events(results, late)[-1].verb == "expire"


def test_an_expired_message_is_refused_by_the_worker_and_recorded(results):
    """Celery itself refuses it on receipt: the row must follow, or it is rung for ever (PROTOCOL 14)."""

    @results.task(base=DurableTask)
    def offer():
        return "ran"

    result = offer.apply_async(expires=now() - timedelta(seconds=5))
    with working(results):
        row = settled(results, result)

    assert (row.state, row.failure_kind, row.claims) == ("dead", "expired", 0)


def test_expires_of_a_running_task_does_not_end_it(results):
    gate = Gate()

    @results.task(base=DurableTask)
    def offer():
        gate.hold()
        return "ran"

    result = offer.apply_async(expires=SOON)
    with working(results):
        gate.await_body()
        alter(results, result, deadline_at=1)
        sweep(results)
        gate.let_go()
        assert over(results, result).state == "succeeded"


def test_a_submission_with_the_retried_deadline_keeps_it(app):
    @app.task(base=DurableTask, expires=SOON)
    def offer(): ...

    assert column(app, offer.delay(), "deadline_at") is not None
