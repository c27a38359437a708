"""What a worker consumes changes while it runs: `why` knows."""

from __future__ import annotations

from celery_durable import DurableTask
from celery_durable.explain import explain, look_up
from tests.waiting import wait_until
from tests.worker.kit import DEADLINE, record, the_ledger, working


def why(app, result) -> str:
    row = record(app, result)
    return explain(row, look_up(the_ledger(app), row)).reason


def test_why_knows_of_queues_that_are_added_and_cancelled(app):
    """Celery#8030: the worker answers pings, and takes nothing."""

    @app.task(base=DurableTask, name="shop.pack")
    def pack(): ...

    queue = app.conf.task_default_queue
    with working(app):
        ask = {"reply": True, "timeout": DEADLINE, "limit": 1}
        assert app.control.cancel_consumer(queue, **ask)
        result = pack.delay()
        other = pack.apply_async(queue="mail")
        nobody = f"no live worker consumes queue '{queue}'"
        wait_until(lambda: why(app, result) == nobody, DEADLINE, "why does not see it")
        assert why(app, other) == "no live worker consumes queue 'mail'"

        assert app.control.add_consumer("mail", **ask)
        wait_until(lambda: record(app, other).state == "succeeded", DEADLINE)
        wait_until(lambda: [w.queues for w in the_ledger(app).workers()] == [("mail",)], DEADLINE)
        assert record(app, result).state == "queued"
