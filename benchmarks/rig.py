"""A worker in a process of its own, and what it and the servers have used of the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

    from tests.services import Server


@contextmanager
def worker(settings: dict[str, str], *, concurrency: int = 2) -> Iterator[subprocess.Popen[bytes]]:
    """Run a prefork worker of ``benchmarks.app`` with these environment variables until the block ends."""
    command = [
        sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker", "-c", str(concurrency), "-P", "prefork",
        "--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=os.environ | settings)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def ready(app: Celery) -> None:
    """Wait until a worker answers."""
    wait_until(lambda: app.control.ping(timeout=0.5), timeout=60)


def pids(*servers: Server) -> list[int]:
    """Return the first process of each server."""
    return [server.processes[0].pid for server in servers]


def drained(count: Callable[[], int], number: int, timeout: float = 120) -> float:
    """Wait until so many tasks are done; return when that was."""
    until = time.perf_counter() + timeout
    while count() < number:
        if time.perf_counter() > until:
            raise TimeoutError(f"{count()} of {number} tasks in {timeout} s")
        time.sleep(0.005)
    return time.perf_counter()


def made(settings: dict[str, str]) -> Any:
    """Return ``benchmarks.app`` as another app of this process."""
    from benchmarks.app import make

    return make(settings)
