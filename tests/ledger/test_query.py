"""get, find, failures, events, stats: what the ledger tells."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timezone

import pytest

from celery_durable.errors import NoSuchTask
from tests.ledger.kit import (
    SECOND,
    change,
    claimed,
    dead,
    fails,
    make_due,
    now,
    queued,
    retry,
    row_of,
    running,
    submission,
    succeed,
    succeeded,
    waiting,
)


def test_a_task_is_found_by_id_key_and_task_with_key(ledger):
    row = queued(ledger, "order-1")
    queued(ledger, "order-2")

    for ref in (row.task_id, "order-1", "shop.charge/order-1"):
        assert ledger.get(ref).id == row.row_id


def test_an_unknown_ref_says_so(ledger):
    with pytest.raises(NoSuchTask, match="'nobody'"):
        ledger.get("nobody")


def test_a_key_of_several_tasks_needs_the_task(ledger):
    queued(ledger, "order-1", task="shop.charge")
    ship = queued(ledger, "order-1", task="shop.ship")

    with pytest.raises(NoSuchTask, match=r"shop\.ship/order-1.*shop\.charge/order-1"):
        ledger.get("order-1")
    assert ledger.get("shop.ship/order-1").id == ship.row_id


def test_a_key_with_a_slash_is_found_as_it_is(ledger):
    row = queued(ledger, "2024/10")

    assert ledger.get("2024/10").id == row.row_id
    assert ledger.get("shop.charge/2024/10").id == row.row_id


def test_a_task_id_comes_before_a_key(ledger):
    row = queued(ledger, "order-1")
    queued(ledger, row.task_id, task="shop.ship")

    assert ledger.get(row.task_id).id == row.row_id


def test_a_key_means_its_holder_not_the_aliases(ledger):
    first = queued(ledger, "order-1")
    other = queued(ledger, "order-1", awaited=True)

    assert ledger.get("order-1").id == first.row_id
    assert ledger.get(other.task_id).id == other.row_id
    assert ledger.holder_of(ledger.get(other.task_id)).id == first.row_id
    assert ledger.holder_of(ledger.get("order-1")) is None


@pytest.mark.parametrize("other", ["ord-a", "ORD-Á", "ORD-a "])
def test_refs_are_compared_byte_by_byte(ledger, other):
    row = queued(ledger, "ORD-a")
    queued(ledger, other)

    assert ledger.get("ORD-a").id == row.row_id
    assert ledger.get(other).key == other


def test_the_json_of_a_record_is_the_contract(ledger):
    claim = running(ledger, "order-1", priority=5, root_id="root", parent_id="parent")
    row = row_of(ledger, claim.row_id)

    told = ledger.get("order-1").as_json()

    assert set(told) >= {
        "id", "task_id", "task", "key", "state", "queue", "priority", "root_id", "parent_id", "claims", "losses",
        "retries", "publish_count", "submitted_at", "submitted_by", "started_at", "finished_at", "lease", "wait",
        "failure", "result", "progress",
    }  # fmt: skip
    assert told["lease"]["owner"] == "worker-1"
    assert _micros(told["lease"]["expires_at"]) == pytest.approx(row.lease_expires_at, abs=1000)
    assert _micros(told["submitted_at"]) == pytest.approx(row.submitted_at, abs=1000)
    assert (told["wait"], told["failure"], told["finished_at"]) == (None, None, None)
    json.dumps(told)


def _micros(text):
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo == timezone.utc
    return moment.timestamp() * SECOND


def test_the_json_of_a_wait_and_its_last_failure(ledger):
    claim = running(ledger)
    ledger.settle(claim, fails(retry=retry()), actor="w")

    told = ledger.get(claim.task_id).as_json()

    assert told["lease"] is None
    assert (told["wait"]["kind"], told["wait"]["reason"]) == ("retry", "retry 1 of 20")
    assert told["wait"]["wake_at"] > told["wait"]["since"]
    assert set(told["failure"]) >= {
        "claim", "kind", "exception", "message", "traceback", "fingerprint", "retryable", "retry_at", "worker", "pid",
        "occurred_at",
    }  # fmt: skip
    assert told["failure"]["message"] == "card refused"


def test_only_the_last_of_several_failures_is_the_failure(ledger):
    claim = running(ledger)
    for _ in range(2):
        ledger.settle(claim, fails(retry=retry(0)), actor="w")
        make_due(ledger, claim.row_id, "wake_at")
        ledger.release(10, actor="sweep")
        claim = claimed(ledger, claim.task_id)

    last = ledger.failures(claim.row_id)[-1]
    assert len(ledger.failures(claim.row_id)) == 2
    assert ledger.get(claim.task_id).failure == last


def test_a_result_that_is_json_is_told_and_any_other_described(ledger):
    first, second = running(ledger), running(ledger)
    succeed(ledger, first, b'{"paid": true}')
    ledger.succeed(second, b"\x80\x04", "application/x-pickle", owes=False, actor="w", continuation_grace=1)

    assert ledger.get(first.task_id).decoded_result() == {"paid": True}
    assert ledger.get(second.task_id).decoded_result() == {
        "content_type": "application/x-pickle",
        "base64": base64.b64encode(b"\x80\x04").decode(),
    }


def test_find_lists_the_newest_first(ledger):
    made = [queued(ledger).row_id for _ in range(3)]

    assert [r.id for r in ledger.find(limit=2)] == made[:0:-1]


def test_find_filters(ledger):
    one = waiting(ledger, task="shop.ship", queue="slow")
    queued(ledger)

    for given in ({"state": "waiting"}, {"task": "shop.ship"}, {"queue": "slow"}, {"wait_kind": "scheduled"}):
        assert [r.id for r in ledger.find(**given)] == [one.row_id]
    assert ledger.find(state="waiting", queue="celery") == []


def test_the_history_is_told_oldest_first(ledger):
    claim = succeeded(ledger)

    events = ledger.events(claim.row_id)

    assert [e.verb for e in events] == ["submit", "claim", "succeed"]
    assert [e.at for e in events] == sorted(e.at for e in events)
    assert list(events[1].as_json()) == ["verb", "at", "from", "to", "claim", "actor", "reason"]
    assert (events[1].as_json()["from"], events[1].as_json()["to"]) == ("queued", "running")


def test_stats_count_states_and_queues(ledger):
    for make in (queued, queued, running, succeeded, dead):
        make(ledger)
    slow = queued(ledger, queue="slow")
    change(ledger, slow.row_id, submitted_at=now(ledger) - 100 * SECOND)

    stats = ledger.stats()

    assert stats["states"] == {
        "queued": 3, "running": 1, "waiting": 0, "succeeded": 1, "dead": 1, "cancelled": 0,
    }  # fmt: skip
    celery, slowly = stats["queues"]
    assert (celery["queue"], celery["queued"]) == ("celery", 2)
    assert (slowly["queue"], slowly["queued"]) == ("slow", 1)
    assert slowly["oldest_age_seconds"] == pytest.approx(100, abs=10)


def test_ahead_of_counts_earlier_rows_of_the_queue(ledger):
    for options in ({}, {}, {"queue": "slow"}):
        queued(ledger, **options)
    running(ledger)
    last = queued(ledger)

    assert ledger.ahead_of(ledger.get(last.task_id)) == 2


@pytest.mark.parametrize("text", ["ä🎉", "'; DROP TABLE durable_task; --", "100% %s :name ?", 'quote " back \\ slash'])
def test_any_text_comes_back_as_it_was(ledger, text):
    sub = submission(text, task_id=f"id {text}", queue=text, submitted_by=text)
    done = ledger.submit(sub)
    ledger.cancel_row(done.row_id, text, actor=text)

    record = ledger.get(f"id {text}")

    assert (record.key, record.queue, record.submitted_by, record.cancel_reason) == (text,) * 4
    assert ledger.events(done.row_id)[-1].reason == text
    assert ledger.get(text).id == done.row_id
