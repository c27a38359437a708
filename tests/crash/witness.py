"""Who ran what: a file that bodies append to, which knows nothing of the ledger."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

STARTED, FINISHED = "started", "finished"
#: A turn of a long body, and how that was left before its end.
TURN, LEFT = "turn", "left"


@dataclass(frozen=True, slots=True)
class Sight:
    """One line. `at` is the machine's monotonic clock, the same for every process."""

    what: str
    task_id: str
    fence: int
    pid: int
    note: str
    at: float


class Witness:
    """Lines are appended in one write each, so that a kill leaves whole lines only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: list[Sight] = []
        self._read = 0

    def saw(self, what: str, task_id: str, fence: int = 0, note: str = "") -> None:
        sight = Sight(what, task_id, fence, os.getpid(), note, time.monotonic())
        target = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(target, json.dumps(asdict(sight)).encode() + b"\n")
        finally:
            os.close(target)

    @property
    def sights(self) -> list[Sight]:
        """All lines so far, oldest first."""
        if self.path.exists():
            with self.path.open("rb") as lines:
                lines.seek(self._read)
                text = lines.read()
            text = text[: text.rfind(b"\n") + 1]
            self._read += len(text)
            self._seen += [Sight(**json.loads(line)) for line in text.splitlines()]
        return self._seen

    def of(self, task_id: str, what: str = STARTED) -> list[Sight]:
        return [s for s in self.sights if s.task_id == task_id and s.what == what]

    def count(self, what: str = STARTED) -> int:
        return sum(s.what == what for s in self.sights)

    def finished(self) -> set[str]:
        """Ids whose body came to its end at least once."""
        return {s.task_id for s in self.sights if s.what == FINISHED}

    def in_flight(self) -> list[Sight]:
        """Starts whose process has not finished them (nor started anything since)."""
        last: dict[int, Sight] = {}
        for sight in self.sights:
            last[sight.pid] = sight
        return [s for s in last.values() if s.what == STARTED]
