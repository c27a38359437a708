"""The app of every benchmark: ``make`` builds it for one side, a worker's process builds it from its environment."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery

from celery_durable import DurableTask

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The list in Redis to which ``bench.mark`` pushes.
MARKS = "bench.marks"


def make(settings: Mapping[str, str]) -> Celery:
    """Make an app of ``BENCH_BASE`` (durable or stock) and URLs: broker, ledger, backend, marks."""
    app = Celery("benchmarks.app", broker=settings["BENCH_BROKER"], backend=settings.get("BENCH_BACKEND") or None)
    app.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True, task_ignore_result=not settings.get("BENCH_BACKEND"),
    )  # fmt: skip
    options: dict[str, Any] = {"shared": False}  # several apps of a benchmark live in one process
    if settings["BENCH_BASE"] == "durable":
        app.conf.durable_ledger_url = settings["BENCH_LEDGER"]
        options["base"] = DurableTask
    marks = redis.Redis.from_url(settings["BENCH_MARKS"])

    @app.task(name="bench.nothing", **options)
    def nothing(n: int) -> int:
        return n

    @app.task(name="bench.pause", **options)
    def pause(n: int, seconds: float) -> int:
        time.sleep(seconds)
        return n

    @app.task(name="bench.mark", **options)
    def mark(n: int) -> int:
        """Tell the benchmark that the queue has been worked off as far as this."""
        marks.rpush(MARKS, n)
        return n

    return app


if "BENCH_BASE" in os.environ:
    app = make(os.environ)
