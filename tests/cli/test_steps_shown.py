"""`show` tells which steps a task has done, and none of its secrets."""

from __future__ import annotations

from celery_durable.steps import Content
from tests.ledger import kit

JSON = "application/json"


def test_show_tells_the_steps_that_are_done(shop, ledger):
    claim = kit.running(ledger, "order-1")
    ledger.record_step(claim, "charge", Content(b'{"id": "ch_1", "password": "hunter2!"}', JSON), seconds=1, actor="w")
    ledger.record_step(claim, "book", Content(b"\x80\x05K*.", "application/x-pickle;binary"), seconds=0, actor="w")

    first, second = shop.durable("show", "order-1", "--json").json["steps"]

    assert set(first) == {"name", "claim", "result", "started_at", "finished_at"}
    assert (first["name"], first["claim"]) == ("charge", 1)
    assert first["result"] == {"id": "ch_1", "password": "[redacted]"}
    assert first["started_at"] < first["finished_at"]
    assert second["result"] == {"content_type": "application/x-pickle;binary", "bytes": 5}
    page = shop.durable("show", "order-1").out
    assert "charge" in page
    assert "ch_1" in page
    assert "hunter2" not in page


def test_a_task_without_steps_has_none_to_show(shop, ledger):
    kit.queued(ledger, "order-1")
    assert shop.durable("show", "order-1", "--json").json["steps"] == []
    assert "result" not in shop.durable("show", "order-1").out
