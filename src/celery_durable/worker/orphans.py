"""A durable body ends with its worker: where the parent is killed, the kernel kills the pool process that runs one.

Its claim is given to another worker within a second, and the two would run at the same time. A stock task in the same
pool is left alone, as ever.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1

_worker = _child = 0
_forked_by_main = False
_prctl: Any = None


def load() -> None:
    """Make this process the worker whose children end with it; a child must not be the first to load what it takes."""
    global _prctl, _worker  # noqa: PLW0603 - one per process, as its pool
    _worker = os.getpid()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            _prctl = ctypes.CDLL(None).prctl


def forking() -> None:
    """Note who forks: the kernel takes the end of the forking thread for the end of the parent."""
    global _forked_by_main  # noqa: PLW0603
    if os.getpid() == _worker:
        _forked_by_main = threading.current_thread() is threading.main_thread()


def forked() -> None:
    """Note, in a child, whose it is."""
    global _child  # noqa: PLW0603
    _child = os.getpid() if _forked_by_main and _worker and os.getppid() == _worker else 0


def mortal() -> bool:
    """Say whether this process is a child that can be made to end with its worker."""
    return _prctl is not None and _child == os.getpid()


@contextmanager
def ending_with_parent() -> Iterator[None]:
    """Have this process killed, while the block runs, as soon as its worker's parent process is gone."""
    if not mortal():
        yield
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        if os.getppid() != _worker:  # it died before
            os.kill(os.getpid(), signal.SIGKILL)
        yield
    finally:
        _prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
