"""The app of every benchmark, made of environment variables."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import redis
from celery import Celery

from celery_durable import DurableTask

if TYPE_CHECKING:
    from collections.abc import Mapping


def make(settings: Mapping[str, str]) -> Celery:
    """Make an app: ``BENCH_BROKER``, ``BENCH_LEDGER``, ``BENCH_BACKEND`` (URLs), ``BENCH_BASE`` (durable or stock)."""
    app = Celery("benchmarks.app", broker=settings["BENCH_BROKER"], backend=settings.get("BENCH_BACKEND") or None)
    app.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True, task_ignore_result=not settings.get("BENCH_BACKEND"),
    )  # fmt: skip
    durable = settings["BENCH_BASE"] == "durable"
    if durable:
        app.conf.durable_ledger_url = settings["BENCH_LEDGER"]
    counter = redis.Redis.from_url(settings["BENCH_COUNTER"])
    options = {"base": DurableTask} if durable else {}

    @app.task(name="bench.nothing", **options)
    def nothing(n: int) -> int:
        return n

    @app.task(name="bench.last", **options)
    def last(n: int) -> int:
        """Tell the benchmark that a task at the end of the queue has run."""
        counter.incr("done")
        return n

    @app.task(name="bench.pause", **options)
    def pause(seconds: float) -> None:
        time.sleep(seconds)

    return app


if "BENCH_BASE" in os.environ:
    app = make(os.environ)
