"""How fast a full queue is worked off: no-op tasks and tasks of 5 ms, prefork -c 2, Redis broker, PostgreSQL ledger.

Every side acknowledges late and rejects on a lost worker. The clock runs between two marks in the queue: one behind
tasks that warm the worker up, one behind the last task.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import rig
from benchmarks.rounds import Figures, Pair, Report, options
from benchmarks.sides import SIDES, Bench, bench, chosen

if TYPE_CHECKING:
    import argparse

DEFAULT = ("stock", "durable", "stock+redis", "durable+ledger", "stock+database")
PAIRS = (
    Pair("durable+ledger", "stock+redis", ">= 1.0"),
    Pair("durable+ledger", "stock+database", ">= 2.0"),
    Pair("durable", "stock", ">= 0.75"),
    Pair("durable+redis", "stock+redis"),
)
WARM = 200


def main() -> None:
    """Measure on private servers."""
    parser = options(__doc__, tasks=3000, pauses=600)
    parser.add_argument("--sides", default="", help=f"of {', '.join(SIDES)} (default: {','.join(DEFAULT)})")
    parser.add_argument("--body", choices=["noop", "5ms", "both"], default="both")
    given = parser.parse_args()
    with Report("drain") as report, bench() as servers:
        if given.body != "5ms":
            compare(report, servers, given, "no-op", given.tasks)
        if given.body != "noop":
            compare(report, servers, given, "5 ms", given.pauses)


def compare(report: Report, servers: Bench, given: argparse.Namespace, body: str, tasks: int) -> None:
    """Compare the sides over tasks of one kind."""
    sides = {
        name: partial(drain, servers, servers.app(name), servers.settings(name), body, tasks)
        for name in chosen(given.sides, DEFAULT)
    }
    report.compare(f"drain, {tasks} tasks, {body}, prefork -c 2", sides, PAIRS, rounds=given.rounds)


def drain(servers: Bench, app: Any, settings: dict[str, str], body: str, tasks: int) -> Figures:
    """Fill the queue, start a worker, and time it between the marks."""
    servers.forget_results()
    fill(app, body, WARM if body == "no-op" else WARM // 4)
    app.tasks["bench.mark"].delay(0)
    fill(app, body, tasks)
    app.tasks["bench.mark"].delay(1)
    with rig.worker(settings) as process:
        servers.mark()
        began, meter = time.perf_counter(), rig.Meter(process.pid, servers.servers)
        servers.mark()
        took, used = time.perf_counter() - began, meter.per_task(tasks)
    return {"rate": tasks / took, **used}


def fill(app: Any, body: str, tasks: int) -> None:
    """Submit tasks by ``.delay()``."""
    task, more = (app.tasks["bench.nothing"], ()) if body == "no-op" else (app.tasks["bench.pause"], (0.005,))
    for n in range(tasks):
        task.delay(n, *more)


if __name__ == "__main__":
    main()
