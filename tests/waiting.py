"""Waiting by condition, never by a sleep of guessed length."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = 10.0, message: str = "") -> T:
    """Ask `condition` every 20 ms until it answers something true, and return that.

    Raises AssertionError with `message` after `timeout` seconds. What the condition raises is passed on.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            what = message or f"{getattr(condition, '__name__', condition)} did not come true"
            raise AssertionError(f"{what} (waited {timeout:g} s, last answer: {answer!r})")
        time.sleep(0.02)
