"""Submitting from many threads, as a web server does."""

from __future__ import annotations

import threading

from celery.result import task_join_will_block

from celery_durable import DurableTask
from tests.worker.kit import count, on_redis


def test_submitting_does_not_forbid_other_threads_to_wait_for_results(results, broker_url):
    """Celery's own guard against waiting within a task is one flag per process."""

    @results.task(base=DurableTask)
    def work(n): ...

    work.delay(0)
    blocked = []

    def submit():
        for n in range(20):
            work.delay(n)
            blocked.append(task_join_will_block())

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not any(blocked)
    assert not task_join_will_block()
    assert (count(results), len(on_redis(broker_url))) == (81, 81)
