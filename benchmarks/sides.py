"""The sides of a comparison: stock Celery and celery-durable with the result stores that people use."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis

from benchmarks.app import MARKS, make
from celery_durable.ledger import Ledger
from celery_durable.wiring import plugin
from tests.services import Postgres, Redis

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: side -> (base, result store); a comparison takes them by these names.
SIDES = {
    "stock": ("stock", ""),
    "stock+redis": ("stock", "redis"),
    "stock+database": ("stock", "database"),
    "durable": ("durable", ""),
    "durable+redis": ("durable", "redis"),
    "durable+ledger": ("durable", "ledger"),
}


@dataclass(frozen=True, slots=True)
class Bench:
    """The servers of a benchmark, and the URLs of what each is used for."""

    postgres: Postgres
    redis: Redis
    broker: str
    marks: str
    results: str
    ledger: str
    stored: str

    def settings(self, side: str) -> dict[str, str]:
        """Return the environment variables of a side's app."""
        base, store = SIDES[side]
        backend = {
            "": "", "redis": self.results, "ledger": "durable://",
            "database": "db+" + self.stored,
        }[store]  # fmt: skip
        return {
            "BENCH_BROKER": self.broker, "BENCH_MARKS": self.marks, "BENCH_LEDGER": self.ledger,
            "BENCH_BACKEND": backend, "BENCH_BASE": base,
        }  # fmt: skip

    def app(self, side: str) -> Any:
        """Make the side's app for this process; a durable one has its ledger migrated."""
        app = make(self.settings(side))
        if SIDES[side][0] == "durable":
            Ledger.open(plugin(app).settings).migrate()
        return app

    @property
    def servers(self) -> dict[str, int]:
        """The first process of each server."""
        return {"postgres": self.postgres.processes[0].pid, "redis": self.redis.processes[0].pid}

    def forget_results(self) -> None:
        """Empty the Redis that keeps results and marks, so that no round finds more in it than another."""
        for url in (self.results, self.marks):
            redis.Redis.from_url(url).flushdb()

    def mark(self, timeout: int = 120) -> int:
        """Wait for the next mark, and return its number.

        Raises:
            TimeoutError: none came in ``timeout`` seconds.
        """
        found = redis.Redis.from_url(self.marks, socket_timeout=timeout + 5).blpop([MARKS], timeout=timeout)
        if found is None:
            raise TimeoutError(f"no task has reported in {timeout} s")
        return int(float(found[1]))


@contextmanager
def bench(*postgres_options: str) -> Iterator[Bench]:
    """Start private servers; PostgreSQL is as durable as by default, with memory as on a small production server."""
    with ExitStack() as stack:
        options = ["-cshared_buffers=512MB", "-cmax_wal_size=4GB", *postgres_options]
        postgres = stack.enter_context(Postgres(*options))
        server = stack.enter_context(Redis())
        urls = [server.db() for _ in range(3)]
        yield Bench(postgres, server, *urls, postgres.database(), postgres.database())


def chosen(names: str, default: Sequence[str]) -> list[str]:
    """Read ``--sides``: names separated by commas, or the default.

    Raises:
        SystemExit: a name is none of a side.
    """
    given = [name.strip() for name in names.split(",") if name.strip()] or list(default)
    for name in given:
        if name not in SIDES:
            raise SystemExit(f"--sides: {name!r} is none of {', '.join(SIDES)}.")
    return given
