"""Preconditions that a task declares: looked at before the body runs, and turned into waits by themselves.

A precondition is anything with ``unmet(arguments) -> str | None``: the reason why the task cannot run yet,
or None when it can. ``arguments`` maps the names of the task's parameters to the values of this call.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Seconds until an unmet precondition is looked at again, and for which a connection is tried.
RETRY_IN, CONNECT_TIMEOUT = 30.0, 3.0


@runtime_checkable
class Precondition(Protocol):
    """Something that has to hold before a task's body runs."""

    retry_in: float

    def unmet(self, arguments: Mapping[str, Any]) -> str | None:
        """Say why the task cannot run yet, or None."""


@dataclass(frozen=True, slots=True)
class PathExists:
    """A file or directory; the path is a template over the arguments (``"/data/{day}.csv"``)."""

    path: str
    retry_in: float = RETRY_IN

    def unmet(self, arguments: Mapping[str, Any]) -> str | None:
        """Look for the path."""
        path = self.path.format_map(dict(arguments))
        return None if os.path.exists(path) else f"{path} does not exist"  # noqa: PTH110 - the user's text, as it is


@dataclass(frozen=True, slots=True)
class Reachable:
    """A TCP endpoint ``"host:port"`` that accepts a connection; a template over the arguments."""

    endpoint: str
    retry_in: float = RETRY_IN
    timeout: float = CONNECT_TIMEOUT

    def unmet(self, arguments: Mapping[str, Any]) -> str | None:
        """Connect, and hang up."""
        endpoint = self.endpoint.format_map(dict(arguments))
        host, _, port = endpoint.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=self.timeout).close()
        except (OSError, ValueError) as exc:
            return f"{endpoint} is not reachable: {exc}"
        return None


@dataclass(frozen=True, slots=True)
class Predicate:
    """A function of the call's arguments (by name, as many as it takes) that returns whether the task can run."""

    holds: Callable[..., object]
    reason: str
    retry_in: float = RETRY_IN

    def unmet(self, arguments: Mapping[str, Any]) -> str | None:
        """Ask the function."""
        code = self.holds.__code__ if hasattr(self.holds, "__code__") else None
        names = code.co_varnames[: code.co_argcount] if code is not None else ()
        return None if self.holds(**{n: arguments[n] for n in names if n in arguments}) else self.reason
