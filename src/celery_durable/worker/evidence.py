"""When the locks of other workers say that one is gone: seen free more than once, for long enough, and with reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery_durable.ledger import Peer

#: Seconds for which a lock has to be free that was seen held before: its worker, if it lives, takes another meanwhile.
GRACE = 0.5
#: The same for a lock that was never seen held, as by a worker that has just started.
LONG_GRACE = 1.0


class Evidence:
    """One worker's notes of what it saw. Times are seconds on a monotonic clock."""

    def __init__(self) -> None:
        """Begin without any."""
        self._held: set[tuple[str, int]] = set()
        self._free_since: dict[tuple[str, int], float] = {}
        self._patient_until = float("-inf")

    def distrust(self, until: float) -> None:
        """Forget what was seen, and believe nothing until then: what took our own lock may have taken everybody's."""
        self._held.clear()
        self._free_since.clear()
        self._patient_until = until

    def gone(self, peers: Iterable[Peer], now: float) -> list[Peer]:
        """Take a look at all peers; return those that are gone by now.

        A lock that was never seen held has to be one of this very server as it was started last: a restart frees all.
        """
        seen = {(peer.id, peer.number): peer for peer in peers}
        self._held = {key for key, peer in seen.items() if not peer.free or key in self._held}
        since = self._free_since
        self._free_since = {
            key: since.get(key, now)
            for key, peer in seen.items()
            if peer.free and now >= self._patient_until and (peer.here or key in self._held)
        }
        return [seen[key] for key in self._free_since if now >= self._ripe(key)]

    def next_look(self) -> float | None:
        """Return when a suspicion will have lasted long enough; None where there is none."""
        return min(map(self._ripe, self._free_since), default=None)

    def _ripe(self, key: tuple[str, int]) -> float:
        return self._free_since[key] + (GRACE if key in self._held else LONG_GRACE)
