"""A sandbox for an app: time that is moved, crashes that are left so, assertions that say why."""

from __future__ import annotations

import pytest

from celery_durable import DurableTask


@pytest.fixture
def add_task(durable):
    def add(body):
        return durable.app.task(base=DurableTask, bind=True, shared=False)(body)

    return add


def test_waits_come_due_as_the_clock_is_moved(durable, durable_effects, add_task):
    @add_task
    def export(self):
        if not durable_effects.count("file"):
            self.wait("the file has not arrived", retry_in=600)
        return "exported"

    result = export.delay()
    durable.work()
    durable.assert_waiting(result, reason="the file has not arrived")
    durable.advance(500)
    assert durable.work() == 0
    durable_effects.add("file")
    durable.advance(101)
    durable.work()

    durable.assert_succeeded(result, "exported")


def test_a_lease_passes_as_the_clock_is_moved(durable, durable_effects, add_task):
    @add_task
    def charge(self):
        durable_effects.add("charge")

    result = durable.crash(charge, at="after the body", reset=durable_effects.clear)
    assert durable.record(result).state == "running"
    assert durable.work() == 0
    durable.advance(31)
    durable.work()

    durable.assert_succeeded(result)
    assert durable_effects.count("charge") == 2
    assert durable.record(result).losses == 1


def test_an_assertion_that_fails_says_why(durable, add_task):
    @add_task
    def charge(self):
        raise ValueError("card refused")

    result = charge.delay()
    with pytest.raises(AssertionError, match="is queued, not succeeded"):
        durable.assert_succeeded(result)
    durable.work()

    with pytest.raises(AssertionError, match=r"is dead, not succeeded: .*card refused"):
        durable.assert_succeeded(result)
    with pytest.raises(AssertionError, match="is dead, not waiting"):
        durable.assert_waiting(result)
    with pytest.raises(AssertionError, match=r"kind '.*', not 'poison'"):
        durable.assert_dead(result, kind="poison")
    durable.assert_dead(result)


def test_a_real_worker_runs_in_the_sandbox(request, add_task):
    @add_task
    def charge(self, cents):
        return cents * 2

    request.getfixturevalue("durable_worker")  # it starts with the tasks that are there
    assert charge.delay(21).get(timeout=30) == 42
