"""The leases of what really runs in this worker's pool: kept alive, and told of on the board."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_durable.board import Board

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.wiring import Plugin

logger = logging.getLogger(__name__)

#: Seconds past a time limit after which a lease is let go, whatever the pool does about it.
LIMIT_GRACE = 5.0
#: How many running tasks are asked about in one look for cancellations.
MAX_ASKED = 1_000


@dataclass(slots=True)
class Kept:
    """A delivery in the pool whose lease is renewed; ``line`` is its own on the board."""

    token: str
    lease: float
    until: float | None
    request: Any
    line: int
    cancelled: bool = False


class Leases:
    """Taken up and let go on the event loop, renewed in the keeper's thread."""

    def __init__(self, side: Plugin, *, timed_out: Callable[[Any], None], terminate: Callable[[Any], None]) -> None:
        """``timed_out`` records that a delivery is past its limit, ``terminate`` ends its process."""
        self.board = Board()
        self._ledger, self._lease = side.ledger, side.settings.lease
        self._timed_out, self._terminate = timed_out, terminate
        self._kept: dict[str, Kept] = {}
        self._renewed = float("-inf")

    def __len__(self) -> int:
        """How many deliveries are in the pool."""
        return len(self._kept)

    def requests(self) -> list[Any]:
        """Return the deliveries in the pool."""
        return [kept.request for kept in list(self._kept.values())]

    def unasked(self) -> list[str]:
        """Tasks that were not told of a cancellation; of very many, the rest hear of it when they are renewed."""
        return [task_id for task_id, kept in list(self._kept.items()) if not kept.cancelled][:MAX_ASKED]

    def take(self, request: Any) -> int:
        """Renew the lease of a delivery from now on; return its line on the board."""
        lease = request.task.lease or self._lease
        hard = request.time_limits[0]
        until = time.monotonic() + hard + LIMIT_GRACE if hard else None
        self._drop(request.id)
        line = self.board.take(request.note.token)
        self._kept[request.id] = Kept(request.note.token, lease, until, request, line)
        return line

    def let_go(self, task_id: str, token: str) -> None:
        """Stop renewing a delivery that has left the pool."""
        kept = self._kept.get(task_id)
        if kept is not None and kept.token == token:
            self._drop(task_id)

    def holds(self, request: Any) -> bool:
        """Whether a delivery is in the pool still."""
        kept = self._kept.get(request.id)
        return kept is not None and kept.token == request.note.token

    def _drop(self, task_id: str) -> None:
        kept = self._kept.pop(task_id, None)
        if kept is not None:
            self.board.give_back(kept.line)

    def due(self) -> bool:
        """Whether a third of the shortest lease has passed since they were renewed."""
        shortest = min([self._lease, *(kept.lease for kept in list(self._kept.values()))])
        return time.monotonic() - self._renewed >= shortest / 3

    def renew(self) -> None:
        """Renew them all, and tell bodies of it, and of cancellations.

        Raises:
            LedgerError: the ledger did not answer.
        """
        now = time.monotonic()
        by_lease: dict[float, dict[str, str]] = {}
        for task_id, kept in list(self._kept.items()):
            if kept.until is not None and now > kept.until:
                # Threads and solo ignore Celery's limits, and a stuck pool may too.
                self._drop(task_id)
                self._timed_out(kept.request)
                continue
            by_lease.setdefault(kept.lease, {})[task_id] = kept.token
        for lease, tokens in by_lease.items():
            for task_id, cancelled in self._ledger.renew(tokens, lease).items():
                self._tell(task_id, tokens[task_id], now + lease, cancelled=cancelled)
        self._renewed = now

    def _tell(self, task_id: str, token: str, until: float, *, cancelled: bool) -> None:
        kept = self._kept.get(task_id)
        if kept is None or kept.token != token:
            return
        self.board.renewed(kept.line, token, until, cancelled=cancelled)
        if cancelled and not kept.cancelled:
            terminate = self._ledger.asked(task_id, token).terminate
            kept.cancelled = True
            if terminate:
                self._terminate(kept.request)
