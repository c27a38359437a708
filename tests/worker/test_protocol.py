"""The rules of the protocol that live in task, run and worker: one test each, which fails without its rule."""

from __future__ import annotations

from celery import chain

from celery_durable import DurableTask
from celery_durable.wiring import plugin
from celery_durable.worker import leases as leases_module
from celery_durable.worker.sweeper import Sweeper
from tests.waiting import wait_until
from tests.worker.kit import (
    Gate,
    alter,
    column,
    forget,
    migrated,
    over,
    reached,
    record,
    redis_of,
    rows,
    settled,
    the_ledger,
    verbs,
    working,
)

FAR = 2**60


def claimed(app, ref, *, token="somebody", lease=20.0):
    answer = the_ledger(app).claim(ref.id, token, owner="w", pid=1, lease=lease)
    assert answer.claim is not None
    return answer.claim


def test_rule_01_every_delivery_has_a_token_of_its_own(results):
    tokens = []

    @results.task(base=DurableTask, bind=True)
    def work(self):
        tokens.append(column(results, self.request.id, "claim_token"))
        if self.request.retries < 2:
            raise self.retry(countdown=0)

    with working(results):
        settled(results, work.delay())

    assert (len(set(tokens)), all(len(t) >= 32 for t in tokens)) == (3, True)


def test_rule_02_an_old_doorbell_runs_nothing(results, broker_url):
    seen = []

    @results.task(base=DurableTask, bind=True)
    def work(self, x):
        seen.append(x)
        if self.request.retries == 0:
            raise self.retry(args=("new",), countdown=600)

    @results.task(base=DurableTask)
    def tick(): ...

    result = work.delay("old")
    old = redis_of(broker_url).lrange("celery", 0, -1)[0]
    with working(results, concurrency=1):
        reached(results, result, "waiting")
        # Due again, its new message not sent yet, when the old one comes a second time.
        alter(
            results, result, state="queued", wait_kind=None, wait_reason=None, wait_since=None, wake_at=None,
            publish_at=FAR,
        )  # fmt: skip
        redis_of(broker_url).lpush("celery", old)
        over(results, tick.delay())
        over(results, tick.delay())
        assert seen == ["old"]
        alter(results, result, publish_at=1)
        settled(results, result)

    assert seen == ["old", "new"]


def test_rule_04_a_submission_that_is_awaited_never_collapses(results):
    @results.task(base=DurableTask, idempotency_key="{x}")
    def work(x):
        return x

    @results.task(base=DurableTask)
    def then(x):
        return [x]

    first = work.delay("k")
    last = chain(work.s("k"), then.s()).apply_async()
    assert last.parent.id != first.id
    assert column(results, last.parent, "key_digest") is None
    assert column(results, last.parent, "duplicate_of") == record(results, first).id
    with working(results):
        assert last.get(timeout=30) == ["k"]


def test_rule_06_a_marked_message_without_a_row_never_runs(results):
    ran = []

    @results.task(base=DurableTask)
    def work():
        ran.append(1)

    result = work.delay()
    forget(results, result)
    with working(results):
        row = wait_until(lambda: rows(results), timeout=30)[0]

    assert (row.task_id, row.state, row.failure_kind, ran) == (result.id, "dead", "rejected", [])
    assert verbs(results, result) == ["park"]


def test_rule_09_a_sweeper_that_was_away_gives_everybody_time_to_renew(make):
    app = make(durable_lease=3, durable_sweep_interval=0.1)

    @app.task(base=DurableTask)
    def work(): ...

    def expired_after(sweeper, result):
        sweeper.sweep()
        first = record(app, result).state
        wait_until(lambda: sweeper.sweep() or record(app, result).state != "running", timeout=30)
        return first

    one, two = work.delay(), work.delay()
    for result in (one, two):
        claimed(app, result)
    sweeper = Sweeper(plugin(app), "test", reserved=tuple)
    alter(app, one, lease_expires_at=1)
    assert expired_after(sweeper, one) == "running", "the first sweep of a worker expires nobody"
    alter(app, two, lease_expires_at=1)
    sweeper._last = (sweeper._last[0] - 10, sweeper._last[1] - 10_000_000)
    assert expired_after(sweeper, two) == "running", "nor does the first after a pause"
    sweeper.close()

    assert record(app, one).failure.kind == "lease_expired"


def test_rule_09_a_jump_of_the_databases_clock_expires_nobody(make):
    app = make(durable_lease=3, durable_sweep_interval=0.1)

    @app.task(base=DurableTask)
    def work(): ...

    result = work.delay()
    claimed(app, result)
    sweeper = Sweeper(plugin(app), "test", reserved=tuple)
    patience = [False]

    def patient():
        sweeper.sweep()
        return sweeper._trusts_the_clock(the_ledger(app).glance(plugin(app).broker))

    assert wait_until(patient, timeout=30)
    at, now = sweeper._last
    sweeper._last = (at, now - 60_000_000)  # the database's clock went on a minute between two sweeps
    alter(app, result, lease_expires_at=1)
    sweeper.sweep()
    sweeper.close()

    assert (record(app, result).state, patience) == ("running", [False])


def test_rule_11_the_keeper_stops_at_the_time_limit(results, monkeypatch):
    monkeypatch.setattr(leases_module, "LIMIT_GRACE", 0.2)
    gate = Gate()

    @results.task(base=DurableTask, time_limit=1, on_loss="dead", lease=3)
    def hang():
        gate.hold()
        return "too late"

    result = hang.delay()
    with working(results):  # threads: Celery's own limit does nothing here
        gate.await_body()
        row = over(results, result)
        gate.let_go()
        wait_until(lambda: "fenced" in verbs(results, result), timeout=30)

    assert (row.state, row.failure_kind, row.failure.kind) == ("dead", "timeout", "timeout")
    assert "hard time limit of 1" in row.failure.message
    assert record(results, result).result is None


def test_rule_11_the_keeper_renews_what_runs(make):
    app, gate = make(durable_lease=1.5, durable_sweep_interval=0.1), Gate()

    @app.task(base=DurableTask)
    def work():
        gate.hold()
        return "in time"

    result = work.delay()
    with working(app):
        gate.await_body()
        begun = record(app, result).lease_expires_at
        wait_until(lambda: (record(app, result).lease_expires_at or 0) > begun + 3_000_000, timeout=30)
        gate.let_go()
        row = over(app, result)

    assert (row.state, row.claims, row.losses) == ("succeeded", 1, 0)


def test_rule_12_a_worker_stops_consuming_while_the_ledger_is_away(make, postgres_server):
    app = migrated(make(ledger_url=postgres_server.database(), durable_republish_after=2))
    gate, ran = Gate(), []

    @app.task
    def stock():
        gate.hold()

    @app.task(base=DurableTask)
    def work():
        ran.append(1)
        return "ran"

    with working(app, concurrency=1):
        stock.delay()
        gate.await_body()
        result = work.delay()  # it waits in the pool, behind the stock task
        keeper = plugin(app).keeper
        postgres_server.kill()
        gate.let_go()
        wait_until(lambda: keeper.paused, timeout=60)
        assert ran == []
        postgres_server.start()
        assert over(app, result, timeout=60).decoded_result() == "ran"
        wait_until(lambda: not keeper.paused, timeout=30)
        assert over(app, work.delay()).state == "succeeded"

    assert len(ran) == 2
