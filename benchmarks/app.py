"""The app of every benchmark: ``make`` builds it for one side, a worker's process builds it from its environment."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery, signals

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

    if "BENCH_LATENCIES" in settings:
        _tell_latencies(settings["BENCH_LATENCIES"])
    return app


def _tell_latencies(folder: str) -> None:
    """Write down how long each task took from the time that its argument names until its result was stored."""
    files: dict[int, Any] = {}

    @signals.task_postrun.connect(weak=False)
    def over(args: Any, **_: Any) -> None:
        pid = os.getpid()
        if pid not in files:
            files[pid] = Path(folder, str(pid)).open("ab", buffering=0)  # noqa: SIM115 - as long as the process
        files[pid].write(struct.pack("d", time.time() - args[0]))


if "BENCH_BASE" in os.environ:
    app = make(os.environ)
