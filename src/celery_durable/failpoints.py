"""Failpoints: named places at which a process can be made to die, fail, stop or dawdle, to prove what a crash does.

Nothing happens until the environment arms them, and unarmed they cost one look at an empty mapping where messages are
sent and acknowledged, and nothing at all at the ledger's statements::

    DURABLE_FAILPOINTS="succeed.commit=execute-then-die; publish=raise@2"

A point is ``publish``, ``acknowledge``, or a verb of the ledger with ``.statement`` or ``.commit``, as
``claim.statement`` and ``submit.commit``. ``@2`` means the second time that a process comes there. The actions, each of
which ``execute-then-`` puts after what the point stands before:

    ``die``         SIGKILL to the process itself
    ``raise``       the connection breaks: what was begun is rolled back; what was executed was done, its reply is lost
    ``stop``        SIGSTOP: somebody else has to send SIGCONT
    ``sleep(S)``    wait S seconds

Where ``DURABLE_FAILPOINTS_ONCE`` names a folder, each armed point strikes once among all the processes that share it,
and leaves a file there with the id of the process that it struck.
"""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from celery_durable.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

VARIABLE, ONCE = "DURABLE_FAILPOINTS", "DURABLE_FAILPOINTS_ONCE"
PUBLISH, ACKNOWLEDGE = "publish", "acknowledge"
#: Told to a watcher only, with the step's name: the function of a step, and of a transactional one.
STEP, TRANSACTION = "step", "transaction"
_SPEC = re.compile(
    r"(?P<point>publish|acknowledge|[a-z_]+\.(?:statement|commit))=(?P<after>execute-then-)?(?P<action>die|raise|stop|sleep\((?P<seconds>[0-9.]+)\))(@(?P<nth>\d+))?"
)


class Injected(ConnectionError):
    """A failpoint broke a connection."""


@dataclass(slots=True)
class Failpoint:
    """One armed point, and how often this process came by."""

    point: str
    action: str
    after: bool
    seconds: float
    nth: int | None
    folder: str | None
    seen: int = 0

    def strike(self) -> None:
        """Do what was asked for, if this is the time."""
        self.seen += 1
        if (self.nth is not None and self.seen != self.nth) or not self._first():
            return
        if self.action == "raise":
            raise Injected(f"failpoint {self.point}")
        if self.action.startswith("sleep"):
            time.sleep(self.seconds)
        else:
            os.kill(os.getpid(), signal.SIGKILL if self.action == "die" else signal.SIGSTOP)

    def _first(self) -> bool:
        if self.folder is None:
            return True
        try:
            with Path(self.folder, f"{self.point}-{self.action.partition('(')[0]}").open("x") as mark:
                mark.write(str(os.getpid()))
        except FileExistsError:
            return False
        return True


_armed: dict[tuple[str, bool], list[Failpoint]] = {}
_watcher: Callable[[str, bool, str], None] | None = None


def watch(watcher: Callable[[str, bool, str], None]) -> None:
    """Have a watcher told of every point that this process comes by: its name, whether after, and what it is about.

    For the crash kit (``celery_durable.testing``), which strikes by itself. To be called before anything uses the
    ledger in this process.
    """
    global _watcher  # noqa: PLW0603 - one per process, as what is armed
    _watcher = watcher


def points(verbs: Iterable[str]) -> list[str]:
    """Name every point there is, for these verbs of the ledger."""
    return [PUBLISH, ACKNOWLEDGE, *(f"{verb}.{place}" for verb in verbs for place in ("statement", "commit"))]


def arm(text: str, folder: str | None = None) -> None:
    """Arm what ``text`` says, and nothing else, in this process.

    Raises:
        SettingsError: what says no point and action.
    """
    _armed.clear()
    for part in filter(None, (p.strip() for p in re.split(r"[;,\s]+", text))):
        found = _SPEC.fullmatch(part)
        if found is None:
            raise _unknown(part)
        nth = int(found["nth"]) if found["nth"] else None
        after = bool(found["after"])
        armed = Failpoint(found["point"], found["action"], after, float(found["seconds"] or 0), nth, folder)
        _armed.setdefault((armed.point, after), []).append(armed)


def armed() -> bool:
    """Say whether any point is armed in this process."""
    return bool(_armed) or _watcher is not None


def check(verbs: Iterable[str]) -> None:
    """See that every armed point exists.

    Raises:
        SettingsError: one that does not.
    """
    known = set(points(verbs))
    for point, _ in _armed:
        if point not in known:
            raise _unknown(point)


def _unknown(text: str) -> SettingsError:
    return SettingsError(
        f"{VARIABLE} has {text!r}; it looks like succeed.commit=execute-then-die or publish=raise@2, and "
        "'celery -A <app> durable failpoints' lists the points."
    )


def strike(point: str, *, after: bool = False, about: str = "") -> None:
    """Come by a point: ``after`` what it stands before was executed, or just before; ``about`` is for a watcher.

    Raises:
        Injected: that is what the point is armed with.
    """
    for failpoint in _armed.get((point, after), ()):
        failpoint.strike()
    if _watcher is not None:
        _watcher(point, after, about)


@contextmanager
def around(point: str, about: str = "") -> Iterator[None]:
    """Come by a point before and after what the block does."""
    if not armed():
        yield
        return
    strike(point, about=about)
    yield
    strike(point, after=True, about=about)


arm(os.environ.get(VARIABLE, ""), os.environ.get(ONCE) or None)
