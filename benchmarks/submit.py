"""``.delay()`` and ``submit_many`` against stock ``.delay()``: ``python -m benchmarks.submit``."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from celery import Celery

from benchmarks.rounds import Sample, compare, cpu_seconds
from celery_durable import DurableTask
from celery_durable.ledger import Ledger
from celery_durable.wiring import plugin
from tests.services import Postgres, Redis

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = 500


def main() -> None:
    """Measure on private servers."""
    with Postgres() as postgres, Redis() as redis:
        app = Celery("submit", broker=redis.db())
        app.conf.durable_ledger_url = postgres.database()

        @app.task(base=DurableTask)
        def durable(n: int) -> None: ...

        @app.task
        def stock(n: int) -> None: ...

        Ledger.open(plugin(app).settings).migrate()
        server = [postgres.processes[0].pid]

        def timed(submit: Callable[[], object]) -> Sample:
            redis.flush()
            began, ours, theirs = time.perf_counter(), time.process_time(), cpu_seconds(server)
            submit()
            took, ours = time.perf_counter() - began, time.process_time() - ours
            return Sample(CALLS / took, ours / CALLS * 1e6, (cpu_seconds(server) - theirs) / CALLS * 1e6)

        sides = {
            "stock .delay()": lambda: timed(lambda: [stock.delay(n) for n in range(CALLS)]),
            "durable .delay()": lambda: timed(lambda: [durable.delay(n) for n in range(CALLS)]),
            "durable submit_many": lambda: timed(lambda: durable.submit_many([(n,) for n in range(CALLS)])),
        }
        compare(f"submit, {CALLS} calls", sides, against="stock .delay()")
        plugin(app).ledger.db.dispose()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", ".")
    main()
