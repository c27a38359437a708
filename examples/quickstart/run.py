"""One run of the demo, from the first worker to the verdict."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from chaos import Blow, Chaos, Kill
from fleet import Fleet, tail
from screen import Screen
from services import Command, DemoError
from stage import Stage
from witness import Reconciliation, Witness

LOOK = 0.2  # seconds between two looks at who has recovered
LOOKS = 3  # orders looked up in the ledger between two ticks: a kill must not come too late for that
TICK = 0.02  # seconds between two looks, as long as the quickest charge takes
SHOWN = 3  # so many of a list of things that went wrong


@dataclass(frozen=True)
class Verdict:
    """How a run ended."""

    count: Reconciliation
    kills: Counter[Blow]
    missing_kills: int
    recoveries: list[float | None]
    unexpected_exits: int
    disagreements: list[str]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the demo showed what it promises."""
        return self.count.ok and not self.disagreements and not self.missing_kills


class Run:
    """Drives workers, kills and progress until every order is done, or the time is over."""

    def __init__(self, stage: Stage, screen: Screen, fleet: Fleet, orders: dict[str, int]) -> None:
        """Take the cast; nothing starts yet."""
        self._stage, self._screen, self._fleet = stage, screen, fleet
        self._orders = orders
        self._witness = Witness(stage.gateway.db, orders)
        self._settled: set[str] = set()
        self._charged = 0
        self._why: Command | None = None
        self._asked = False
        self._looked = 0.0

    def play(self, kills: int, seed: int, timeout: float) -> Verdict:
        """Play to the end. Raises DemoError or FleetError when it cannot go on."""
        chaos = Chaos(self._fleet, self._witness, len(self._orders), kills, seed)
        began = time.monotonic()
        self._screen.open()
        self._fleet.start()
        while len(self._settled) < len(self._orders):
            if time.monotonic() - began > timeout:
                self._explain_timeout(timeout)
                break
            self._tick(chaos)
            time.sleep(TICK)
        chaos.recover(self._stage.look_up)
        seconds = time.monotonic() - began
        self._show_why(wait=True)
        self._screen.progress(self._charged, len(self._settled), len(chaos.kills))
        self._screen.close()
        self._fleet.stop()
        return Verdict(
            count=self._witness.reconcile(),
            kills=Counter(kill.blow for kill in chaos.kills),
            missing_kills=chaos.missing,
            recoveries=chaos.recoveries,
            unexpected_exits=self._fleet.unexpected_exits,
            disagreements=list(self._audit()),
            seconds=seconds,
        )

    def stop(self) -> None:
        """End a command that still runs; the fleet is stopped by whoever owns it."""
        if self._why:
            self._why.stop()

    def _tick(self, chaos: Chaos) -> None:
        for note in self._fleet.supervise():
            self._screen.event(note, "yellow")
        if not self._stage.gateway.running():
            msg = "the gateway died, and nobody was to kill it: see gateway.log with --keep DIR"
            raise DemoError(msg)
        charged = self._witness.charged().keys()
        self._charged = len(charged)
        for order in islice(charged - self._settled, LOOKS):
            self._look_up(order)
        if time.monotonic() - self._looked > LOOK:  # as often as the figure is worth
            chaos.recover(self._stage.look_up)
            self._looked = time.monotonic()
        if chaos.due(self._charged):
            unsettled = self._witness.requested().keys() - self._settled
            kill = chaos.strike()
            if kill:
                standing = {order: self._stage.look_up(order) for order in unsettled}
                kill.stranded.update({o: s.losses for o, s in standing.items() if s.state == "running"})
                self._screen.event(f"kill {kill.number}: SIGKILL {kill.victim}", "red")
                self._ask_why(kill, chaos)
        self._show_why(wait=False)
        self._screen.progress(self._charged, len(self._settled), len(chaos.kills))

    def _look_up(self, order: str) -> None:
        state = self._stage.look_up(order).state
        if state == "succeeded":
            self._settled.add(order)
        elif state in {"dead", "cancelled"}:
            msg = f"order {order} is {state}, though nobody gave it up: {self._answer('why', order)}"
            raise DemoError(msg)

    def _ask_why(self, kill: Kill, chaos: Chaos) -> None:
        """Ask once, about mid-way, where an order stands whose worker was just killed."""
        midway = len(chaos.kills) > chaos.missing
        if midway and not self._asked and (kill.blow is Blow.GROUP or not chaos.missing):
            self._asked = True
            self._why = self._stage.command("why", kill.held)

    def _show_why(self, *, wait: bool) -> None:
        if self._why and (wait or self._why.done()):
            _, out, errors = self._why.result()
            self._screen.event(f"$ {self._why.line}", "bold cyan")
            for line in (out or errors).splitlines():
                self._screen.say(f"            {line}", "cyan")
            self._why = None

    def _audit(self) -> Iterator[str]:
        """Tell what in the ledger is not as it should be."""
        late = sorted(self._orders.keys() - self._settled)
        states = {order: self._stage.look_up(order).state for order in late}
        missing = [f"{order} is {state}" for order, state in states.items() if state != "succeeded"]
        yield from missing[:SHOWN]
        if len(missing) > SHOWN:
            yield f"and {len(missing) - SHOWN} more orders have not succeeded"
        command = self._stage.command("verify", "--json")
        code, out, errors = command.result()
        if code:
            yield f"verify: {errors or 'violations'}"
            violations = json.loads(out)["violations"] if out.startswith("{") else []
            yield from (f"{entry['ref']}: {entry['detail']}" for entry in violations[:SHOWN])

    def _explain_timeout(self, timeout: float) -> None:
        self._screen.close()
        self._screen.say(f"Not finished after {timeout:.0f} s.", "bold red")
        for order in sorted(self._orders.keys() - self._settled)[:SHOWN]:
            self._screen.say(f"$ celery -A app durable why {order}")
            self._screen.say(f"    {self._answer('why', order)}")
        for log in self._fleet.logs():
            self._screen.say(f"The log of {log.stem} ends with:\n{tail(log)}")

    def _answer(self, *arguments: str) -> str:
        _, out, errors = self._stage.command(*arguments).result()
        return out or errors
