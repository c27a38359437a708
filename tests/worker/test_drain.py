"""A worker that shuts down: its bodies are told at their next check, and it starts nothing any more."""

from __future__ import annotations

import time

import pytest

from celery_durable import Draining, DurableTask, runs
from celery_durable.wiring import plugin
from tests.waiting import wait_until
from tests.worker.kit import DEADLINE, Gate, column, events, over, reached, record, verbs, working


@pytest.fixture
def shop(app):
    gate = Gate()
    gate.raised, gate.drains = [], []

    @app.task(base=DurableTask, bind=True, name="shop.patient")
    def patient(self, how="pass"):
        if self.fence > 1:
            return "second"
        if how == "blind":  # as in a spawned pool process, which shares no memory with its parent
            runs.current()._watch._board = None
        gate.drains.append(self.draining)
        gate.entered.set()
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                self.check()
            except Exception:  # noqa: BLE001 - as users do
                gate.raised.append("swallowed")
            except BaseException as exc:
                gate.raised.append(exc)
                gate.drains.append(self.draining)
                if how == "return":
                    return "done all the same"
                if how == "fail":
                    raise ValueError("clumsy") from exc
                raise
            time.sleep(0.01)
        return "never told"

    @app.task(base=DurableTask, name="shop.quick")
    def quick():
        return "quick"

    gate.task, gate.quick = patient, quick
    return gate


@pytest.mark.parametrize("how", ["pass", "return", "fail", "blind"])
def test_a_body_goes_to_another_worker_whatever_it_makes_of_that(app, shop, how):
    with working(app):
        result = shop.task.delay(how)
        shop.await_body()
        plugin(app).keeper.board.drain()
        reached(app, result, "queued")
        later = shop.quick.delay()
        wait_until(lambda: record(app, later).publish_count > 0, timeout=DEADLINE)
    assert record(app, later).claims == 0, "who shuts down starts nothing"
    with working(app):
        row = over(app, result)
        assert over(app, later).decoded_result() == "quick"

    assert (row.state, row.decoded_result(), row.claims) == ("succeeded", "second", 2)
    assert (row.retries, row.losses, row.failure) == (0, 0, None)
    assert verbs(app, result) == ["submit", "claim", "wait", "release", "claim", "succeed"]
    told = events(app, result)[2].reason
    assert told.startswith("the worker w")
    assert told.endswith(" shuts down")
    assert all(isinstance(e, Draining) for e in shop.raised)
    assert shop.drains == [False, True]


def test_a_remote_shutdown_drains_too(app, shop):
    """No signal tells of that one."""
    with working(app):
        result = shop.task.delay()
        shop.await_body()
        app.control.shutdown()
        reached(app, result, "queued", "waiting")

    assert [type(e) for e in shop.raised] == [Draining]


def test_a_drain_is_no_wait_of_the_tasks_own(app):
    """How long it has waited for a condition goes on counting (PROTOCOL 17)."""
    seen = []

    @app.task(base=DurableTask, bind=True)
    def waits(self):
        seen.append(column(app, self.request.id, "waits"))
        if self.fence == 2:
            raise Draining("as if")
        if self.fence < 4:
            self.wait("not yet", retry_in=0, give_up_after=600)
        return "done"

    with working(app):
        row = over(app, waits.delay())

    assert row.decoded_result() == "done"
    assert seen == [0, 1, 1, 2]
