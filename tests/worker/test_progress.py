"""Progress: written at most once a second and at the end, fenced, and never a reason for a body to fail."""

from __future__ import annotations

import json
import time

import pytest

from celery_durable import DurableTask
from celery_durable.errors import LedgerUnavailable
from celery_durable.progress import AFTER_FAILURE, Progress
from tests.worker.kit import over, record, statements, working


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_at_most_one_write_a_second_and_the_last_one_at_the_end():
    clock, written = Clock(), []
    progress = Progress(lambda content: written.append(json.loads(content)["done"]), clock=clock)
    for n in range(1000):
        progress.note(n, 1000, "")
        clock.now += 0.01
    progress.flush()
    progress.flush()

    assert written[0] == 0
    assert written[-1] == 999
    assert 10 <= len(written) <= 12


def test_what_the_ledger_does_not_take_is_dropped_and_not_tried_at_once():
    clock, tried = Clock(), []

    def down(content):
        tried.append(json.loads(content)["done"])
        raise LedgerUnavailable("away")

    progress = Progress(down, clock=clock)
    for n in range(100):
        progress.note(n, None, "")
        clock.now += AFTER_FAILURE / 50
    assert tried == [0, 50]


@pytest.mark.parametrize(("done", "total"), [(-1, 2), (float("nan"), 2), ("1", 2), (True, 2), (1, float("inf"))])
def test_what_is_no_number_is_refused(done, total):
    with pytest.raises(ValueError, match="progress is told in numbers from 0 on"):
        Progress(lambda _: None).note(done, total, "")


def test_a_task_tells_how_far_it_is(app):
    seen = []

    @app.task(base=DurableTask, bind=True, redact=["card"])
    def reads(self, card):
        began = time.monotonic()
        with statements(app) as sent:
            for n in range(500):
                self.progress(n, 500, f"row {n} of {card}")
        seen.append([s for s in sent if s.startswith("UPDATE") and "progress" in s])
        seen.append(time.monotonic() - began)
        seen.append(record(app, self.request.id).as_json()["progress"])
        return n

    with working(app):
        row = over(app, reads.delay("4111-1111"))

    writes, took, first = seen
    assert first["total"] == 500
    assert "4111" not in first["note"]
    assert 1 <= len(writes) <= 1 + took, "bounded, however often it is told"
    assert row.as_json()["progress"]["done"] == 499
    assert row.as_json()["progress"]["at"] >= first["at"]
