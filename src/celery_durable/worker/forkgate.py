"""A lock that a fork takes: a child must not start in the middle of a thread's work on a driver."""

from __future__ import annotations

import os
import threading

#: Seconds a fork waits for the keeper's current piece of work; every statement is bounded by less.
PATIENCE = 10.0

_gate = threading.RLock()
_held = threading.local()


def gate() -> threading.RLock:
    """Return the lock to hold around work in a parent's thread."""
    return _gate


def _before() -> None:
    _held.by_fork = _gate.acquire(timeout=PATIENCE)


def _after_in_parent() -> None:
    if getattr(_held, "by_fork", False):
        _gate.release()


def _after_in_child() -> None:
    global _gate  # noqa: PLW0603 - the parent's lock may be held by a thread that does not exist here
    _gate = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
