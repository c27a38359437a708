"""What strikes in a soak, and when: drawn from a seed before anything runs, so that each side gets the same. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

#: Sudden death, at any time and beside everything else. A blow lasts no time.
BLOWS = ("kill_worker", "kill_parent", "kill_child")


class Spell(NamedTuple):
    """A fault that lasts: for how many seconds, and how many more are kept free of the next one."""

    seconds: float
    reserve: float


#: One after the other. The first ones outlast the lease (3 s), so that another worker takes over meanwhile.
SPELLS = {
    "freeze": Spell(5, 2),  # SIGSTOP of a whole worker, SIGCONT afterwards: a real zombie
    "cut_database_out": Spell(6, 3),  # what one worker sends to the database is dropped
    "cut_database_in": Spell(6, 3),  # what the database sends to one worker is dropped
    "cut_broker_out": Spell(6, 3),
    "cut_broker_in": Spell(6, 3),
    "broker_kill": Spell(1.5, 4),  # SIGKILL; its data is kept
    "broker_wipe": Spell(1.5, 5),  # SIGKILL; its data is gone
    "database_crash": Spell(1, 4),  # PostgreSQL: immediate stop; MariaDB: SIGKILL
    "disk_full": Spell(3, 5),  # for the broker and the database
    "memory": Spell(1, 1),  # one pool process hits a memory limit, and the kernel kills it
    "clock": Spell(6, 2),  # the clock of one worker jumps by five minutes, and back
}
CALM = 5.0  # seconds at the beginning, and at the end


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault of the plan; times are seconds from the soak's start."""

    at: float
    kind: str
    slot: int  # the worker it is for, if it is for one
    lot: float  # in [0, 1): picks among what there is then
    seconds: float = 0.0


def draw(minutes: float, seed: int, slots: int, *, kinds: tuple[str, ...] = tuple(SPELLS)) -> list[Strike]:
    """Draw a plan, in order of time: 22 kills a minute, and each lasting fault once in two minutes, at least once.

    Raises:
        ValueError: so many faults do not fit.
    """
    dice = random.Random(seed)
    span = minutes * 60
    names = [kind for kind in kinds for _ in range(max(1, round(minutes / 2)))]
    dice.shuffle(names)
    free = span - 2 * CALM - sum(sum(SPELLS[name]) for name in names)
    if free < 0:
        raise ValueError(f"{minutes:g} minutes are too short for one fault of each kind: {2 - free / 60:.0f} would do.")
    breaks = sorted(dice.uniform(0, free) for _ in names)
    plan, busy = [], CALM
    for pause, name in zip(breaks, names, strict=True):
        spell = SPELLS[name]
        plan.append(Strike(busy + pause, name, dice.randrange(slots), dice.random(), spell.seconds))
        busy += sum(spell)
    for n in range(round(22 * minutes)):
        at = dice.uniform(CALM, span - CALM)
        plan.append(Strike(at, BLOWS[n % len(BLOWS)], dice.randrange(slots), dice.random()))
    return sorted(plan, key=lambda strike: strike.at)
