"""Results and chords in every database: what is counted is counted once, whoever comes at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_durable.ledger import Ledger, Part, Stored
from celery_durable.settings import Settings


@pytest.fixture
def kept(ledger_url):
    ledger = Ledger.open(Settings(ledger_url=ledger_url))
    ledger.migrate()
    yield ledger
    ledger.db.dispose()


def test_parts_that_return_at_once_are_counted_once_each(kept):
    """Each of twelve parts returns twice, all at the same time: one of them is asked to send the body."""
    parts = [Part(f"part-{n}", 11 - n, "SUCCESS", str(n).encode(), "application/json") for n in range(12)]
    barrier = threading.Barrier(4)

    def come_back(part):
        return part.task_id, kept.part_returned("group", part)

    def begin(_):
        barrier.wait()
        kept.begin_chord("group")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(begin, range(4)))
        kept.size_chord("group", 12)
        asked = [task_id for task_id, now in pool.map(come_back, parts * 2) if now]

    assert len(set(asked)) == 1, "the part that completed the chord, each time it returns"
    assert [p.position for p in kept.parts("group")] == list(range(12))
    assert kept.part_returned("group", next(p for p in parts if p.task_id == asked[0]))
    kept.close_chord("group", "sent")
    assert not kept.part_returned("group", parts[0])
    assert kept.parts("group") == []


def test_a_part_that_was_added_is_waited_for(kept):
    kept.begin_chord("group")
    kept.add_part("group", "added")
    kept.add_part("group", "added")
    kept.size_chord("group", 1)
    assert not kept.part_returned("group", Part("first", 0, "SUCCESS"))
    assert kept.part_returned("group", Part("added", 1, "SUCCESS"))


def test_results_beside_the_rows(kept):
    assert kept.seen(["a"]) == {}
    with ThreadPoolExecutor(4) as pool:  # a first write by several at once is one row
        list(pool.map(lambda n: kept.keep_result("task", "a", Stored("FAILURE", b"%d" % n, "text/plain")), range(8)))
    assert kept.keep_result("task", "a", Stored("SUCCESS", b"won", "text/plain"), unless={"SUCCESS"})
    assert not kept.keep_result("task", "a", Stored("FAILURE", b"late", "text/plain"), unless={"SUCCESS"})
    assert (kept.seen(["a"])["a"].stored.state, kept.seen(["a"])["a"].stored.content) == ("SUCCESS", b"won")
    kept.forget_result("a")
    assert kept.seen(["a"]) == {}


def test_a_group_is_kept_and_deleted(kept):
    kept.keep_result("group", "a", Stored("SUCCESS", b"[]", "application/json"))
    assert kept.group("a").content == b"[]"
    assert kept.seen(["a"]) == {}
    kept.drop_result("group", "a")
    assert kept.group("a") is None


def test_what_is_old_goes(kept):
    kept.keep_result("group", "a", Stored("SUCCESS", b"[]", "application/json"))
    kept.begin_chord("group")
    kept.part_returned("group", Part("part", 0, "SUCCESS"))
    assert kept.expire_results(3600) == 0
    assert kept.expire_results(-1) == 1
    assert (kept.group("a"), kept.chord_state("group")) == (None, "open"), "a chord may take longer than results last"
    kept.close_chord("group", "failed")
    kept.expire_results(-1)
    assert (kept.chord_state("group"), kept.parts("group")) == (None, [])
