"""First of all in a worker under libfaketime, which answers the clock_nanosleep of `time.sleep` with EINVAL."""

import select
import time


def sleep(seconds: float) -> None:
    """Sleep by another system call."""
    select.select([], [], [], seconds)


time.sleep = sleep
