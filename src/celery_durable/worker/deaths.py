"""Deliveries whose pool process is gone, found without waiting for the pool to find out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from celery.concurrency.asynpool import AsynPool

if TYPE_CHECKING:
    from collections.abc import Sequence


def bury(pool: Any, requests: Sequence[Any]) -> bool:
    """Leave word of deliveries whose process has ended; say whether there were any.

    billiard says so too, but waits ten seconds for a result that may still be in its pipe (here the ledger knows
    whether there is one), and up to five until it looks: what it takes for the sign of a process' end is there a moment
    before that can be told by ``waitpid``.
    """
    alive = {process.pid for process in list(pool._pool)}
    dead = [r for r in requests if r.worker_pid and (r.worker_pid not in alive or _ended(r.worker_pid))]
    for request in dead:
        request.bury()
    return bool(dead)


def replace_dead(pool: Any, call_soon: Any) -> None:
    """Have the pool look for itself, on the event loop: or no process takes the task that its death gives back."""
    if isinstance(pool, AsynPool):
        call_soon(pool.maintain_pool)


def _ended(pid: int) -> bool:
    """Whether a child has ended; it is left to the pool to reap it."""
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
