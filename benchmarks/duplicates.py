"""What a submission of a key that is done takes: by the ledger alone, and with ``durable_fast_path_url``.

The third side submits keys that are new, with Redis asked in vain: what the fast path costs those.
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import redis
import sqlalchemy as sa

from benchmarks import rig
from benchmarks.app import make
from benchmarks.rounds import Figures, Pair, Report, options
from benchmarks.sides import Bench, bench
from celery_durable import DurableTask
from celery_durable.wiring import plugin

if TYPE_CHECKING:
    from collections.abc import Iterator

PAIRS = (
    Pair("done, fast path", "done, ledger alone"),
    Pair("new, fast path", "new, ledger alone"),
)


def main() -> None:
    """Measure on private servers."""
    given = options(__doc__, calls=1000).parse_args()
    with Report("duplicates") as report, bench() as servers:
        servers.app("durable")  # its tables are there
        new = map(str, itertools.count())
        done = [f"done-{n}" for n in range(given.calls)]
        apps = {"ledger alone": _keyed(servers, ""), "fast path": _keyed(servers, servers.results)}
        task = apps["ledger alone"]
        task.submit_many([(key,) for key in done])
        _finish(task)
        sides = {}
        for name, keyed in apps.items():
            sides[f"done, {name}"] = partial(submit, servers, keyed, iter(()), done)
            sides[f"new, {name}"] = partial(submit, servers, keyed, new, done)
        report.compare(f"submit {given.calls} keys by .delay()", sides, PAIRS, rounds=given.rounds)


def _keyed(servers: Bench, url: str) -> Any:
    app = make(servers.settings("durable"))
    app.conf.durable_fast_path_url = url

    @app.task(name="bench.keyed", base=DurableTask, idempotency_key="{key}", shared=False)
    def keyed(key: str) -> None: ...

    return keyed


def _finish(task: Any) -> None:
    """Let everything that was submitted have succeeded."""
    ledger = plugin(task.app).ledger
    over = sa.update(ledger.t.task).values(
        state="succeeded", finished_at=ledger.dialect.clock_sql, publish_at=None, result=b"1",
        result_type="application/json",
    )  # fmt: skip
    ledger.db.run(lambda connection: connection.execute(over))


def submit(servers: Bench, task: Any, new: Iterator[str], done: list[str]) -> Figures:
    """Time calls: of the keys that are done, or of new ones where there are any."""
    redis.Redis.from_url(servers.broker).delete("celery")
    keys = [*itertools.islice(new, len(done))] or done
    meter, began, own = rig.Meter(None, servers.servers), time.perf_counter(), time.process_time()
    for key in keys:
        task.delay(key)
    took, own = time.perf_counter() - began, time.process_time() - own
    return {"rate": len(keys) / took, "process us": own / len(keys) * 1e6, **meter.per_task(len(keys))}


if __name__ == "__main__":
    main()
