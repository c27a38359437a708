"""Times, durations and counts as people read them. Nothing here reads a clock."""

from __future__ import annotations

from datetime import datetime, timezone

SECOND = 1_000_000


def clock(micros: int | None, now: int) -> str:
    """Write a time as ``12:03:11`` (UTC), with the date when it is not today's."""
    if micros is None:
        return "a time that was not recorded"
    moment, today = (datetime.fromtimestamp(t / SECOND, timezone.utc) for t in (micros, now))
    return moment.strftime("%H:%M:%S" if moment.date() == today.date() else "%Y-%m-%d %H:%M:%S")


def span(micros: int) -> str:
    """Write a duration in the largest unit that fits: ``12 s``, ``3 min``, ``2.5 h``, ``4 d``."""
    seconds = abs(micros) / SECOND
    if seconds < 1:
        return "less than a second"
    for unit, size, digits in (("d", 86_400, 1), ("h", 3_600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{round(seconds / size, digits):g} {unit}"
    return f"{seconds:.0f} s"


def moment(micros: int | None, now: int) -> str:
    """Write a time absolutely and relatively: ``2030-01-02 12:03:11 (3 min ago)``."""
    if micros is None:
        return "-"
    shown = datetime.fromtimestamp(micros / SECOND, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    return f"{shown} ({relative(micros, now)})"


def relative(micros: int, now: int) -> str:
    """``3 min ago`` or ``in 12 s``."""
    if abs(now - micros) < SECOND:
        return "now"
    return f"{span(now - micros)} ago" if micros <= now else f"in {span(micros - now)}"


def counted(number: int, noun: str) -> str:
    """``1 task``, ``2 tasks``, ``2 losses``."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"


def brief(text: str, limit: int = 200) -> str:
    """Put what others wrote on one line, and cut what would drown the rest."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
