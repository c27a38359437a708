"""Whom the demo kills and when, and how long the work took to come back."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from fleet import Fleet, Worker
from stage import Standing
from witness import Witness

FIRST, LAST = 0.04, 0.90  # kills are spread over this part of the orders


class Blow(Enum):
    """The ways to die; each by SIGKILL, which nothing can catch."""

    CHILD = "pool children"
    PARENT = "workers alone"
    GROUP = "workers with their children"


@dataclass
class Kill:
    """One kill; `stranded` are the orders claimed then (with their losses) that are not free or done since."""

    number: int
    blow: Blow
    victim: str
    held: str
    at: float
    stranded: dict[str, int] = field(repr=False)
    recovered_after: float | None = None


def plan_blows(kills: int, rng: random.Random) -> list[Blow]:
    """Half of the kills hit a child; of those that hit a worker, half take its children with it."""
    children = kills // 2
    groups = (kills - children + 1) // 2
    parents = kills - children - groups
    blows = [Blow.CHILD] * children + [Blow.GROUP] * groups + [Blow.PARENT] * parents
    rng.shuffle(blows)
    return blows


def plan_moments(kills: int, orders: int, rng: random.Random) -> list[float]:
    """After how many charged orders each kill is due."""
    step = (LAST - FIRST) * orders / kills
    return [FIRST * orders + (number + rng.random()) * step for number in range(kills)]


class Chaos:
    """Carries out the plan that a seed gives, on whoever holds an order when a kill is due."""

    def __init__(self, fleet: Fleet, witness: Witness, orders: int, kills: int, seed: int) -> None:
        """Draw the plan; nothing is killed yet."""
        self._rng = random.Random(seed)  # noqa: S311 - a seed that can be repeated is the point
        self._fleet, self._witness = fleet, witness
        self._blows = plan_blows(kills, self._rng)
        self._moments = plan_moments(kills, orders, self._rng)
        self.kills: list[Kill] = []

    @property
    def missing(self) -> int:
        """Kills that are still to come."""
        return len(self._blows) - len(self.kills)

    @property
    def recoveries(self) -> list[float | None]:
        """For each kill the seconds until all that it had stranded was free again, or done; None while it is not."""
        return [kill.recovered_after for kill in self.kills]

    def due(self, charged: int) -> bool:
        """Whether the next kill is due when so many orders are charged."""
        return self.missing > 0 and charged >= self._moments[len(self.kills)]

    def strike(self) -> Kill | None:
        """Kill a process that waits for the gateway, or its worker; None when nobody waits just now."""
        holders = [(pid, order, self._fleet.owner(pid)) for pid, order in self._witness.in_flight()]
        targets = [(pid, order, worker) for pid, order, worker in holders if worker]
        if not targets:
            return None
        pid, order, worker = self._rng.choice(targets)
        blow = self._blows[len(self.kills)]
        victim = self._hit(blow, pid, worker)
        if victim is None:
            return None
        self.kills.append(Kill(len(self.kills) + 1, blow, victim, order, time.monotonic(), {}))
        return self.kills[-1]

    def recover(self, look: Callable[[str], Standing]) -> None:
        """Take off each kill's list what is free to be claimed again by now, or done."""
        for kill in self.kills:
            if kill.recovered_after is None:
                for order, losses in list(kill.stranded.items()):
                    now = look(order)
                    if now.state != "running" or now.losses > losses:
                        del kill.stranded[order]
                if not kill.stranded:
                    kill.recovered_after = time.monotonic() - kill.at

    def _hit(self, blow: Blow, pid: int, worker: Worker) -> str | None:
        if blow is not Blow.CHILD:
            self._fleet.kill_worker(worker, with_children=blow is Blow.GROUP)
            children = "with its" if blow is Blow.GROUP else "but not its"
            return f"worker {worker.name} (pid {worker.pid}), {children} pool children"
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it finished in between
            return None
        return f"pool child {pid} of worker {worker.name}"
