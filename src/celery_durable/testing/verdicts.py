"""What came of a crash test: a verdict for each crash point, told in one message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery_durable.wording import counted


class CrashTestFailed(AssertionError):
    """A task does not survive a crash at some point; ``report`` has all of them."""

    def __init__(self, report: Report) -> None:
        """Say it in one message."""
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a crash at one point; ``problem`` is empty where all was well."""

    point: str
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"point": self.point, "ok": not self.problem, "problem": self.problem or None}


@dataclass(frozen=True, slots=True)
class Report:
    """The verdicts of a task.

    ``path`` says how its path differed between two runs, ``strays`` what was sent and nobody ran, ``left_out`` how many
    points were not struck, since their place was struck several times already.
    """

    task: str
    verdicts: tuple[Verdict, ...]
    path: str = ""
    strays: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def broken(self) -> list[Verdict]:
        """Return the crash points that the task did not survive."""
        return [v for v in self.verdicts if v.problem]

    @property
    def ok(self) -> bool:
        """Whether the task survived every crash, on one path."""
        return not self.broken and not self.path

    @property
    def headline(self) -> str:
        """Say in a sentence what came of it."""
        points = len(self.verdicts)
        if self.broken:
            return f"{self.task} broke at {len(self.broken)} of {points} crash points."
        return f"{self.task} survived a crash at each of {points} points."

    @property
    def notes(self) -> list[str]:
        """Say what else is worth knowing."""
        path = [f"Its path differs between runs: {self.path}"] if self.path else []
        strays = [f"Sent and not run, since they are not durable: {', '.join(self.strays)}."] if self.strays else []
        left = [f"Not struck: {counted(self.left_out, 'repetition')} of these points."] if self.left_out else []
        return [*path, *strays, *left]

    def __str__(self) -> str:
        """Return it for people: a line for each crash point that broke, and for each note."""
        return "\n  ".join([self.headline, *(f"{v.point}: {v.problem}" for v in self.broken), *self.notes])

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "ok": self.ok, "task": self.task, "points": [v.as_json() for v in self.verdicts],
            "path_differs": self.path or None, "not_run": list(self.strays),
            "left_out": self.left_out,
        }  # fmt: skip


__all__ = ["CrashTestFailed", "Report", "Verdict"]
