"""A lock that a fork takes: a child must not start in the middle of a thread's work on a driver.

Nor must it inherit an open connection. A database would keep the transaction of a killed parent, and the
rows that it locked, for as long as the child lives; SQLite's library, copied with its notes of who holds
which lock, could take the file for unused and lose commits.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from celery_durable.worker import orphans

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds a fork waits for the keeper's current piece of work; every statement is bounded by less.
PATIENCE = 10.0

_gate = threading.RLock()
_held = threading.local()
_closers: list[Callable[[], None]] = []
_leavers: list[Callable[[], None]] = []


def before_fork(close: Callable[[], None]) -> None:
    """Have idle connections closed before every fork of this process, by a function that does not raise."""
    _closers.append(close)


def after_fork(leave: Callable[[], None]) -> None:
    """Have something called in every child that is forked from this process, as its first thing."""
    _leavers.append(leave)


def gate() -> threading.RLock:
    """Return the lock to hold around work in a parent's thread."""
    return _gate


def _before() -> None:
    orphans.forking()
    _held.by_fork = _gate.acquire(timeout=PATIENCE)
    for close in _closers:
        close()


def _after_in_parent() -> None:
    if getattr(_held, "by_fork", False):
        _gate.release()


def _after_in_child() -> None:
    global _gate  # noqa: PLW0603 - the parent's lock may be held by a thread that does not exist here
    _gate = threading.RLock()
    _closers.clear()
    orphans.forked()
    for leave in _leavers:
        leave()
    _leavers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
