"""The rules of the protocol about leaving a body (14, 16), each with tests that need it."""

from __future__ import annotations

import time

import pytest

from celery_durable import Cancelled, DurableTask, LeaseLost, ledger
from celery_durable.control import TaskWaiting
from tests.worker.kit import DEADLINE, Gate, over, reached, settled, verbs, working


@pytest.fixture
def running(make):
    """Starts a task whose body asks for something again and again until that raises, then does as it likes."""
    app = make(durable_lease=600)
    gate = Gate()
    gate.app, gate.again = app, []

    @app.task(base=DurableTask, bind=True)
    def body(self, ask, then):
        asks = {
            "check": self.check,
            "wait": lambda: self.wait("never mind"),
            "sleep": lambda: self.sleep(600, "never mind"),
            "event": lambda: self.wait_for_event("never", timeout=600),
            "step": lambda: self.step("never", gate.again.append, "done"),
        }
        gate.entered.set()
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                self.check()
            except BaseException:  # noqa: BLE001 - the worst that a user can do
                break
            time.sleep(0.01)
        try:
            asks[ask]()
        except BaseException as exc:  # noqa: BLE001
            gate.again.append(exc)
        if then == "raise":
            raise ValueError("clumsy")
        return "done all the same"

    def start(ask="check", then="return"):
        result = body.delay(ask, then)
        gate.await_body()
        return result

    gate.start = start
    return gate


@pytest.mark.parametrize("then", ["return", "raise"])
def test_rule_14_a_body_that_is_told_ends_cancelled_whatever_it_does_then(running, then):
    with working(running.app):
        result = running.start(then=then)
        ledger(running.app).cancel(result.id, "stop")
        row = over(running.app, result)
    assert (row.state, row.cancel_reason, row.result, row.failure) == ("cancelled", "stop", None, None)


@pytest.mark.parametrize("ask", ["check", "wait", "sleep", "event", "step"])
def test_rule_16_whatever_a_body_asks_for_next_raises_again_what_it_swallowed(running, ask):
    with working(running.app):
        result = running.start(ask)
        ledger(running.app).cancel(result.id, "stop")
        row = over(running.app, result)
    assert row.state == "cancelled"
    assert [type(e) for e in running.again] == [Cancelled]


@pytest.mark.parametrize("after", ["check", "step"])
def test_rule_16_a_swallowed_wait_settles_the_run(app, after):
    again = []

    @app.task(base=DurableTask, bind=True)
    def body(self):
        for ask in (lambda: self.wait("rates are late", retry_in=600), self.check, lambda: self.step("s", list)):
            try:
                ask()
            except Exception as exc:  # noqa: BLE001
                again.append(type(exc))
        return "done all the same"

    with working(app):
        row = reached(app, body.delay(), "waiting")
    assert (row.wait_kind, row.wait_reason) == ("condition", "rates are late")
    assert again == [TaskWaiting] * 3


@pytest.mark.parametrize("ask", ["check", "step"])
def test_rule_16_nothing_is_done_once_the_lease_has_passed(make, monkeypatch, ask):
    app = make(durable_lease=1.5)
    refused = []
    monkeypatch.setattr("celery_durable.worker.leases.Leases.due", lambda _: False)

    @app.task(base=DurableTask, bind=True, max_losses=1000)
    def body(self):
        if self.fence > 1:
            return "second"
        deadline = time.monotonic() + DEADLINE
        while not refused and time.monotonic() < deadline:
            time.sleep(0.05)
            try:
                self.check() if ask == "check" else self.step(f"at {time.monotonic()}", list)
            except LeaseLost as exc:
                refused.append(str(exc))
        return "done all the same"

    with working(app):
        result = body.delay()
        row = settled(app, result)
    assert row.decoded_result() == "second"
    assert verbs(app, result)[:3] == ["submit", "claim", "lose"]
    assert "passed" in refused[0]
