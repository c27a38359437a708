"""How far a task says it is: written at most once a second, and once more when the run ends."""

from __future__ import annotations

import json
import logging
import math
import time
from typing import TYPE_CHECKING, Any

from celery_durable.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Seconds between two writes, and after one that failed.
EVERY, AFTER_FAILURE = 1.0, 10.0
#: Longest note, in characters.
MAX_NOTE = 500


class Progress:
    """One attempt's progress. What the ledger does not take is dropped: no body fails for it."""

    def __init__(
        self, write: Callable[[str], None], readable: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """``write`` puts JSON into the row and may raise ``LedgerError``; ``readable`` takes secrets out of a note."""
        self._write, self._readable, self._clock = write, readable, clock
        self._latest: tuple[float, float | None, str] | None = None
        self._next = float("-inf")

    def note(self, done: float, total: float | None, note: str, *, write: bool = True) -> None:
        """Take the latest, and write it unless another was written within the last second.

        Without ``write`` it is only taken: a transaction of the body's is open, which would hold up another.

        Raises:
            ValueError: ``done`` or ``total`` is no finite number from 0 on.
        """
        self._latest = (_amount("done", done), None if total is None else _amount("total", total), note)
        if write and self._clock() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Write what was not written yet."""
        if self._latest is None:
            return
        (done, total, note), self._latest = self._latest, None
        pause = EVERY
        try:
            self._write(json.dumps({"done": done, "total": total, "note": self._readable(str(note))[:MAX_NOTE]}))
        except LedgerError as exc:
            pause = AFTER_FAILURE
            logger.warning("Progress was not noted: %s", exc)
        self._next = self._clock() + pause


def _amount(name: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value!r}: progress is told in numbers from 0 on.")
    return value
