"""One soak of one side: set up, let the storm pass, wait for calm, judge."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.crash.fleet import ROOT
from tests.crash.witness import FINISHED, Witness
from tests.soak.crew import Crew
from tests.soak.judge import Fault, Verdict, judge, recoveries
from tests.soak.nemesis import Nemesis
from tests.soak.places import PAIRS, Cage, Disk, Network
from tests.soak.sides import SIDES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.soak.plan import Strike

SLOTS = 4


@dataclass(frozen=True)
class Outcome:
    """All that one soak told."""

    side: str
    pair: str
    verdict: Verdict
    audit: dict[str, Any]
    settled: bool
    recoveries: dict[str, list[float]]
    faults: list[Fault]
    failed: list[str]
    began: float
    finished: list[float]  # when bodies came to their end
    workers: int  # how many were started
    fell: int  # how many of them ended without having been struck

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return self.verdict.kept and self.settled and not self.audit.get("faults")

    @property
    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(fault.kind for fault in self.faults).items()))


def soak(
    side_name: str, pair: str, plan: Sequence[Strike], minutes: float, seed: int, rate: float, folder: Path
) -> Outcome:
    """Run one; `folder` keeps the logs."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        disk = Disk(folder / "disk")
        stack.callback(disk.close)
        before, tempfile.tempdir = tempfile.tempdir, str(disk.folder)
        try:
            broker, ledger = (stack.enter_context(kind()) for kind in PAIRS[pair])
        finally:
            tempfile.tempdir = before
        side = SIDES[side_name](folder, broker.url, ledger.database())
        side.prepare()
        stack.callback(side.close)
        cage = Cage()
        stack.callback(cage.close)
        crew = Crew(folder, [side.env(slot) for slot in range(SLOTS)])
        stack.callback(crew.stop)
        crew.start()
        witness = Witness(folder / "witness")
        nemesis = Nemesis(crew, broker, ledger, witness, (Network(), disk, cage))
        stack.callback(nemesis.network.close)
        client = _client(folder, side.env(), seed, rate, minutes * 60)
        stack.callback(_end, client)
        began = time.monotonic()
        nemesis.start(plan, began)
        nemesis.join()
        client.wait(600)
        settled = side.settle(witness)
        crew.stop()
        sights = Witness(witness.path).sights
        return Outcome(
            side=side.name,
            pair=pair,
            verdict=judge(Witness(folder / "client").sights, sights, side.effects()),
            audit=side.audit(),
            settled=settled,
            recoveries=recoveries(nemesis.faults, sights),
            faults=nemesis.faults,
            failed=nemesis.failed,
            began=began,
            finished=[sight.at for sight in sights if sight.what == FINISHED],
            workers=crew.started,
            fell=crew.fell,
        )


def _client(folder: Path, env: dict[str, str], seed: int, rate: float, seconds: float) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.soak.client", str(folder), str(seed), str(rate), str(seconds)]
    with (folder / "client.log").open("wb") as log:
        return subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()
