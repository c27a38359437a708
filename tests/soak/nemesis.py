"""Carries out a plan: blows at their time, and beside them the faults that last, one after the other."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from tests.soak.judge import Fault
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.crash.witness import Witness
    from tests.services import Server
    from tests.soak.crew import Crew, Slot
    from tests.soak.places import Cage, Disk, Network
    from tests.soak.plan import Strike

SKEW = 300  # seconds
PATIENCE = 60.0


class Nemesis:
    """Two threads from `start` to `join`; `faults` is what really took place."""

    def __init__(
        self, crew: Crew, broker: Server, ledger: Server, witness: Witness, tools: tuple[Network, Disk, Cage]
    ) -> None:
        self.crew, self.broker, self.ledger, self.witness = crew, broker, ledger, witness
        self.network, self.disk, self.cage = tools
        self.faults: list[Fault] = []
        self.failed: list[str] = []  # what could not be brought about, and why
        self._threads: list[threading.Thread] = []

    def start(self, plan: Sequence[Strike], began: float) -> None:
        """Begin; `began` is when the soak's time is 0."""
        spells = [s for s in plan if s.seconds]
        blows = [s for s in plan if not s.seconds]
        for strikes in (spells, blows):
            self._threads.append(threading.Thread(target=self._run, args=(strikes, began), daemon=True))
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until the plan is carried out."""
        for thread in self._threads:
            thread.join()

    def _run(self, strikes: Iterable[Strike], began: float) -> None:
        for strike in strikes:
            time.sleep(max(0.0, began + strike.at - time.monotonic()))
            try:
                self._strike(strike)
            except Exception:  # noqa: BLE001 - told in the report; the storm goes on
                self.failed.append(f"{strike.kind}: {traceback.format_exc(limit=-3)}")

    def _strike(self, strike: Strike) -> None:
        if strike.kind.startswith("kill"):
            self._kill(strike)
        elif strike.kind.startswith("cut"):
            self._cut(strike)
        elif strike.kind.startswith("broker"):
            self._broker(strike)
        else:
            one: Callable[[Strike], None] = getattr(self, f"_{strike.kind}")
            one(strike)

    def _done(self, kind: str, begin: float, pids: Iterable[int] = (), workers: str = "") -> None:
        self.faults.append(Fault(kind, begin, time.monotonic(), tuple(pids), workers))

    def _target(self, strike: Strike) -> Slot:
        found = self.crew.standing(strike.slot)
        if found is None:
            raise LookupError("no worker stands")
        return found

    # Processes -----------------------------------------------------------------------------------

    def _kill(self, strike: Strike) -> None:
        worker = self._target(strike).worker
        children = worker.children
        if strike.kind == "kill_child":
            children = [self._pick(children, strike.lot)]
        begin = time.monotonic()
        if strike.kind == "kill_child":
            os.kill(children[0], signal.SIGKILL)
        else:
            worker.kill(children=strike.kind == "kill_worker")
        self._done(strike.kind, begin, children)

    def _pick(self, pids: Sequence[int], lot: float) -> int:
        """A pool process, if possible one that runs a body."""
        busy = {sight.pid for sight in self.witness.in_flight()}
        among = [pid for pid in pids if pid in busy] or list(pids)
        return among[int(lot * len(among))]

    def _freeze(self, strike: Strike) -> None:
        worker = self._target(strike).worker
        children, begin = worker.children, time.monotonic()
        worker.freeze()
        time.sleep(strike.seconds)
        worker.thaw()
        self._done(strike.kind, begin, children)

    def _memory(self, strike: Strike) -> None:
        if self.cage.missing:
            raise OSError(self.cage.missing)
        pid = self._pick(self._target(strike).worker.children, strike.lot)
        self.cage.put(pid)
        wait_until(lambda: not _alive(pid), PATIENCE, f"process {pid} outlives its memory limit")
        self._done(strike.kind, time.monotonic(), [pid])

    def _clock(self, strike: Strike) -> None:
        slot = self.crew.slots[0]
        if not slot.skewed:
            raise OSError("no libfaketime: apt-get install faketime")
        begin = time.monotonic()
        slot.set_clock(SKEW if strike.lot < 0.5 else -SKEW)
        time.sleep(strike.seconds)
        slot.set_clock(0)
        self._done(strike.kind, begin, workers=slot.name)

    # Servers -------------------------------------------------------------------------------------

    def _cut(self, strike: Strike) -> None:
        _, what, direction = strike.kind.split("_")
        server = self.broker if what == "broker" else self.ledger
        slot, begin = self._target(strike), time.monotonic()
        self.network.cut(slot.number, server, direction)
        time.sleep(strike.seconds)
        self.network.heal()
        self._done(strike.kind, begin, workers=slot.name)

    def _broker(self, strike: Strike) -> None:
        begin = time.monotonic()
        self.broker.kill()
        if strike.kind == "broker_wipe":
            self.broker.wipe()  # type: ignore[attr-defined]
        time.sleep(strike.seconds)
        self._back(self.broker)
        self._done(strike.kind, begin)

    def _database_crash(self, strike: Strike) -> None:
        begin = time.monotonic()
        self.ledger.crash()  # type: ignore[attr-defined]
        time.sleep(strike.seconds)
        self._back(self.ledger)
        self._done(strike.kind, begin)

    def _disk_full(self, strike: Strike) -> None:
        begin = time.monotonic()
        try:
            self.disk.fill()
            time.sleep(strike.seconds)
        finally:
            self.disk.free()
        for server in (self.ledger, self.broker):
            self._back(server)
        self._done(strike.kind, begin)

    def _back(self, server: Server) -> None:
        """Start it as often as that takes, and wait until it answers."""

        def answers() -> bool:
            with suppress(OSError, RuntimeError):
                return server.start().ready()
            return False

        wait_until(answers, PATIENCE, f"{server.name} does not come back")


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
