"""How fast a full queue is worked off, no-op tasks, prefork -c 2: ``python -m benchmarks.drain``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import redis

from benchmarks import rig
from benchmarks.rounds import Sample, compare, cpu_seconds
from celery_durable.ledger import Ledger
from celery_durable.wiring import plugin
from tests.services import Postgres, Redis

if TYPE_CHECKING:
    from collections.abc import Callable

TASKS = 1500


def main() -> None:
    """Measure on private servers."""
    with Postgres() as postgres, Redis() as broker:
        database = postgres.database()

        def side(base: str, backend: str) -> Callable[[], Sample]:
            settings = {
                "BENCH_BROKER": broker.db(), "BENCH_COUNTER": broker.db(), "BENCH_LEDGER": database,
                "BENCH_BACKEND": backend, "BENCH_BASE": base,
            }  # fmt: skip
            app = rig.made(settings)
            if base == "durable":
                Ledger.open(plugin(app).settings).migrate()
            return lambda: drain(app, settings, rig.pids(postgres, broker))

        results = database.replace("postgresql+psycopg", "db+postgresql+psycopg")
        sides = {
            "stock, Redis results": side("stock", broker.db()),
            "durable, durable:// results": side("durable", "durable://"),
            "stock, database results": side("stock", results),
            "stock, no results": side("stock", ""),
            "durable, no results": side("durable", ""),
        }
        compare(f"drain, {TASKS} no-op tasks, prefork -c 2", sides, against="stock, Redis results")


def drain(app: Any, settings: dict[str, str], servers: list[int]) -> Sample:
    """Fill the queue, start a worker, and time it between the first and the last tenth."""
    counter = redis.Redis.from_url(settings["BENCH_COUNTER"])
    counter.delete("done")
    tasks = app.tasks
    tasks["bench.last"].delay(0)
    for n in range(TASKS):
        tasks["bench.nothing"].delay(n)
    tasks["bench.last"].delay(1)
    with rig.worker(settings) as process:
        rig.drained(lambda: int(counter.get("done") or 0), 1)
        began, ours, theirs = time.perf_counter(), cpu_seconds([process.pid]), cpu_seconds(servers)
        ended = rig.drained(lambda: int(counter.get("done") or 0), 2)
        ours, theirs = cpu_seconds([process.pid]) - ours, cpu_seconds(servers) - theirs
    return Sample(TASKS / (ended - began), ours / TASKS * 1e6, theirs / TASKS * 1e6)


if __name__ == "__main__":
    main()
