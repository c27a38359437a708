"""A stand-in for the world outside: what is done there survives the process that did it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Effects:
    """A list of effects in a file, for gateways, mail servers and the like that a test stands in for.

    What ``add`` has returned from is there, whatever is killed next. With a ``token`` it does as a gateway with
    idempotency keys does: the second time under the same token adds nothing.
    """

    def __init__(self, path: Path) -> None:
        """Keep them in this file."""
        self._path = path

    def add(self, what: str, *, token: str | None = None) -> int:
        """Do it, and return how many there are."""
        if token is not None and any(t == token for _, t in self._lines()):
            return self.count(what)
        line = json.dumps([what, token]) + "\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)
        return self.count(what)

    def all(self) -> list[str]:
        """Return what was done, oldest first."""
        return [what for what, _ in self._lines()]

    def count(self, what: str | None = None) -> int:
        """Count what was done: all of it, or what is called so."""
        return sum(1 for done in self.all() if what is None or done == what)

    def clear(self) -> None:
        """Forget everything."""
        self._path.unlink(missing_ok=True)

    def _lines(self) -> list[tuple[str, str | None]]:
        if not self._path.exists():
            return []
        return [tuple(json.loads(line)) for line in self._path.read_text().splitlines()]


__all__ = ["Effects"]
