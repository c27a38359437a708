"""What a body may wait for: conditions, times, events, preconditions; and what an operator holds back."""

from __future__ import annotations

import socket
from datetime import datetime, timedelta, timezone

import pytest

from celery_durable import DurableTask, ledger
from celery_durable.control import TaskWaiting
from celery_durable.errors import WaitTimeout
from celery_durable.waits import PathExists, Predicate, Reachable
from tests.worker.kit import (
    alter,
    clock,
    column,
    events,
    on_redis,
    over,
    reached,
    record,
    settled,
    the_ledger,
    verbs,
    working,
)


def again(app, ref):
    """Let the time come at which it is looked at."""
    alter(app, ref, wake_at=1)


def failures(app, ref):
    return the_ledger(app).failures(record(app, ref).id)


def test_a_wait_is_told_and_holds_nothing(results, broker_url):
    ready = []

    @results.task(base=DurableTask, bind=True)
    def picky(self):
        if not ready:
            self.wait("the rates have not arrived", retry_in=600, give_up_after=3600)
        return "done"

    with working(results, concurrency=1):
        first, second = picky.delay(), picky.delay()  # one slot, and both wait
        row = reached(results, first, "waiting")
        reached(results, second, "waiting")
        assert (row.wait_kind, row.wait_reason, row.retries) == ("condition", "the rates have not arrived", 0)
        assert abs(row.wake_at - clock(results) - 600e6) < 60e6
        assert abs(row.give_up_at - row.waiting_from - 3600e6) < 60e6
        assert on_redis(broker_url) == []
        again(results, first)
        assert reached(results, first, "waiting").retries == 0
        ready.append(True)
        again(results, first)
        assert first.get(timeout=30) == "done"
    assert (record(results, first).retries, failures(results, first)) == (0, [])


def test_a_wait_until_a_time(results):
    @results.task(base=DurableTask, bind=True)
    def patient(self):
        self.wait("later", until=datetime.now(timezone.utc) + timedelta(seconds=900))

    with working(results):
        row = reached(results, patient.delay(), "waiting")
    assert abs(row.wake_at - clock(results) - 900e6) < 60e6


def test_giving_up_is_a_failure_of_kind_timeout(results):
    @results.task(base=DurableTask, bind=True)
    def hopeless(self):
        self.wait("the rates have not arrived", retry_in=600, give_up_after=3600)

    with working(results):
        result = hopeless.delay()
        reached(results, result, "waiting")
        alter(results, result, wake_at=1, waiting_from=clock(results) - 4_000_000_000)
        with pytest.raises(WaitTimeout, match="gave up waiting: the rates have not arrived"):
            result.get(timeout=30)
        row = settled(results, result)
    assert (row.state, row.failure_kind, row.retries) == ("dead", "timeout", 0)
    [failure] = failures(results, result)
    assert (failure.kind, failure.message) == ("timeout", "gave up waiting: the rates have not arrived")


@pytest.mark.parametrize("caught", [Exception, BaseException])
def test_a_swallowed_wait_waits_all_the_same(results, caught):
    @results.task(base=DurableTask, bind=True)
    def careless(self):
        try:
            self.wait("for it")
        except caught:
            return "wrong"

    with working(results):
        assert reached(results, careless.delay(), "waiting").wait_reason == "for it"


def test_outside_of_a_run_there_is_nothing_to_wait_in(results):
    @results.task(base=DurableTask, bind=True)
    def waits(self, how):
        {"wait": lambda: self.wait("a"), "sleep": lambda: self.sleep(1, "b"),
         "event": lambda: self.wait_for_event("c", timeout=1)}[how]()  # fmt: skip

    for how in ("wait", "sleep", "event"):
        with pytest.raises(TaskWaiting):
            waits(how)


def test_a_sleep_is_slept_once_whatever_comes_after(results):
    ran = []

    @results.task(base=DurableTask, bind=True, retry_backoff=False, default_retry_delay=0)
    def sleeper(self):
        ran.append("start")
        for _ in range(2):
            self.sleep(600, "let the replicas catch up")
        ran.append("slept")
        if ran.count("slept") == 1:
            raise ConnectionError("away")
        return "done"

    with working(results):
        result = sleeper.delay()
        for number in (1, 2):
            row = reached(results, result, "waiting")
            assert (row.wait_kind, row.wait_reason, ran) == ("sleep", "let the replicas catch up", ["start"] * number)
            assert abs(row.wake_at - clock(results) - 600e6) < 60e6
            kept = the_ledger(results)
            over_now = kept.t.step.update().where(kept.t.step.c.task_row == row.id).values(finished_at=1)
            kept.db.run(lambda c, q=over_now: c.execute(q))
            again(results, result)
            reached(results, result, "waiting", "succeeded") if number == 2 else _next_sleep(results, result)
        assert result.get(timeout=30) == "done"
    assert ran == ["start", "start", "start", "slept", "start", "slept"]
    assert record(results, result).retries == 1


def _next_sleep(app, ref):
    from tests.waiting import wait_until

    wait_until(lambda: verbs(app, ref).count("wait") == 2, 30, "it does not sleep again")


def test_an_event_before_the_wait_is_not_lost_and_one_after_wakes(results):
    @results.task(base=DurableTask, bind=True)
    def approved(self):
        return self.wait_for_event("approved", timeout=3600)

    early = approved.delay()
    api = ledger(results)
    assert api.send_event(early.id, "approved", {"by": "ann"}) is True
    assert api.send_event(early.id, "approved", {"by": "bob"}) is False  # the first write wins
    with working(results):
        assert early.get(timeout=30) == {"by": "ann"}
        assert "wait" not in verbs(results, early)
        late = approved.delay()
        row = reached(results, late, "waiting")
        assert (row.wait_kind, row.wait_event) == ("event", "approved")
        api.send_event(late.id, "approved", [1, None])
        assert late.get(timeout=30) == [1, None]
    assert [e.verb for e in events(results, late)].count("event") == 1


def test_an_event_that_does_not_come_raises_in_the_body(results):
    @results.task(base=DurableTask, bind=True)
    def approved(self):
        try:
            return self.wait_for_event("approved", timeout=600)
        except WaitTimeout as exc:
            return f"alone: {exc}"

    with working(results):
        result = approved.delay()
        reached(results, result, "waiting")
        alter(results, result, wake_at=1, give_up_at=1)
        assert result.get(timeout=30) == "alone: event 'approved' did not arrive within 600 s"


def test_preconditions_are_looked_at_before_the_body_runs(results, tmp_path):
    ran, closed = [], []
    down = socket.socket()
    down.bind(("127.0.0.1", 0))

    @results.task(
        base=DurableTask,
        requires=[
            PathExists(f"{tmp_path}/{{day}}.csv", retry_in=600),
            Reachable("127.0.0.1:{port}", retry_in=600),
            Predicate(lambda day: bool(closed), "the market is open", retry_in=600),
        ],
        requires_within=3600,
    )
    def report(day, port):
        ran.append(day)
        return day

    def reason(result):
        row = reached(results, result, "waiting")
        assert (row.wait_kind, ran) == ("condition", [])
        return row.wait_reason

    def next_reason(result, before):
        from tests.waiting import wait_until

        again(results, result)
        wait_until(lambda: column(results, result, "wait_reason") not in {None, before}, 30)
        return reason(result)

    with working(results), down:
        port = down.getsockname()[1]
        result = report.delay("monday", port=port)
        first = reason(result)
        assert first == f"{tmp_path}/monday.csv does not exist"
        (tmp_path / "monday.csv").touch()
        second = next_reason(result, first)
        assert second.startswith(f"127.0.0.1:{port} is not reachable: ")
        down.listen()
        assert next_reason(result, second) == "the market is open"
        closed.append(True)
        again(results, result)
        assert result.get(timeout=30) == "monday"

        never = report.delay("tuesday", port)
        reached(results, never, "waiting")
        alter(results, never, wake_at=1, waiting_from=clock(results) - 4_000_000_000)
        dead = over(results, never)
    assert (dead.failure_kind, dead.failure.message) == (
        "timeout", f"gave up waiting: {tmp_path}/tuesday.csv does not exist",
    )  # fmt: skip
    assert ran == ["monday"]


@pytest.mark.parametrize("kind", ["task", "queue"])
def test_a_pause_holds_work_back_with_who_and_why_until_it_is_resumed(results, kind):
    @results.task(base=DurableTask, name="shop.pay")
    def pay():
        return "paid"

    api, target = ledger(results), {"task": "shop.pay", "queue": "celery"}[kind]
    with working(results):
        before = pay.delay()
        assert before.get(timeout=30) == "paid"
        the_ledger(results).pause(kind, target, "the bank is closed", until=None, actor="ann")
        result = pay.delay()
        row = reached(results, result, "waiting")
        assert (row.wait_kind, row.claims) == ("paused", 0)
        assert row.wait_reason == f"{kind} '{target}' is paused by ann: the bank is closed"
        assert [p.reason for p in api.pauses()] == ["the bank is closed"]
        the_ledger(results).resume(kind, target, actor="bob")
        assert result.get(timeout=30) == "paid"
