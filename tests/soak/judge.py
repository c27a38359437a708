"""The verdict, from what client and bodies wrote down, as Jepsen judges a queue: everything that went in comes out.

Pure. `total-queue` of Jepsen's checker names what can go wrong: lost, unexpected, duplicated, recovered.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.crash.witness import FINISHED, STARTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.crash.witness import Sight

ATTEMPTED, ACCEPTED, REFUSED = "attempted", "accepted", "refused"


@dataclass(frozen=True)
class Verdict:
    """Orders, counted by number."""

    attempts: int
    accepted: int  # the call returned: a promise was given
    refused: int  # it raised
    completed: int  # whose body came to its end
    lost: tuple[int, ...]  # accepted, and never completed
    unexpected: tuple[int, ...]  # completed, and nobody asked for it
    repeated: int  # whose body came to its end more than once
    recovered: int  # refused, and completed: the error hid a success
    effects_lost: int  # accepted, and without its effect
    effects_doubled: tuple[int, ...]  # written more than once

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return not (self.lost or self.unexpected or self.effects_lost or self.effects_doubled)


def judge(client: Iterable[Sight], bodies: Iterable[Sight], effects: Mapping[int, int]) -> Verdict:
    """Compare; `effects` counts the rows that each order left in the shop's own table."""
    by_word: dict[str, set[int]] = {ATTEMPTED: set(), ACCEPTED: set(), REFUSED: set()}
    for sight in client:
        by_word[sight.what].add(int(sight.task_id))
    ends = Counter(number(sight) for sight in bodies if sight.what == FINISHED)
    attempts, accepted = by_word[ATTEMPTED], by_word[ACCEPTED]
    return Verdict(
        attempts=len(attempts),
        accepted=len(accepted),
        refused=len(by_word[REFUSED]),
        completed=len(ends),
        lost=tuple(sorted(accepted - ends.keys())),
        unexpected=tuple(sorted((ends.keys() | effects.keys()) - attempts)),
        repeated=sum(count > 1 for count in ends.values()),
        recovered=len(by_word[REFUSED] & ends.keys()),
        effects_lost=len(accepted - effects.keys()),
        effects_doubled=tuple(sorted(n for n, count in effects.items() if count > 1)),
    )


def number(sight: Sight) -> int:
    """Which order a body was about."""
    return int(sight.note.split()[0])


def worker(sight: Sight) -> str:
    """Which worker it ran on."""
    return sight.note.split()[1]


# Recovery --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A strike that took place; times are the witness' (monotonic, in seconds)."""

    kind: str
    begin: float
    end: float  # when it was over, and what it had hit was there again
    pids: tuple[int, ...] = ()  # the processes that it hit
    workers: str = ""  # what the names of the workers begin with that it cut off; "": of all


def recoveries(faults: Sequence[Fault], sights: Sequence[Sight]) -> dict[str, list[float]]:
    """How long work stood still, in seconds, by kind of fault.

    Of processes that were hit: until what they ran was begun elsewhere. Of servers: from when they were back until the
    next body began. Of a worker that was cut off: from when the cut was over until it began a body. A kill with another
    fault before its recovery is told apart, as "KIND, amid others".
    """
    found: dict[str, list[float]] = {}
    for fault in faults:
        times = _elsewhere(fault, sights) if fault.pids else _afterwards(fault, sights)
        for seconds in times:
            window = (fault.begin, (fault.begin if fault.pids else fault.end) + seconds)
            alone = not any(o is not fault and o.begin <= window[1] and o.end + SETTLE >= window[0] for o in faults)
            kind = fault.kind if alone or not fault.kind.startswith("kill") else f"{fault.kind}, amid others"
            found.setdefault(kind, []).append(seconds)
    return found


#: Seconds after the end of a fault in which it still disturbs.
SETTLE = 2.0


def _elsewhere(fault: Fault, sights: Sequence[Sight]) -> list[float]:
    running: dict[int, Sight] = {}
    for sight in sights:
        if sight.at > fault.begin:
            break
        if sight.pid in fault.pids:
            running[sight.pid] = sight
    held = {s.task_id for s in running.values() if s.what == STARTED}
    again: dict[str, float] = {}
    for sight in sights:
        if sight.at <= fault.begin or sight.task_id not in held or sight.what != STARTED or sight.pid in fault.pids:
            continue
        again.setdefault(sight.task_id, sight.at - fault.begin)
    return list(again.values())


def _afterwards(fault: Fault, sights: Sequence[Sight]) -> list[float]:
    for sight in sights:
        if sight.at > fault.end and sight.what == STARTED and worker(sight).startswith(fault.workers):
            return [sight.at - fault.end]
    return []


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that so many are not above."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
