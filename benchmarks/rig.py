"""A worker in a process of its own, and the CPU time that it and the servers have used."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from benchmarks.rounds import RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: What the workers print.
LOG = RESULTS / "workers.log"


@contextmanager
def worker(settings: Mapping[str, str], *, concurrency: int = 2) -> Iterator[subprocess.Popen[bytes]]:
    """Run a prefork worker of ``benchmarks.app`` with these environment variables until the block ends."""
    command = [
        *(sys.executable, "-W", "ignore", "-m", "celery", "-q", "-A", "benchmarks.app", "worker"),
        *("-c", str(concurrency), "-P", "prefork", "--loglevel", "ERROR"),
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    ]  # fmt: skip
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | dict(settings), stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


class Meter:
    """CPU seconds of a worker's parent, of its children, and of servers, since the meter was made."""

    def __init__(self, worker: int | None, servers: Mapping[str, int]) -> None:
        """``worker`` and the values of ``servers`` are process ids."""
        self._worker, self._servers = worker, servers
        self._before = self._now()

    def read(self) -> dict[str, float]:
        """Return seconds by who used them: ``parent``, ``children``, and the servers by their names."""
        return {name: seconds - self._before.get(name, 0.0) for name, seconds in self._now().items()}

    def per_task(self, tasks: int) -> dict[str, float]:
        """Return the same in microseconds per task."""
        return {f"{name} us": seconds / tasks * 1e6 for name, seconds in self.read().items()}

    def _now(self) -> dict[str, float]:
        now = {name: _tree(pid) for name, pid in self._servers.items()}
        if self._worker is None:
            return now
        own = psutil.Process(self._worker).cpu_times()
        parent = own.user + own.system
        return {"parent": parent, "children": _tree(self._worker) - parent} | now


def _tree(pid: int) -> float:
    """Add up a process and its descendants, those that have ended included."""
    total = 0.0
    process = psutil.Process(pid)
    for one in [process, *process.children(recursive=True)]:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:  # its parent has its times now
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
