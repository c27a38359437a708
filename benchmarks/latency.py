"""How long a task takes from its submission until its result is stored, while workers are half busy.

Tasks arrive at random times, as many a second as half of what the stock side takes in and works off when they come as
fast as one process can submit them, measured in this very run. A task's time runs from the moment at which it was to be
submitted, so that a submission that is late counts.
"""

from __future__ import annotations

import math
import random
import struct
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import rig
from benchmarks.rounds import Figures, Pair, Report, options
from benchmarks.sides import SIDES, Bench, bench, chosen

DEFAULT = ("stock+redis", "durable+ledger")
PAIRS = (
    Pair("durable+ledger", "stock+redis", "<= 1.3", "p99 ms"), Pair("durable+ledger", "stock+redis", "", "p50 ms"),
    Pair("durable+ledger", "stock+redis", "", "p99.9 ms"), Pair("durable", "stock"),
)  # fmt: skip


def main() -> None:
    """Measure on private servers."""
    parser = options(__doc__, tasks=1500, percent=50)
    parser.add_argument("--sides", default="", help=f"of {', '.join(SIDES)} (default: {','.join(DEFAULT)})")
    given = parser.parse_args()
    with Report("latency") as report, bench() as servers:
        names = chosen(given.sides, DEFAULT)
        app, settings = servers.app(names[0]), servers.settings(names[0])
        full = max(arrive(servers, app, settings, math.inf, given.tasks)["rate"] for _ in range(3))
        rate = full * given.percent / 100
        sides = {
            name: partial(arrive, servers, servers.app(name), servers.settings(name), rate, given.tasks)
            for name in names
        }
        title = f"latency at {rate:.0f} tasks a second ({given.percent} % of {names[0]}), prefork -c 2"
        report.compare(title, sides, PAIRS, of=("p50 ms", "p99 ms", "p99.9 ms"), rounds=given.rounds)


def arrive(servers: Bench, app: Any, settings: dict[str, str], rate: float, tasks: int) -> Figures:
    """Submit tasks at random times and collect how long each took."""
    servers.forget_results()
    rng, nothing, taken = random.Random(7), app.tasks["bench.nothing"], list[float]()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        with rig.worker(settings | {"BENCH_LATENCIES": folder}) as process:
            for n in range(200):  # warms the worker up
                nothing.delay(time.time() + n)
            app.tasks["bench.mark"].delay(0)
            servers.mark()
            time.sleep(0.2)
            _empty(folder)
            meter, late, began = rig.Meter(process.pid, servers.servers), 0.0, time.time()
            due = began
            for _ in range(tasks):
                due = time.time() if rate == math.inf else due + rng.expovariate(rate)
                ahead = due - time.time()
                if ahead > 0:
                    time.sleep(ahead)
                late = max(late, -ahead)
                nothing.delay(due)
            app.tasks["bench.mark"].delay(time.time())
            servers.mark()
            took, used = time.time() - began, meter.per_task(tasks)
        for path in Path(folder).iterdir():
            taken += [seconds for (seconds,) in struct.iter_unpack("d", path.read_bytes())]
    taken = sorted(taken)[: tasks + 1]
    at = {f"p{p:g} ms": taken[min(len(taken) - 1, int(len(taken) * p / 100))] * 1000 for p in (50, 90, 99, 99.9)}
    return at | {"rate": tasks / took, "submitter late ms": late * 1000} | used


def _empty(folder: str) -> None:
    for path in Path(folder).iterdir():
        path.write_bytes(b"")


if __name__ == "__main__":
    main()
