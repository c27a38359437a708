"""The crash points that a task comes by: told by failpoints, written to a file, and struck one at a time. Pure."""

from __future__ import annotations

import linecache
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable import failpoints

if TYPE_CHECKING:
    from types import FrameType

_OURS = str(Path(__file__).parent.parent)
_STRUCK = "struck "
#: Most points inside one step: what a step does in a loop is done again in the same lines.
_MOST_LINES = 30
#: Most characters of a line or statement in the name of a point.
_MOST_TEXT = 60
#: Statements of ours in a transaction of the user's are no crash points of his.
_OWN = ("SAVEPOINT", "RELEASE", "BEGIN", "ROLLBACK")


class Point(NamedTuple):
    """A crash point: what the task was about to do, or had done, and for the how-manieth time in its life."""

    place: str
    nth: int

    def __str__(self) -> str:
        """Return it for people."""
        return self.place if self.nth == 1 else f"{self.place} (time {self.nth})"


class Trail:
    """The points that a task has come by in all its processes, in a file that survives them."""

    def __init__(self, path: Path) -> None:
        """Go on with what the file holds."""
        self.path = path

    def points(self) -> list[Point]:
        """Return them in their order."""
        seen: Counter[str] = Counter()
        found = []
        for place in self._lines():
            if not place.startswith(_STRUCK):
                seen[place] += 1
                found.append(Point(place, seen[place]))
        return found

    @property
    def struck(self) -> bool:
        """Whether a process was killed here."""
        return any(line.startswith(_STRUCK) for line in self._lines())

    def _lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def add(self, place: str) -> None:
        """Note a point, before anything else happens."""
        with self.path.open("a") as file:
            file.write(place + "\n")

    def strike(self, place: str) -> None:
        """Note that the process dies here, and kill it."""
        self.add(_STRUCK + place)
        os.kill(os.getpid(), signal.SIGKILL)


class Guide:
    """Watches the failpoints of one process, and calls what it comes by as users call it."""

    def __init__(self, trail: Trail, target: Point | None, prefix: str, table_prefix: str) -> None:
        """Kill at ``target``, if that is given; ``prefix`` names the task where there are several."""
        self._trail, self._target, self._prefix = trail, target, prefix
        self._tables = table_prefix
        self._seen = Counter(p.place for p in trail.points())
        self._done = trail.struck
        self._step, self._verb = "", ""
        self._lines: set[int] = set()

    def __call__(self, point: str, after: bool, about: str) -> None:  # noqa: FBT001 - failpoints' signature
        """Take note of a failpoint."""
        if point in {failpoints.STEP, failpoints.TRANSACTION}:
            self._at_step(about, after=after, plain=point == failpoints.STEP)
            return
        verb, _, place = point.partition(".")
        if verb == "transact_step":
            self._in_transaction(place, about, after=after)
        elif place == "commit" and after:
            told = {
                "claim": "after the claim, before the body",
                "record_step": f"after step {self._step!r} was recorded",
                "succeed": "after the success was recorded, before anybody was told",
                "settle": "after a wait, a retry or a failure was recorded",
                "write_checkpoint": "after a checkpoint was recorded",
            }.get(verb)
            self._verb = ""
            if told:
                self._come_by(told)
        elif place == "statement" and not after and verb != self._verb:
            self._verb = verb
            told = {
                "succeed": "after the body, before the success was recorded",
                "settle": "before a wait, a retry or a failure was recorded",
                "write_checkpoint": "before a checkpoint was recorded",
            }.get(verb)
            if told:
                self._come_by(told)

    def _at_step(self, name: str, *, after: bool, plain: bool) -> None:
        if after:
            sys.settrace(None)
            if plain:
                self._come_by(f"after step {name!r}, before it was recorded")
            return
        self._step = name
        if plain:
            self._come_by(f"before step {name!r}")
            self._lines = set()
            self._entered = False
            sys.settrace(self._trace)
        else:
            self._come_by(f"in the transaction of step {name!r}, before its function")

    def _in_transaction(self, place: str, about: str, *, after: bool) -> None:
        inside = f"in the transaction of step {self._step!r}"
        if place == "commit":
            told = f"after step {self._step!r} was committed" if after else f"{inside}, before its COMMIT"
            self._come_by(told)
            return
        sql = " ".join(about.split())
        if self._tables not in sql and not sql.upper().startswith(_OWN):
            self._come_by(f"{inside}, {'after' if after else 'before'} {_short(sql)}")

    # Inside a step: before each further line of its function -------------------------------------------

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """Follow the step's own function, the first of the user's that is called; libraries are not looked into."""
        file = frame.f_code.co_filename
        if event != "call" or self._entered or file.startswith(_OURS):
            return None
        self._entered = True
        if "site-packages" in file or file.startswith("<"):
            return None
        self._lines.add(frame.f_lineno)  # "call" has the line of its def
        self._first = True
        return self._line

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event != "line" or frame.f_lineno in self._lines or len(self._lines) > _MOST_LINES:
            return self._line
        self._lines.add(frame.f_lineno)
        if self._first:  # nothing was done so far: this is before the step
            self._first = False
            return self._line
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        self._come_by(f"inside step {self._step!r}, before line {frame.f_lineno}: {_short(text)}")
        return self._line

    def _come_by(self, what: str) -> None:
        place = f"{self._prefix}{' '.join(what.split())}"
        self._seen[place] += 1
        if not self._done and self._target == Point(place, self._seen[place]):
            self._trail.strike(place)
        self._trail.add(place)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 3]}..."


__all__ = ["Guide", "Point", "Trail"]
