"""How a time is said on the command line: ``2h``, ``3d``, or ISO 8601."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import click

_UNITS = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)")


class Moment(click.ParamType):  # type: ignore[type-arg]
    """A duration (``90s``, ``15m``, ``2h``, ``3d``, ``1w``), or an ISO 8601 time, in UTC where it names no zone."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | timedelta:
        """Read it."""
        if isinstance(value, datetime | timedelta):
            return value
        text = str(value).strip()
        spoken = _SPAN.fullmatch(text)
        try:
            if spoken:
                return timedelta(**{_UNITS[spoken[2]]: float(spoken[1])})
            # Python 3.10 does not read the Z of UTC.
            read = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is neither a duration (15m, 2h, 3d) nor a time (2030-01-02T15:00).", param, ctx)
        return read if read.tzinfo else read.replace(tzinfo=timezone.utc)


MOMENT = Moment()
