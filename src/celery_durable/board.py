"""What a worker's parent tells the bodies that it runs: one page of memory that both sides see.

The parent makes it before the pool forks, so that pool processes share it; threads and greenlets do anyhow. A body
that looks costs no statement and no system call. Whoever cannot see it (a spawned pool process) asks the ledger.

The flag of a shutdown is one byte, set without a lock: it is safe in a signal handler.
"""

from __future__ import annotations

import mmap
import struct
import threading
from typing import NamedTuple

#: Deliveries that have a line of their own; whatever exceeds them asks the ledger.
LINES = 4096
#: What a delivery is told that has no line.
NO_LINE = -1

_HEAD = 64
_LINE = struct.Struct("=16sdB7x")  # token, lease until (monotonic seconds), whether it is cancelled


class Told(NamedTuple):
    """What stands on a delivery's line: until when its lease was renewed (monotonic), whether it is cancelled."""

    until: float
    cancelled: bool


class Board:
    """Written by the parent's threads, read by the bodies."""

    def __init__(self) -> None:
        """Make the memory; to be done before the pool forks."""
        self._memory = mmap.mmap(-1, _HEAD + LINES * _LINE.size)
        self._free = list(range(LINES))
        # Never taken by a reader: a fork may copy it while it is held. A cold shutdown gives lines back in a signal
        # handler, which may have interrupted its own thread in here.
        self._lock = threading.RLock()

    # The parent's side --------------------------------------------------------------------------------

    def take(self, token: str) -> int:
        """Give a delivery a line, or ``NO_LINE``."""
        with self._lock:
            if not self._free:
                return NO_LINE
            line = self._free.pop()
            self._write(line, token, Told(0.0, cancelled=False))
            return line

    def give_back(self, line: int) -> None:
        """Take the line of a delivery that has left the pool."""
        if line == NO_LINE:
            return
        with self._lock:
            _LINE.pack_into(self._memory, _HEAD + line * _LINE.size, b"", 0.0, 0)
            self._free.append(line)

    def renewed(self, line: int, token: str, until: float, *, cancelled: bool) -> None:
        """Tell a delivery that its lease holds until then, and whether it is cancelled."""
        with self._lock:
            if self.read(line, token) is not None:
                self._write(line, token, Told(until, cancelled))

    def drain(self) -> None:
        """Tell everybody that the worker shuts down; one byte, no lock."""
        self._memory[0] = 1

    def _write(self, line: int, token: str, told: Told) -> None:
        _LINE.pack_into(self._memory, _HEAD + line * _LINE.size, bytes.fromhex(token), told.until, told.cancelled)

    # The body's side ----------------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Whether the worker shuts down."""
        return self._memory[0] == 1

    def read(self, line: int, token: str) -> Told | None:
        """Return what a delivery is told; None when the line is not, or no longer, its own."""
        if line == NO_LINE:
            return None
        owner, until, cancelled = _LINE.unpack_from(self._memory, _HEAD + line * _LINE.size)
        return Told(until, bool(cancelled)) if owner == bytes.fromhex(token) else None
