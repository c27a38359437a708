"""Cancelling: by Celery's own revoke, by the ledger; told to whoever waits, and never thrown back and forth."""

from __future__ import annotations

import pytest
from celery import chord
from celery.exceptions import TaskRevokedError

from celery_durable import DurableTask, ledger
from celery_durable.worker.request import DurableRequest
from tests.waiting import wait_until
from tests.worker.kit import Gate, count, on_redis, over, record, revoke, settled, verbs, working


@pytest.fixture
def shop(results):
    gate = Gate()
    gate.ran = []

    @results.task(base=DurableTask, name="shop.hold")
    def hold(tag):
        gate.ran.append(tag)
        if tag == "hold":
            gate.hold()
        return tag

    gate.task = hold
    return gate


def test_a_stock_revoke_of_a_queued_task(results, shop, broker_url):
    with working(results, pool="threads", concurrency=1):
        assert results.control.cancel_consumer("celery", reply=True, limit=1, timeout=30)
        second = shop.task.delay("never")
        revoke(results, second.id)
        assert results.control.add_consumer("celery", reply=True, limit=1, timeout=30)
        row = settled(results, second)
        assert over(results, shop.task.delay("last")).state == "succeeded"

    assert (row.state, row.claims, second.state) == ("cancelled", 0, "REVOKED")
    assert verbs(results, second) == ["submit", "cancel"]
    assert record(results, second).publish_count <= 2, "it is not rung for ever"
    assert shop.ran == ["last"]
    assert on_redis(broker_url) == []


def test_what_was_revoked_is_not_held_to_lie_in_the_worker(results, shop, monkeypatch):
    """The outcome that is owed has to be rung at once, though the event loop may hold the request a little longer."""
    kept = []
    monkeypatch.setattr(DurableRequest, "_announce_revoked", _keeping(kept, DurableRequest._announce_revoked))
    with working(results):
        revoke(results, "mine")
        settled(results, shop.task.apply_async(("never",), task_id="mine"))
    assert kept


def _keeping(kept, method):
    def announce(self, *args):
        kept.append(self)
        return method(self, *args)

    return announce


def test_a_stock_revoke_before_the_worker_has_seen_the_task(results, shop):
    with working(results):
        revoke(results, "mine")
        result = shop.task.apply_async(("never",), task_id="mine")
        row = settled(results, result)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=30)

    assert (row.state, shop.ran) == ("cancelled", [])


def test_a_cancel_by_the_ledger_is_told(results, shop):
    result = shop.task.delay("never")
    assert ledger(results).cancel(result.id, "not wanted any more") == "cancelled"
    assert ledger(results).cancel(result.id, "again") == "cancelled"
    with working(results):
        with pytest.raises(TaskRevokedError, match="not wanted any more"):
            result.get(timeout=30)
        row = settled(results, result)

    assert (row.cancel_reason, shop.ran) == ("not wanted any more", [])
    assert verbs(results, result) == ["submit", "cancel"]


def test_a_cancelled_part_of_a_chord_is_told(results, shop):
    @results.task(base=DurableTask)
    def total(parts): ...

    waiting = chord([shop.task.s("a"), shop.task.s("b").set(task_id="part")])(total.s())
    ledger(results).cancel("part", "not wanted")
    with working(results), pytest.raises(Exception, match="not wanted"):
        waiting.get(timeout=30)

    assert shop.ran == ["a"]


def test_a_cancel_of_a_running_task_is_a_flag_that_a_failure_obeys(results):
    gate = Gate()

    @results.task(base=DurableTask, bind=True)
    def work(self):
        gate.hold()
        raise self.retry(countdown=0)

    with working(results):
        result = work.delay()
        gate.await_body()
        assert ledger(results).cancel(result.id, "stop") == "running"
        gate.let_go()
        row = settled(results, result)
        wait_until(lambda: result.state == "REVOKED", timeout=30)

    assert (row.state, row.claims, row.cancel_reason) == ("cancelled", 1, "stop")


def test_a_cancelled_task_can_be_replayed(results, shop):
    result = shop.task.delay("again")
    ledger(results).cancel(result.id, "by mistake")
    with working(results):
        settled(results, result)
        assert ledger(results).replay(result.id, "wanted after all")
        assert not ledger(results).replay(result.id), "it is not dead or cancelled any more"
        assert settled(results, result).decoded_result() == "again"
        wait_until(lambda: result.state == "SUCCESS", timeout=30)


def test_revoke_of_a_finished_task_changes_nothing(results, shop):
    with working(results):
        result = shop.task.delay("done")
        assert result.get(timeout=30) == "done"
        settled(results, result)
        revoke(results, result.id)
        assert shop.task.delay("next").get(timeout=30) == "next"

    assert (record(results, result).state, result.state, count(results)) == ("succeeded", "SUCCESS", 2)
