"""What the doctor finds: an id that stays, how bad it is, a sentence with the value seen, and the fix. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from celery_durable.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: A promise is broken, or nothing runs; something is weaker or slower than it should be; good to know.
ERROR, WARNING, INFO = LEVELS = ("error", "warning", "info")
#: How many names a sentence lists.
NAMED = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. ``id`` is documented in ``docs/doctor.md`` and does not change."""

    id: str
    level: str
    message: str
    fix: str

    def as_json(self) -> dict[str, str]:
        """Return the contract's JSON form."""
        return asdict(self)


def error(name: str, message: str, fix: str) -> Finding:
    """Make a finding that breaks a promise or keeps everything from running."""
    return Finding(name, ERROR, message, fix)


def warning(name: str, message: str, fix: str) -> Finding:
    """Make a finding that weakens or slows something."""
    return Finding(name, WARNING, message, fix)


def info(name: str, message: str, fix: str) -> Finding:
    """Make a finding that is good to know."""
    return Finding(name, INFO, message, fix)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Put the worst first; otherwise as found."""
    return sorted(findings, key=lambda f: LEVELS.index(f.level))


def healthy(findings: Iterable[Finding]) -> bool:
    """Say whether none is an error."""
    return all(f.level != ERROR for f in findings)


def summary(findings: Sequence[Finding]) -> str:
    """Count them by level: ``1 error, 2 warnings``."""
    counts = ((level, sum(f.level == level for f in findings)) for level in (ERROR, WARNING))
    told = [counted(number, level) for level, number in counts if number]
    notes = sum(f.level == INFO for f in findings)
    return ", ".join([*told, *([counted(notes, "note")] if notes else [])])


def listed(names: Iterable[str]) -> str:
    """Name a few, and say how many more there are."""
    every = sorted(names)
    shown = ", ".join(every[:NAMED])
    return shown if len(every) <= NAMED else f"{shown} and {len(every) - NAMED} more"


__all__ = ["ERROR", "INFO", "LEVELS", "WARNING", "Finding", "error", "healthy", "in_order", "info", "listed",
           "summary", "warning"]  # fmt: skip
