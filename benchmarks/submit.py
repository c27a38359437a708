"""How fast calls are submitted: ``.delay()`` and ``submit_many`` against a loop of stock ``.delay()``."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import redis

from benchmarks import rig
from benchmarks.rounds import Figures, Pair, Report, options
from benchmarks.sides import Bench, bench

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS = (
    Pair("durable .delay()", "stock .delay()", ">= 0.7"),
    Pair("durable submit_many", "stock .delay()", ">= 5"),
)


def main() -> None:
    """Measure on private servers."""
    given = options(__doc__, calls=1000, many=5000).parse_args()
    with Report("submit") as report, bench() as servers:
        stock, durable = (servers.app(side).tasks["bench.nothing"] for side in ("stock", "durable"))
        timed = partial(submit, servers)
        sides: dict[str, Callable[[], Figures]] = {
            "stock .delay()": lambda: timed(given.calls, lambda: [stock.delay(n) for n in range(given.calls)]),
            "durable .delay()": lambda: timed(given.calls, lambda: [durable.delay(n) for n in range(given.calls)]),
            "durable submit_many": lambda: timed(
                given.many, lambda: durable.submit_many([(n,) for n in range(given.many)])
            ),
        }
        title = f"submit, {given.calls} calls ({given.many} by submit_many)"
        report.compare(title, sides, PAIRS, rounds=given.rounds)


def submit(servers: Bench, calls: int, work: Callable[[], object]) -> Figures:
    """Time so many calls; the queue is empty before each take."""
    redis.Redis.from_url(servers.broker).delete("celery")
    meter, began, own = rig.Meter(None, servers.servers), time.perf_counter(), time.process_time()
    work()
    took, own = time.perf_counter() - began, time.process_time() - own
    return {"rate": calls / took, "process us": own / calls * 1e6, **meter.per_task(calls)}


if __name__ == "__main__":
    main()
