"""What a user knows of Celery stays as it is: calls without a worker, hooks, built-in tasks, many apps."""

from __future__ import annotations

import pytest
from celery import chain, current_task, group, signals
from celery.result import EagerResult

from celery_durable import DurableTask
from tests.worker.kit import count, on_redis, record, settled, verbs, working


@pytest.fixture
def untouched(app, broker_url):
    """No row and no message came of it."""
    yield
    assert (count(app), on_redis(broker_url)) == (0, [])


def test_a_direct_call_is_a_function_call(app, untouched):
    @app.task(base=DurableTask, bind=True, idempotency_key="{x}")
    def add(self, x, y):
        return self.request.id, self.request.called_directly, x + y, self.fence

    assert add(1, 2) == (None, True, 3, 0)


def test_apply_runs_here_and_now(app, untouched):
    @app.task(base=DurableTask, bind=True)
    def add(self, x, y):
        return self.request.is_eager, x + y

    result = add.apply((1,), {"y": 2})
    assert isinstance(result, EagerResult)
    assert result.get() == (True, 3)


def test_eager_mode_runs_here_and_now(app, untouched):
    app.conf.task_always_eager = True

    @app.task(base=DurableTask, idempotency_key="{x}")
    def add(x, y):
        return x + y

    assert add.delay(1, 2).get() == 3
    assert add.apply_async((1, 2), countdown=60, idempotency_key="k").get() == 3
    assert chain(add.s(1, 2), add.s(4)).apply_async().get() == 7
    assert group(add.s(1, 2), add.s(3, 4)).apply_async().get() == [3, 7]


def test_eager_mode_propagates_when_asked(app, untouched):
    app.conf.update(task_always_eager=True, task_eager_propagates=True)

    @app.task(base=DurableTask)
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail.delay()
    app.conf.task_eager_propagates = False
    assert fail.delay().state == "FAILURE"


def test_a_retry_in_apply_happens_at_once(app, untouched):
    @app.task(base=DurableTask, bind=True)
    def flaky(self):
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return self.request.retries

    assert flaky.apply().get() == 2


def test_a_task_that_calls_itself_directly_runs_as_a_function(results):
    seen = []

    @results.task(base=DurableTask, bind=True)
    def factorial(self, n):
        seen.append((n, self.request.called_directly))
        return 1 if n < 2 else n * factorial(n - 1)

    with working(results):
        result = factorial.delay(3)
        assert result.get(timeout=30) == 6

    assert [n for n, _ in seen] == [3, 2, 1]
    assert record(results, result).claims == 1
    assert verbs(results, result) == ["submit", "claim", "succeed"]


def test_a_task_may_apply_itself_and_others_within_a_run(results):
    @results.task(base=DurableTask, bind=True)
    def outer(self, n):
        return n if n == 0 else outer.apply((n - 1,)).get(disable_sync_subtasks=False) + 1

    with working(results):
        assert outer.delay(2).get(timeout=30) == 2

    assert count(results) == 1


def test_a_subclass_may_override_everything(results):  # noqa: C901 - one method per hook
    told = []

    class Audited(DurableTask):
        abstract = True

        def __call__(self, *args, **kwargs):
            told.append("call")
            return super().__call__(*args, **kwargs)

        def before_start(self, task_id, args, kwargs):
            told.append("before_start")

        def on_success(self, retval, task_id, args, kwargs):
            told.append(("success", retval))

        def on_failure(self, exc, task_id, args, kwargs, einfo):
            told.append(("failure", str(exc)))

        def on_retry(self, exc, task_id, args, kwargs, einfo):
            told.append("retry")

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            told.append(("after", status))

    @results.task(base=Audited, bind=True)
    def work(self, how):
        if how == "retry" and self.request.retries == 0:
            raise self.retry(countdown=0)
        if how == "fail":
            raise ValueError("no")
        return how

    def ran(how):
        told.clear()
        settled(results, work.delay(how))
        return list(told)

    with working(results, concurrency=1):
        assert ran("well") == ["before_start", "call", ("success", "well"), ("after", "SUCCESS")]
        assert ran("fail") == ["before_start", "call", ("failure", "no"), ("after", "FAILURE")]
        begin = ["before_start", "call"]
        assert ran("retry") == [*begin, "retry", *begin, ("success", "retry"), ("after", "SUCCESS")]


def test_a_call_that_never_reaches_the_body_is_a_success(results):
    """An overridden `__call__` may answer for the body: the row must not be left running."""

    class Cached(DurableTask):
        abstract = True

        def __call__(self, *args, **kwargs):
            return "from the cache"

    @results.task(base=Cached)
    def work(): ...

    with working(results):
        result = work.delay()
        assert result.get(timeout=30) == "from the cache"
        assert settled(results, result).decoded_result() == "from the cache"


@pytest.mark.parametrize("hook", ["before_start", "__call__"])
def test_a_hook_that_fails_before_the_body_is_a_failure(results, hook):
    def fail(self, *args, **kwargs):
        raise ValueError("not today")

    base = type("Failing", (DurableTask,), {"abstract": True, hook: fail})

    @results.task(base=base)
    def work():
        return "ran"

    with working(results):
        result = work.delay()
        with pytest.raises(ValueError, match="not today"):
            result.get(timeout=30)
        row = settled(results, result)

    assert (row.state, row.failure.message) == ("dead", "not today")


def test_a_claim_is_made_before_any_code_of_the_user(results):
    seen = []

    class Watched(DurableTask):
        abstract = True

        def before_start(self, task_id, args, kwargs):
            seen.append(("before_start", record(results, task_id).state, self.fence))

    @results.task(base=Watched)
    def work(): ...

    def prerun(task_id, **_):
        seen.append(("prerun", record(results, task_id).state, None))

    signals.task_prerun.connect(prerun)
    try:
        with working(results):
            settled(results, work.delay())
    finally:
        signals.task_prerun.disconnect(prerun)

    assert seen == [("prerun", "running", None), ("before_start", "running", 1)]


def test_unbound_tasks_know_their_fence_by_the_current_task(results):
    @results.task(base=DurableTask)
    def work():
        return current_task.fence

    with working(results):
        assert work.delay().get(timeout=30) == 1


def test_request_headers_are_free_of_ours(results):
    @results.task(base=DurableTask, bind=True)
    def work(self):
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return [self.request.headers, sorted(k for k in vars(self.request) if "durable" in k)]

    with working(results):
        assert work.apply_async(headers={"tenant": "acme"}).get(timeout=30) == [{"tenant": "acme"}, []]
