"""Whole apps: canvas and built-in tasks made durable, many kinds of app, stock tasks beside durable ones."""

from __future__ import annotations

import pickle

import pytest
from celery import Celery, chain, chord, group, shared_task, signals

from celery_durable import DurableTask, ledger
from celery_durable.wiring import plugin
from tests.waiting import wait_until
from tests.worker.kit import count, over, rows, settled, working

# Canvas and built-in tasks, with every task of the app durable.


@pytest.fixture
def whole(make, broker_url):
    app = make(result_backend=broker_url, task_cls="celery_durable:DurableTask", result_chord_retry_interval=0.1)

    @app.task(name="shop.add")
    def add(x, y):
        return x + y

    @app.task(name="shop.total")
    def total(numbers):
        return sum(numbers)

    return app


def test_a_whole_app_is_durable(whole):
    add, total = whole.tasks["shop.add"], whole.tasks["shop.total"]
    assert isinstance(add, DurableTask)
    with working(whole):
        assert add.delay(1, 2).get(timeout=30) == 3
        assert chain(add.s(1, 2), add.s(3), add.s(4)).apply_async().get(timeout=30) == 10
        assert group(add.s(i, i) for i in range(3)).apply_async().get(timeout=30) == [0, 2, 4]
        assert chord([add.s(i, i) for i in range(3)])(total.s()).get(timeout=30) == 6
        nested = chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s(), add.s(100))
        assert nested.apply_async().get(timeout=30) == 107
        for row in rows(whole):
            assert settled(whole, row.task_id).state == "succeeded"


def test_map_starmap_and_chunks(whole):
    add, total = whole.tasks["shop.add"], whole.tasks["shop.total"]
    with working(whole):
        assert total.map([[1, 2], [3]]).apply_async().get(timeout=30) == [3, 3]
        assert add.starmap([(1, 2), (3, 4)]).apply_async().get(timeout=30) == [3, 7]
        assert add.chunks(zip(range(4), range(4), strict=True), 2).apply_async().get(timeout=30) == [[0, 2], [4, 6]]


def test_a_chord_without_native_support_is_unlocked_by_polling(make, broker_url, tmp_path):
    (tmp_path / "results").mkdir()
    app = make(
        result_backend=f"file://{tmp_path / 'results'}",
        task_cls="celery_durable:DurableTask",
        result_chord_retry_interval=0.1,
    )

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def total(numbers):
        return sum(numbers)

    with working(app):
        result = chord([add.s(i, i) for i in range(3)])(total.s())
        assert result.get(timeout=30) == 6


# Many kinds of app.


def test_a_shared_task_runs(results):
    @shared_task(base=DurableTask, name="shop.shared")
    def double(x):
        return 2 * x

    with working(results):
        assert results.tasks["shop.shared"].delay(2).get(timeout=30) == 4


def test_an_app_that_is_finalized_late(make, broker_url):
    app = make(result_backend=broker_url)

    @app.task(base=DurableTask, name="shop.lazy")
    def lazy():
        return 1

    assert not app.finalized
    result = lazy.delay()
    with working(app):
        assert result.get(timeout=30) == 1


def test_two_apps_in_one_process_have_each_their_own(make, redis_server, tmp_path):
    one = make(broker=redis_server.db(), ledger_url=tmp_path / "one.db")
    two = make(broker=redis_server.db(), ledger_url=tmp_path / "two.db")
    for app in (one, two):

        @app.task(base=DurableTask, name="shop.work", shared=False)
        def work(): ...

    one.tasks["shop.work"].delay()

    assert (count(one), count(two)) == (1, 0)
    assert plugin(one) is not plugin(two)
    assert plugin(one).ledger.uuid != plugin(two).ledger.uuid


def test_a_task_class_does_not_bind_to_the_first_app(make):
    class Base(DurableTask):
        abstract = True

    one, two = make(), make()

    @one.task(base=Base, shared=False)
    def first(): ...

    @two.task(base=Base, shared=False)
    def second(): ...

    first.delay()
    second.delay()

    assert (first.app, second.app) == (one, two)
    assert DurableTask.__dict__.get("_app") is None
    assert first.request_stack is not second.request_stack


def test_a_pickled_app_submits_to_the_same_ledger(make):
    app = make()

    @app.task(base=DurableTask, name="shop.work")
    def work(): ...

    work.delay()
    copy: Celery = pickle.loads(pickle.dumps(app))  # noqa: S301 - our own bytes
    assert ledger(copy).stats()["states"]["queued"] == 1


def test_bootsteps_are_added_once(app):
    @app.task(base=DurableTask)
    def one(): ...

    @app.task(base=DurableTask)
    def two(): ...

    app.finalize()
    before = {kind: set(steps) for kind, steps in app.steps.items()}
    DurableTask.on_bound(app)

    assert app.steps == before
    assert len([s for s in app.steps["worker"] if "Durable" in str(s)]) == 1


def test_binding_a_task_reads_nothing_and_connects_nowhere(make):
    app = make(durable_leese=1, ledger_url="nonsense", broker="redis://127.0.0.1:1/0")

    @app.task(base=DurableTask)
    def work(): ...

    app.finalize()
    assert "ledger" not in plugin(app).__dict__


def test_stock_and_durable_tasks_share_a_worker(results):
    total = durable_sum(results)

    @results.task
    def stock(x):
        return x + 1

    @results.task(base=DurableTask)
    def durable(x):
        return x + 10

    with working(results):
        assert chain(stock.s(0), durable.s(), stock.s()).apply_async().get(timeout=30) == 12
        assert chord([stock.s(0), durable.s(0)])(total.s()).get(timeout=30) == 11

    assert {r.task for r in rows(results)} == {durable.name, "shop.sum"}


def durable_sum(app):
    @app.task(base=DurableTask, name="shop.sum")
    def total(numbers):
        return sum(numbers)

    return total


def test_children_and_trail(results):
    @results.task(base=DurableTask)
    def child():
        return 1

    @results.task(base=DurableTask, bind=True)
    def parent(self):
        return child.delay().id

    with working(results):
        result = parent.delay()
        child_id = result.get(timeout=30)
        assert [c.id for c in result.children] == [child_id]
        row = over(results, child_id)

    assert (row.parent_id, row.root_id) == (result.id, result.id)


def test_signals_of_a_run_fire_as_in_stock_celery(results):
    told = []
    names = ["task_received", "task_prerun", "task_success", "task_failure", "task_retry", "task_postrun"]
    receivers = {n: (lambda _n=n, **_: told.append(_n)) for n in names}
    for name, receiver in receivers.items():
        getattr(signals, name).connect(receiver, weak=False)

    @results.task(base=DurableTask, bind=True)
    def work(self, how):
        if how == "retry" and not self.request.retries:
            raise self.retry(countdown=0)
        if how == "fail":
            raise ValueError("no")

    def ran(how):
        told.clear()
        settled(results, work.delay(how))
        wait_until(lambda: told.count("task_postrun") == (2 if how == "retry" else 1), timeout=30)
        return list(told)

    around = ["task_received", "task_prerun"]
    try:
        with working(results, concurrency=1):
            assert ran("well") == [*around, "task_success", "task_postrun"]
            assert ran("fail") == [*around, "task_failure", "task_postrun"]
            assert ran("retry") == [*around, "task_retry", "task_postrun", *around, "task_success", "task_postrun"]
    finally:
        for name, receiver in receivers.items():
            getattr(signals, name).disconnect(receiver)
