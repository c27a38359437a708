"""What a task and a worker cost beside stock Celery: round trips and statements (counted), memory, start, idleness."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Any

import psutil
import redis
import sqlalchemy as sa

from benchmarks import rig
from benchmarks.drain import fill
from benchmarks.rounds import Figures, Pair, Report, options
from benchmarks.sides import SIDES, Bench, bench, chosen
from tests.ledger.wire import Proxy, Wire

DEFAULT = ("stock", "durable", "stock+redis", "durable+ledger")
PAIRS = (
    Pair("durable", "stock", "<= 0.4", "start s"), Pair("durable", "stock", "<= 15", "parent MB"),
    Pair("durable", "stock", "<= 15", "child MB"), Pair("durable", "stock", "< 1", "idle %"),
    Pair("durable+ledger", "stock+redis", "<= 0.4", "start s"),
    Pair("durable+ledger", "stock+redis", "<= 15", "child MB"),
)  # fmt: skip
TASKS = 300


def main() -> None:
    """Measure on private servers."""
    parser = options(__doc__, idle=5)
    parser.add_argument("--sides", default="", help=f"of {', '.join(SIDES)} (default: {','.join(DEFAULT)})")
    given = parser.parse_args()
    names = chosen(given.sides, DEFAULT)
    with Report("cost") as report, bench() as servers:
        counted = {name: count(servers, name) for name in dict.fromkeys([*names, "stock+database"])}
        columns = list(next(iter(counted.values())))
        report.table(f"counted per task, {TASKS} no-op tasks, submission included", columns, counted)
        sides = {name: partial(live, servers, servers.app(name), servers.settings(name), given.idle) for name in names}
        more = ("start s", "parent MB", "child MB", "idle %")
        report.compare("a worker, prefork -c 2", sides, PAIRS, of=(), more=more, rounds=given.rounds)


def count(servers: Bench, side: str) -> Figures:
    """Count what reaches the servers while tasks are submitted and run."""
    settings = servers.settings(side)
    name = "BENCH_LEDGER" if SIDES[side][0] == "durable" else "BENCH_BACKEND"
    servers.app(side)  # its tables are there
    wire, proxy = Wire(), None
    if "postgresql" in settings[name]:
        prefix = "db+" if settings[name].startswith("db+") else ""
        proxy = Proxy(wire, sa.make_url(settings[name].removeprefix("db+")))
        settings |= {name: prefix + proxy.proxied_url}
    from benchmarks.app import make

    app, commands = make(settings), redis.Redis.from_url(servers.broker)
    servers.forget_results()
    with rig.worker(settings):
        fill(app, "no-op", 100)
        app.tasks["bench.mark"].delay(0)
        servers.mark()
        time.sleep(1)  # the last results are stored, whatever was queued behind them
        servers.postgres.sql("ALTER SYSTEM SET log_statement = 'all'")
        servers.postgres.sql("SELECT pg_reload_conf()")
        time.sleep(0.5)
        before = _counts(servers, commands, wire)
        fill(app, "no-op", TASKS)
        app.tasks["bench.mark"].delay(1)
        servers.mark()
        time.sleep(0.5)
        after = _counts(servers, commands, wire)
        servers.postgres.sql("ALTER SYSTEM RESET log_statement")
        servers.postgres.sql("SELECT pg_reload_conf()")
    if proxy is not None:
        proxy.close()
    return {what: (after[what] - before[what]) / (TASKS + 1) for what in after}


def _counts(servers: Bench, commands: Any, wire: Wire) -> dict[str, float]:
    wal = servers.postgres.sql("SELECT pg_current_wal_lsn() - '0/0'")
    log = servers.postgres.log
    return {
        "round trips": wire.replies,
        "statements": len(re.findall(r"LOG:  (?:statement|execute [^:]+): (?!BEGIN|COMMIT|ROLLBACK)", log)),
        "WAL bytes": float(wal),
        "redis commands": float(commands.info("stats")["total_commands_processed"]),
    }  # fmt: skip


def live(servers: Bench, app: Any, settings: dict[str, str], idle: int) -> Figures:
    """Start a worker, let it work, look at its memory, and leave it idle."""
    servers.forget_results()
    app.tasks["bench.mark"].delay(0)
    began = time.perf_counter()
    with rig.worker(settings) as process:
        servers.mark()
        started = time.perf_counter() - began
        fill(app, "no-op", TASKS)
        app.tasks["bench.mark"].delay(1)
        servers.mark()
        time.sleep(0.5)
        parent = psutil.Process(process.pid)
        children = sorted((_megabytes(child) for child in parent.children()), key=lambda sizes: sizes[0])
        rss, pss = _megabytes(parent)
        meter, began = rig.Meter(process.pid, servers.servers), time.perf_counter()
        time.sleep(idle)
        used, seconds = meter.read(), time.perf_counter() - began
    percent = 100 / seconds
    return {
        "start s": started, "parent MB": rss, "child MB": children[-1][0],
        "parent PSS MB": pss, "child PSS MB": children[-1][1],
        "idle %": (used["parent"] + used["children"]) * percent, "idle postgres %": used["postgres"] * percent,
        "idle redis %": used["redis"] * percent,
    }  # fmt: skip


def _megabytes(process: psutil.Process) -> tuple[float, float]:
    """Return what is resident, and the process's share of that."""
    sizes = process.memory_full_info()
    return sizes.rss / 2**20, sizes.pss / 2**20


if __name__ == "__main__":
    main()
