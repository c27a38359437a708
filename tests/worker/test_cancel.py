"""Cancelling a running task: its next check raises, whatever the pool; swallowed or not, the row ends cancelled."""

from __future__ import annotations

import time

import pytest

from celery_durable import BadRequest, Cancelled, DurableTask, ledger
from tests.waiting import wait_until
from tests.worker.kit import (
    DEADLINE,
    Gate,
    events,
    over,
    record,
    settled,
    statements,
    the_ledger,
    working,
)


def await_told(gate, app, result):
    """Cancel a running task and let its body go on once its worker has told it."""
    gate.await_body()
    assert ledger(app).cancel(result.id, "not wanted any more") == "running"


@pytest.fixture
def results(make, broker_url):
    """Renewals are far apart: whoever hears of a cancellation here, did not hear of it by one."""
    return make(result_backend=broker_url, durable_lease=600)


@pytest.fixture
def patient(results):
    """A task that looks for a cancellation until it comes, in the way that its argument names."""
    gate = Gate()
    gate.raised = []

    @results.task(base=DurableTask, bind=True, name="shop.patient")
    def patient(self, how="pass"):
        gate.entered.set()
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                self.check()
            except Exception:  # noqa: BLE001 - as users do
                gate.raised.append("swallowed")
            except BaseException as exc:
                gate.raised.append(exc)
                if how == "pass":
                    raise
                if how == "return":
                    return "done all the same"
                if how == "fail":
                    raise ValueError("clumsy") from exc
                if how == "again":
                    self.wait("something else")
            time.sleep(0.01)
        return "never told"

    gate.task = patient
    return gate


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_running_task_is_told_at_its_next_check(results, patient, pool):
    with working(results, pool=pool, concurrency=1):
        result = patient.task.delay()
        await_told(patient, results, result)
        row = over(results, result)
        wait_until(lambda: result.state == "REVOKED", timeout=DEADLINE)

    assert (row.state, row.cancel_reason, row.claims) == ("cancelled", "not wanted any more", 1)
    assert [e.verb for e in events(results, result)] == ["submit", "claim", "cancel", "cancel"]
    assert [str(e) for e in patient.raised] == ["not wanted any more"]
    assert isinstance(patient.raised[0], Cancelled)


@pytest.mark.parametrize("how", ["return", "fail", "again"])
def test_a_body_that_swallows_it_ends_cancelled_all_the_same(results, patient, how):
    """PROTOCOL 16: the run remembers, and whatever it asks for next raises it again."""
    with working(results):
        result = patient.task.delay(how)
        await_told(patient, results, result)
        row = settled(results, result)

    assert (row.state, row.result, row.failure) == ("cancelled", None, None)
    assert all(isinstance(e, Cancelled) for e in patient.raised)


def test_a_task_may_cancel_itself(results):
    @results.task(base=DurableTask)
    def gives_up():
        raise Cancelled("nothing left to do")

    with working(results):
        row = settled(results, gives_up.delay())

    assert (row.state, row.cancel_reason, row.failure) == ("cancelled", "nothing left to do", None)


def test_a_cancelled_task_is_replayed_without_its_flag(results, patient):
    with working(results):
        result = patient.task.delay()
        await_told(patient, results, result)
        over(results, result)
        patient.entered.clear()
        assert ledger(results).replay(result.id, "wanted after all")
        patient.await_body()
        assert record(results, result).cancel_requested_at is None
        assert len(patient.raised) == 1
        ledger(results).cancel(result.id, "no")
        assert over(results, result).state == "cancelled"


def test_a_check_outside_a_run_does_nothing(app):
    @app.task(base=DurableTask, bind=True)
    def plain(self):
        self.check()
        self.progress(1, 2, "half")
        return self.draining

    assert plain() is False
    assert plain.apply().get() is False


def test_terminate_needs_a_pool_of_processes(results, patient):
    with working(results, pool="threads"):
        result = patient.task.delay()
        patient.await_body()
        with pytest.raises(BadRequest, match="in a pool of threads: only a prefork pool can end one running task"):
            ledger(results).cancel(result.id, "now", terminate=True)
        assert record(results, result).cancel_requested_at is None, "nothing was changed"
        ledger(results).cancel(result.id, "now")
        assert settled(results, result).state == "cancelled"


def test_a_check_costs_no_statement(app):
    took = []

    @app.task(base=DurableTask, bind=True)
    def checks(self):
        self.check()
        with statements(app, mine=True) as sent:
            began = time.thread_time()
            for _ in range(10_000):
                self.check()
            took.append((time.thread_time() - began) / 10_000)
        return sent

    with working(app, pool="solo"):
        assert over(app, checks.delay()).decoded_result() == []
    print(f"a check takes of the processor {took[0] * 1e6:.2f} us")


# The lease.


def test_a_lease_shorter_than_the_setting_is_renewed_in_time(make):
    app = make(durable_lease=600)
    gate = Gate()

    @app.task(base=DurableTask, bind=True, lease=6)
    def held(self):
        gate.hold()
        self.check()
        return self.fence

    with working(app):
        result = held.delay()
        gate.await_body()
        first = record(app, result).lease_expires_at
        wait_until(lambda: record(app, result).lease_expires_at > first, timeout=DEADLINE)
        gate.let_go()
        assert over(app, result).decoded_result() == 1


def test_a_body_without_a_board_asks_the_ledger(results, patient, monkeypatch):
    """As in a spawned pool process, which shares no memory with its parent; here for want of a line."""
    monkeypatch.setattr("celery_durable.board.Board.take", lambda *_: -1)
    monkeypatch.setattr("celery_durable.watch.LOOK_EVERY", 0.05)
    with working(results):
        result = patient.task.delay()
        await_told(patient, results, result)
        row = settled(results, result)
    assert (row.state, str(patient.raised[0])) == ("cancelled", "not wanted any more")
    assert the_ledger(results).verify() == []
