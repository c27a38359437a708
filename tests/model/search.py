"""Every order of events: what is wrong on the way, and from where the end cannot be reached."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tests.model.protocol import Rules, Step, World, begin, over, passes, steps

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST = 1_500_000


class Found(dict[str, list[str]]):
    """What is wrong, and the shortest way there; `worlds` counts what was looked at."""

    worlds = 0


def search(rules: Rules, *, until: str = "") -> Found:
    """Look at every world that can come about, and at what can become of it when nothing fails any more.

    ``until`` is how the wrong begins that is enough.
    """
    first = begin(rules)
    came: dict[World, tuple[World, str] | None] = {first: None}
    before: dict[World, list[World]] = {}
    found, heap = Found(), deque([first])
    while heap:
        world = heap.popleft()
        if until and any(wrong.startswith(until) for wrong in found):
            return found
        for step in steps(rules, world):
            step = _alike(step)  # noqa: PLW2901 - the same step, as told by either worker
            wrong = step.wrong or _twice(rules, step.world)
            if wrong and wrong not in found:
                found[wrong] = [*way(came, world), step.what]
            if not step.fault:
                before.setdefault(step.world, []).append(world)
            if step.world not in came:
                came[step.world] = (world, step.what)
                heap.append(step.world)
                assert len(came) < MOST, "the model has grown too large to be looked at whole"
    ends = _reaching(before, [w for w in came if over(w)])
    stuck = next((w for w in came if w not in ends), None)
    if stuck is not None:
        found[f"stuck, {stuck.row.state}"] = way(came, stuck)
    found.worlds = len(came)
    return found


def _alike(step: Step) -> Step:
    """The workers are interchangeable: half of all worlds are the other half's mirror images."""
    return step._replace(world=step.world._replace(pools=tuple(sorted(step.world.pools))))


def _twice(rules: Rules, world: World) -> str:
    live = [p for p in world.pools if p[0] in {"runs", "ends"} and passes(rules, world.row, p[1], p[2])]
    return "two attempts hold one claim" if len(live) > 1 else ""


def _reaching(before: Mapping[World, list[World]], ends: list[World]) -> set[World]:
    reaching, heap = set(ends), list(ends)
    while heap:
        for world in before.get(heap.pop(), ()):
            if world not in reaching:
                reaching.add(world)
                heap.append(world)
    return reaching


def way(came: Mapping[World, tuple[World, str] | None], world: World) -> list[str]:
    """What happened, in order."""
    told: list[str] = []
    while (step := came[world]) is not None:
        world, what = step
        told.append(what)
    return told[::-1]
