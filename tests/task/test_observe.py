"""Stock tasks observed: rows and failures without any promise, and without touching how the tasks run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

import celery_durable
from celery_durable import DurableTask, failures, observer, observing
from celery_durable.errors import BadRequest, SettingsError
from celery_durable.ledger import Ledger, Sighting, Which
from celery_durable.settings import Settings
from celery_durable.wiring import plugin
from tests.ledger.kit import opened
from tests.waiting import wait_until
from tests.worker.kit import (
    DEADLINE,
    closed_port,
    events,
    migrated,
    over,
    reached,
    record,
    rows,
    silent_listener,
    statements,
    sweep,
    the_ledger,
    working,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

    from celery_durable.records import Record

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nobody_watches_after() -> Iterator[None]:
    """Signals are the process's: what other tests publish is none of these apps' business."""
    yield
    observer.farewell()
    observing._apps.clear()


def stock(make: Callable[..., Celery], **conf: Any) -> Celery:
    """A stock app: nothing in it knows of the plugin but its settings and one call."""
    app = make(**({"durable_observe": True} | conf))

    @app.task(name="shop.add", shared=False)
    def add(x, y=0):
        return x + y

    @app.task(name="shop.fails", shared=False)
    def fails(order, password="", how="value"):
        if how == "connection":
            raise ConnectionError(f"gateway is away, {password} was used")
        raise ValueError(f"order {order} is wrong")

    @app.task(name="shop.retries", bind=True, max_retries=2, default_retry_delay=0, shared=False)
    def retries(self, until=1):
        if self.request.retries < until:
            raise self.retry(exc=TimeoutError("not yet"), countdown=0)
        return self.request.retries

    celery_durable.install(app)
    celery_durable.install(app)
    return app


def seen(app: Celery, result: Any, *states: str) -> Record:
    """The row of a stock task once it is in one of these states."""
    wait_until(lambda: [r for r in rows(app) if r.task_id == result.id], DEADLINE, "it is not observed")
    return reached(app, result, *states)


@pytest.fixture
def app(make: Callable[..., Celery]) -> Celery:
    return stock(make)


def test_a_success_is_seen_from_its_submission_on(app: Celery) -> None:
    sent = app.tasks["shop.add"].delay(1, 2)
    queued = seen(app, sent, "queued")
    assert (queued.observed, queued.task, queued.queue, queued.claims) == (True, "shop.add", "celery", 0)
    with working(app):
        found = over(app, sent)
    assert (found.state, found.claims, found.observed) == ("succeeded", 1, True)
    assert [(e.verb, e.source, e.target) for e in events(app, sent)] == [
        ("observe", None, "queued"), ("observe", "queued", "running"), ("observe", "running", "succeeded"),
    ]  # fmt: skip
    assert found.as_json()["observed"] is True
    assert the_ledger(app).verify() == []


def test_failures_are_rows_that_group_and_hold_no_secrets(app: Celery) -> None:
    with working(app):
        same = [app.tasks["shop.fails"].delay(n) for n in (1, 2, 3)]
        other = app.tasks["shop.fails"].delay(9, password="hunter2hunter2", how="connection")
        records = [seen(app, r, "dead") for r in (*same, other)]
    groups = {r.failure.fingerprint for r in records}
    assert len(groups) == 2
    assert [r.failure_kind for r in records] == [records[0].failure_kind] * 3 + ["transient"]
    failure = records[-1].failure
    assert (failure.exception, failure.retryable, failure.claim) == ("ConnectionError", False, 1)
    assert "in fails" in failure.traceback
    assert "hunter2" not in _dump(app)
    told = the_ledger(app).failure_groups(Which(), limit=10)
    assert sorted((g.count, g.exception) for g in told) == [(1, "ConnectionError"), (3, "ValueError")]


def _dump(app: Celery) -> str:
    kept = the_ledger(app)
    tables = (kept.t.task, kept.t.failure, kept.t.event)
    return str(kept.db.run(lambda c: [c.execute(sa.select(t)).all() for t in tables], read_only=True))


def test_a_stock_retry_is_seen_waiting_and_then_done(app: Celery) -> None:
    with working(app):
        sent = app.tasks["shop.retries"].delay(2)
        found = seen(app, sent, "succeeded")
    # Each pool process tells of its own: the first attempt's failure may come after the last one's success.
    kept = wait_until(
        lambda: (told := the_ledger(app).failures(found.id))[1:] and told, DEADLINE, "a failure is missing"
    )
    found = record(app, sent)
    assert (found.state, found.claims, found.retries) == ("succeeded", 3, 2)
    told = sorted((f.claim, f.exception, f.retryable) for f in kept)
    assert told == [(1, "TimeoutError", True), (2, "TimeoutError", True)]
    assert the_ledger(app).verify() == []


def test_what_comes_late_from_another_process_changes_no_state(app: Celery) -> None:
    """The next attempt may be over before the first one's process has told of it."""
    failure = failures.describe(ValueError("no"), "permanent")

    def saw(state: str, retries: int, **more: Any) -> Sighting:
        return Sighting(task_id="a", task="t", state=state, retries=retries, worker="w", **more)

    the_ledger(app).observe([saw("queued", 0), saw("running", 1), saw("succeeded", 1)])
    the_ledger(app).observe([saw("running", 0), saw("waiting", 1, reason="retry 1", failure=failure)])
    found = record(app, "a")
    assert (found.state, found.claims, found.retries) == ("succeeded", 2, 1)
    assert [f.claim for f in the_ledger(app).failures(found.id)] == [1]
    assert the_ledger(app).verify() == []


def test_a_revoked_task_is_seen_cancelled_and_an_expired_one_dead(app: Celery) -> None:
    with working(app) as worker:
        late = app.tasks["shop.add"].apply_async((1,), expires=0.001)
        found = seen(app, late, "dead")
        assert (found.failure_kind, found.failure.kind) == ("expired", "expired")
        gone = app.tasks["shop.add"].apply_async((1,), countdown=3600)
        worker.app.control.revoke(gone.id)
        again = app.tasks["shop.add"].apply_async((1,), task_id=gone.id)
        assert seen(app, again, "cancelled", "queued")


def test_unknown_and_unreadable_messages_are_seen(app: Celery, make: Callable[..., Celery]) -> None:
    from tests.worker.test_intake import headers, send

    with working(app):
        head = send(app, head=headers("shop.unknown"))
        wait_until(lambda: len(rows(app)) == 1, DEADLINE)
        bad = send(app, "[]", {"nothing": "of ours"})
        wait_until(lambda: len(rows(app)) == 2, DEADLINE)
    assert bad
    assert record(app, head["id"]).failure_kind == "unregistered"
    assert {r.failure_kind for r in rows(app)} == {"unregistered", "undecodable"}
    assert all(r.observed for r in rows(app))


def test_only_what_is_named_is_observed(make: Callable[..., Celery]) -> None:
    app = stock(make, durable_observe=["shop.f*"])
    with working(app):
        app.tasks["shop.add"].delay(1)
        failed = app.tasks["shop.fails"].delay(1)
        seen(app, failed, "dead")
    assert {r.task for r in rows(app)} == {"shop.fails"}


def test_it_is_off_unless_asked_for(make: Callable[..., Celery]) -> None:
    app = stock(make, durable_observe=None)
    with working(app):
        sent = app.tasks["shop.add"].delay(1)
        _ran(app, "shop.add")
    assert sent
    assert "observer" not in plugin(app).__dict__
    assert "ledger" not in plugin(app).__dict__, "nothing was opened"


def _ran(app: Celery, name: str, number: int = 1) -> None:
    from celery.worker import state

    wait_until(lambda: state.total_count.get(name, 0) >= number, DEADLINE, f"{name} did not run")


def test_durable_tasks_are_not_observed_and_stock_ones_beside_them_are(make: Callable[..., Celery]) -> None:
    app = make(durable_observe=True)

    @app.task(name="work", base=DurableTask, shared=False)
    def work():
        return 1

    @app.task(name="plain", shared=False)
    def plain():
        return 2

    with working(app):
        durable, simple = work.delay(), plain.delay()
        assert not over(app, durable).observed
        assert seen(app, simple, "succeeded").observed
    assert not [e for e in events(app, durable) if e.verb == "observe"]


def test_no_sweep_moves_what_is_only_observed(app: Celery) -> None:
    """Not even years later: every time at which something is due is empty."""
    waiting = Sighting(task_id="w", task="t", state="waiting", reason="retry 1", worker="w1")
    running = Sighting(task_id="r", task="t", state="running", worker="w1")
    the_ledger(app).observe([waiting, running, Sighting(task_id="q", task="t", state="queued")])
    before = [(r.task_id, r.state, r.publish_count) for r in rows(app)]
    with statements(app) as sent:
        sweep(app)
    assert [(r.task_id, r.state, r.publish_count) for r in rows(app)] == before
    assert not [s for s in sent if s.startswith("UPDATE")]
    claim = the_ledger(app).claim("q", "token", owner="w", pid=1, lease=30)
    assert (claim.claim, claim.why) == (None, "absent")
    with pytest.raises(BadRequest, match="only observed"):
        celery_durable.ledger(app).cancel("q", "no")
    assert the_ledger(app).verify() == []


def test_observation_on_every_database(ledger_url: str) -> None:
    ledger = opened(ledger_url)
    ledger.migrate()
    told = ["queued", "running", "waiting", "running", "succeeded"]
    ledger.observe([Sighting(task_id="a", task="t", state=s, reason=f"r{n}", worker="w") for n, s in enumerate(told)])
    ledger.observe([Sighting(task_id="a", task="t", state="queued")])  # a publisher's late word
    found = ledger.get("a")
    assert (found.state, found.claims, found.observed) == ("succeeded", 2, True)
    assert ledger.verify() == []
    ledger.db.dispose()


def test_a_task_that_becomes_durable_takes_its_observed_row_over(make: Callable[..., Celery]) -> None:
    """The migration's second step, with messages of the first still in the broker."""
    before = stock(make)
    sent = before.tasks["shop.add"].delay(1, 2)
    assert seen(before, sent, "queued").observed
    after = make(durable_observe=True)

    @after.task(name="shop.add", base=DurableTask, shared=False)
    def add(x, y=0):
        return x + y

    with working(after):
        found = over(after, sent)
    assert (found.state, found.observed, found.claims) == ("succeeded", False, 1)
    assert [e.verb for e in events(after, sent)] == ["observe", "observe", "claim", "succeed"]
    assert the_ledger(after).verify() == []


# A ledger that is away --------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", ["refuses", "is silent"])
def test_with_the_ledger_away_tasks_run_as_before(make: Callable[..., Celery], broker_url: str, away: str) -> None:
    with (closed_port if away == "refuses" else silent_listener)() as port:
        app = stock(make, ledger_url=f"postgresql+psycopg://nobody@127.0.0.1:{port}/none", result_backend=broker_url)
        watching = observing.observer_of(app)
        with working(app):
            for n in range(20):
                assert app.tasks["shop.add"].delay(n, 1).get(timeout=DEADLINE) == n + 1
            with pytest.raises(ValueError, match="order 7"):
                app.tasks["shop.fails"].delay(7).get(timeout=DEADLINE)
        if away == "refuses":
            wait_until(lambda: watching.down, DEADLINE)
        assert "ledger" not in plugin(app).__dict__, "it was never there"


def test_a_ledger_that_is_down_costs_a_task_no_statement_and_no_wait(make: Callable[..., Celery]) -> None:
    """The hooks only put what they saw into a queue: nothing else happens in the task's own thread."""
    app = stock(make)
    watching = observing.observer_of(app)
    with working(app):
        sent = app.tasks["shop.add"].delay(1)
        seen(app, sent, "succeeded")
        done: list[str] = []
        engine = the_ledger(app).db.engine

        def note(*_: Any) -> None:
            import threading

            done.append(threading.current_thread().name)

        sa.event.listen(engine, "before_cursor_execute", note)
        more = app.tasks["shop.add"].delay(2)
        wait_until(lambda: watching.flush() and done, DEADLINE)
        sa.event.remove(engine, "before_cursor_execute", note)
    assert more
    assert set(done) == {"celery-durable-observer"}


def test_what_does_not_fit_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "LIMIT", 10)

    def away() -> Ledger:
        raise SettingsError("no ledger")

    watching = observer.Observer(away)
    for n in range(100):
        watching.saw(Sighting(task_id=str(n), task="t", state="queued"))
    assert watching.dropped > 0
    assert wait_until(lambda: watching.down, DEADLINE)
    assert watching.flush(0.5) is False


def test_observation_goes_on_when_the_ledger_is_back(make: Callable[..., Celery], postgres_server: Any) -> None:
    app = migrated(stock(make, ledger_url=postgres_server.database()))
    with working(app):
        first = app.tasks["shop.add"].delay(1)
        seen(app, first, "succeeded")
        postgres_server.stop()
        second = app.tasks["shop.fails"].delay(2)
        _ran(app, "shop.fails")
        wait_until(lambda: observing.observer_of(app).down, DEADLINE)
        postgres_server.start()
        assert seen(app, second, "dead").failure.exception == "ValueError"


def test_a_prefork_worker_observes_from_its_pool_processes(tmp_path: Path, broker_url: str) -> None:
    """And what a process saw just before it ended is written still."""
    (tmp_path / "stockapp.py").write_text(
        textwrap.dedent(f"""
        from celery import Celery
        import celery_durable
        app = Celery("stock", broker={broker_url!r}, set_as_current=True)
        app.conf.update(durable_ledger_url="sqlite:///{tmp_path}/ledger.db", durable_observe=True,
                        worker_max_tasks_per_child=1, task_ignore_result=True)
        celery_durable.install(app)
        @app.task(name="fails")
        def fails(n):
            raise KeyError(n)
        """)
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    sends = "from stockapp import fails\nfor n in range(6): fails.delay(n)"
    subprocess.run([sys.executable, "-c", sends], env=env, cwd=tmp_path, check=True, timeout=60)
    ledger = opened(f"sqlite:///{tmp_path}/ledger.db")
    assert len(ledger.find(state="queued")) == 6, "a publisher that ends at once has told"
    command = [sys.executable, "-m", "celery", "-A", "stockapp", "worker", "-c", "2", "--without-mingle"]
    worker = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(ledger.find(state="dead")) == 6, 120, "not every failure was seen")
    finally:
        worker.terminate()
        worker.wait(60)
    assert {r.failure.fingerprint for r in ledger.find()} == {ledger.find()[0].failure.fingerprint}
    assert ledger.verify() == []
    ledger.db.dispose()


# The setting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "globs"),
    [
        (True, ("*",)),
        (False, ()),
        (["a.*", "b"], ("a.*", "b")),
        ("true", ("*",)),
        ("false", ()),
        ("a.*, b", ("a.*", "b")),
    ],
)
def test_the_setting(value: Any, globs: tuple[str, ...]) -> None:
    assert Settings.read({"durable_observe": value}).observe == globs


@pytest.mark.parametrize("value", [7, ["a", 1], {"a": 1}, [""]])
def test_a_setting_that_makes_no_sense_is_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="durable_observe"):
        Settings.read({"durable_observe": value})


def test_a_wrong_setting_ends_no_task(make: Callable[..., Celery], broker_url: str) -> None:
    app = stock(make, durable_observe=7, result_backend=broker_url)
    with working(app):
        assert app.tasks["shop.add"].delay(1, 1).get(timeout=DEADLINE) == 2
