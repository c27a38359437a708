"""What a worker's parent process tells its pool process about a delivery; and when not to be interrupted."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from os import getpid
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery_durable.board import NO_LINE
from celery_durable.outbox import HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from celery_durable.task import DurableTask
    from celery_durable.wiring import Plugin


#: What of a message's body may wait for the outcome, under the names that a request gives it.
EMBEDDED = ("callbacks", "errbacks", "chain", "chord")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery of a durable task, as Celery hands it to a tracer."""

    side: Plugin
    task: DurableTask
    uuid: str
    args: Any
    kwargs: Any
    request: dict[str, Any]
    note: Note

    @property
    def embed(self) -> dict[str, Any]:
        """Callbacks, errbacks, chain and chord."""
        return {name: self.request.get(name) for name in EMBEDDED}


@dataclass(frozen=True, slots=True)
class Note:
    """One delivery: its random token, and whether the message belongs to a row of this ledger.

    ``message`` carries what adoption needs of a message that does not; ``line`` is the delivery's on the board.
    """

    token: str
    recorded: bool
    envelope_no: int
    worker: str
    message: dict[str, Any] | None = None
    line: int = NO_LINE

    @classmethod
    def of(cls, request: dict[str, Any], side: Plugin) -> Note:
        """Take the note out of a request, so that it does not travel on in the headers of a retry."""
        found = request.pop(HEADER, None)
        if isinstance(found, dict) and "token" in found:
            return cls(**found)
        worker = request.get("hostname") or f"{getpid()}@{socket.gethostname()}"
        return cls.read(found, str(request.get("id")), side.ledger.uuid, str(worker))

    @classmethod
    def read(cls, header: object, task_id: str, ledger_uuid: str, worker: str) -> Note:
        """Make the note of a delivery from its message's header, which counts only if all of it fits."""
        recorded = (
            isinstance(header, dict)
            and header.get("ledger") == ledger_uuid
            and header.get("id") == task_id
            and isinstance(header.get("envelope"), int)
        )
        number = header["envelope"] if recorded and isinstance(header, dict) else 0
        return cls(uuid4().hex, recorded, number, worker)

    def plain(self) -> dict[str, Any]:
        """Return it as plain data, to be sent to a pool process."""
        return {
            "token": self.token, "recorded": self.recorded, "envelope_no": self.envelope_no,
            "worker": self.worker, "message": self.message, "line": self.line,
        }  # fmt: skip


class SoftLimitGuard:
    """Holds back the soft time limit's signal, except while the body runs.

    A soft limit that struck within a settle would leave the connection in the middle of a transaction.
    """

    _SIGNAL: Any = getattr(signal, "SIGUSR1", None)

    def __enter__(self) -> Self:
        """Block the signal in a pool process's main thread; elsewhere there is none."""
        self._active = self._SIGNAL is not None and threading.current_thread() is threading.main_thread()
        self._block()
        return self

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let the signal through; one that was held back strikes at once."""
        try:
            if self._active:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {self._SIGNAL})
            yield
        finally:
            self._block()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Hold the signal back while the body has the ledger write something."""
        held = self._active and self._SIGNAL in signal.pthread_sigmask(signal.SIG_BLOCK, {self._SIGNAL})
        try:
            yield
        finally:
            if self._active and not held:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {self._SIGNAL})

    def _block(self) -> None:
        if self._active:
            signal.pthread_sigmask(signal.SIG_BLOCK, {self._SIGNAL})

    def __exit__(self, *exc: object) -> None:
        """Drop a signal that came too late: the outcome is settled."""
        if not self._active:
            return
        if self._SIGNAL in signal.sigpending():
            handler = signal.signal(self._SIGNAL, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {self._SIGNAL})
            signal.signal(self._SIGNAL, handler)
        else:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {self._SIGNAL})
