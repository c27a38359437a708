"""A tour: two workers and some twenty clients in which every failpoint strikes once, on one ledger and broker."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kombu.transport.filesystem import Transport as FilesystemTransport

from celery_durable import failpoints
from celery_durable.ledger import Ledger
from tests.crash.kit import Stage
from tests.points.errands import ERRANDS, Client
from tests.points.tasks import build, metadata
from tests.waiting import wait_until

if TYPE_CHECKING:
    import random
    from collections.abc import Collection
    from pathlib import Path

    from tests.conftest import Broker

#: What is armed at every point; the seconds of a sleep are long beside a sweep, short beside a lease.
ACTIONS = ("die", "execute-then-die", "raise", "execute-then-raise", "stop", "execute-then-stop", "sleep(0.3)")
#: Breaks the connection behind a step: nothing else asks whether a step stands. Where raising is on trial, it does.
PROVOKED = ("transact_step.commit=execute-then-raise", "record_step.commit=execute-then-raise")
#: PostgreSQL alone tells listeners that a result is there.
NOWHERE_ELSE = {"hint": "postgresql"}
WORKERS, ROUNDS, TRIES, PATIENCE = 2, 8, 40, 240.0
CONF = {
    "durable_lease": 1.5,
    "durable_sweep_interval": 0.1,
    "durable_republish_after": 0.5,
    "durable_observe": ["stock"],
    "result_backend": "durable://",
}
#: What a dead worker has not acknowledged comes back, on brokers that know no connections.
BACK_SOON = {"visibility_timeout": 2, "unacked_restore_limit": 1}
#: A process that stands still is sent on when its lease has passed.
STANDSTILL = CONF["durable_lease"] + 0.5


def reachable(dialect: str) -> list[str]:
    """Name the points of the registry that exist on a dialect."""
    return failpoints.points(v for v in Ledger.verbs() if NOWHERE_ELSE.get(v, dialect) == dialect)


class Points(Stage):
    """The stage of a tour."""

    build = staticmethod(build)
    module = "tests.points.app"


@dataclass
class Errands:
    """The clients of a tour: forked, struck, and forked again until each has done its errand."""

    stage: Points
    armed: str
    marks: Path
    forgetful: bool
    running: dict[int, tuple[str, int]] = field(default_factory=dict)
    tries: int = 0

    def start(self, name: str, round_: int) -> None:
        self.tries += 1
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self._do(name, round_)
                code = 0
            except BaseException:  # noqa: BLE001 - a client that is struck says why, and is begun again
                with (self.stage.folder / "clients.log").open("a") as log:
                    log.write(f"--- {name} {round_} (pid {os.getpid()}):\n{traceback.format_exc()}\n")
            finally:
                os._exit(code)
        self.running[pid] = name, round_

    def _do(self, name: str, round_: int) -> None:
        sys.stdout = sys.stderr = (self.stage.folder / "clients.out").open("a")
        FilesystemTransport.global_state.clear()
        failpoints.arm(self.armed, str(self.marks))
        app = build(self.stage.conf, self.stage.folder)
        client = Client(app, self.stage.folder, f"{name}-{round_}", self.forgetful)
        ERRANDS[name].do(client)
        client.side.publisher.close()

    def turn(self) -> None:
        """Bury who has ended, and begin again what was not done."""
        for pid in list(self.running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            name, round_ = self.running.pop(pid)
            if status:
                assert self.tries < TRIES * len(ERRANDS), f"{name} does not come to its end:\n{self.log[-6000:]}"
                self.start(name, round_)

    @property
    def log(self) -> str:
        path = self.stage.folder / "clients.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        for pid in self.running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class Tour:
    """One action at these points, on one ledger and broker."""

    def __init__(self, folder: Path, broker: Broker, ledger_url: str, action: str, points: Collection[str]) -> None:
        self.points, self.folder = set(points), folder
        self.marks = folder / "marks"
        self.marks.mkdir()
        self._mark = "-" + action.removeprefix("execute-then-").partition("(")[0]
        armed = [f"{point}={action}" for point in points]
        armed += [] if action.endswith("raise") else PROVOKED
        options = {} if broker.name == "rabbitmq" else BACK_SOON | broker.conf.get("broker_transport_options", {})
        conf = broker.conf | {"broker_transport_options": options}
        self.stage = Points(folder, conf, ledger_url, **CONF)
        self.stage.ledger.db.run(metadata.create_all)
        self.stage.fleet._env.update({failpoints.VARIABLE: ";".join(armed), failpoints.ONCE: str(self.marks)})
        self.errands = Errands(self.stage, ";".join(armed), self.marks, broker.name == "filesystem")
        self._stood: dict[str, float] = {}
        self._wanted: set[str] = set()

    def struck(self) -> dict[str, int]:
        """The points that have struck, and the id of the process that each one struck."""
        marks = [m for m in self.marks.iterdir() if m.name.endswith(self._mark)]
        return {m.name.removesuffix(self._mark): int(m.read_text() or 0) for m in marks}

    def missing(self) -> set[str]:
        return self.points - set(self.struck())

    def go(self, rng: random.Random) -> None:
        """Send clients until every point has struck, and wait until nothing is under way."""
        for round_ in range(ROUNDS):
            missing = {point.partition(".")[0] for point in self.missing()}
            if not missing:
                break
            names = [name for name, errand in ERRANDS.items() if errand.verbs & missing]
            rng.shuffle(names)
            for name in names:
                self.errands.start(name, round_)
            wait_until(self._turn, PATIENCE, f"clients of round {round_} do not come to their end")
        wait_until(self._quiet, PATIENCE, "something is stuck")

    def _turn(self) -> bool:
        """Keep workers and clients going; say whether all errands are done."""
        self._send_on()
        fleet = self.stage.fleet
        for wanted in self.folder.glob("wanted-*"):
            if wanted.name not in self._wanted:
                self._wanted.add(wanted.name)
                fleet.running[0].shut_down() if fleet.running else None
        for _ in range(WORKERS - len(fleet.running)):
            fleet.start(wait=False)
        self.errands.turn()
        return not self.errands.running

    def _send_on(self) -> None:
        """Continue what has stood still for longer than its lease."""
        if self._mark != "-stop":
            return
        for point, pid in self.struck().items():
            since = self._stood.setdefault(point, time.monotonic())
            if pid and since and time.monotonic() - since > STANDSTILL:
                self._stood[point] = 0
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _quiet(self) -> bool:
        self._turn()
        c = self.stage.ledger.t.task.c
        live = self.stage.rows(c.observed == 0, (c.finished_at.is_(None)) | (c.continuation_pending.is_not(None)))
        return not live and all(since == 0 for since in self._stood.values())

    def close(self) -> None:
        self.errands.close()
        self.stage.close()

    def facts(self) -> dict[str, Any]:
        """What happened, in numbers."""
        return {
            "points": len(self.struck()), "workers": len(self.stage.fleet.workers), "clients": self.errands.tries,
            "rows": len(self.stage.rows()), "executions": self.stage.witness.count(),
        }  # fmt: skip
