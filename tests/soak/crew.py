"""The workers: one to a slot, and another one in its place whenever it ends, as a supervisor would."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.crash.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.crash.fleet import Worker

#: The worker in this slot lives in a time of its own.
SKEWED = 0
SKEWED_CODE = Path(__file__).with_name("skewed")
FAKETIME = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu" / "faketime" / "libfaketime.so.1"


class Slot:
    """One worker and its successors."""

    def __init__(self, number: int, folder: Path, env: Mapping[str, str]) -> None:
        folder.mkdir()
        self.number, self.clock, self.name = number, folder / "clock", chr(ord("a") + number)
        self.skewed = number == SKEWED and FAKETIME.exists()
        self.fell = 0  # how often it ended by itself
        if self.skewed:
            self.set_clock(0)
            env = {**env, "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(self.clock)}
            env |= {"FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "PYTHONPATH": str(SKEWED_CODE)}
        self.fleet = Fleet(folder, env, "tests.soak.app", self.name)

    @property
    def worker(self) -> Worker:
        return self.fleet.workers[-1]

    def set_clock(self, seconds: int) -> None:
        """Set the worker's clock that far before ours, or behind; it notices within a second."""
        self.clock.write_text(f"{seconds:+d}\n")

    def fill(self) -> None:
        """See to it that a worker is there."""
        if self.fleet.workers:
            if self.worker.running:
                return
            self.fell += not self.worker.struck
        self.fleet.start(wait=False, afresh=self.skewed)


class Crew:
    """All slots, kept filled by a thread until `stop`."""

    def __init__(self, folder: Path, envs: Sequence[Mapping[str, str]]) -> None:
        self.slots = [Slot(n, folder / f"slot-{n}", env) for n, env in enumerate(envs)]
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        """Start all, and wait until they are ready."""
        for slot in self.slots:
            slot.fill()
        for slot in self.slots:
            slot.worker.await_ready()
        self._keeper.start()

    def _keep(self) -> None:
        while not self._over.wait(0.1):
            for slot in self.slots:
                slot.fill()

    @property
    def started(self) -> int:
        return sum(len(slot.fleet.workers) for slot in self.slots)

    @property
    def fell(self) -> int:
        return sum(slot.fell for slot in self.slots)

    def standing(self, slot: int, patience: float = 2.0) -> Slot | None:
        """The slot, or the next one, whose worker runs and has pool processes; None when there is none so soon."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            for n in range(len(self.slots)):
                found = self.slots[(slot + n) % len(self.slots)]
                if found.worker.running and not found.worker.struck and found.worker.children:
                    return found
            time.sleep(0.02)
        return None

    def stop(self) -> None:
        """Kill all of them."""
        self._over.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for slot in self.slots:
            slot.fleet.stop()
