"""What the gateway's own file says. Nothing here knows of Celery, of the ledger or of a kill."""

import sqlite3
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reconciliation:
    """The gateway's side of the account, for the orders of one run."""

    orders: int
    requests: int
    repeated: int
    charged_once: int
    charged_twice: int
    lost: int

    @property
    def ok(self) -> bool:
        """Whether each order was charged, and charged once."""
        return self.charged_once == self.orders


class Witness:
    """Reads the gateway's file; other orders than those of this run do not count."""

    def __init__(self, path: Path, orders: Collection[str]) -> None:
        """Open the file for reading only: a witness changes nothing."""
        self._db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        self._orders = frozenset(orders)

    def requested(self) -> Counter[str]:
        """How often the gateway was asked to charge each order."""
        return self._count("SELECT order_id FROM requests")

    def charged(self) -> Counter[str]:
        """How often each order was charged."""
        return self._count("SELECT order_id FROM charges")

    def in_flight(self) -> list[tuple[int, str]]:
        """Tell who waits for an answer at this moment: the process and its order."""
        return self._db.execute(
            "SELECT worker_pid, order_id FROM requests WHERE answered_at IS NULL AND worker_pid IS NOT NULL ORDER BY id"
        ).fetchall()

    def reconcile(self) -> Reconciliation:
        """Compare what was ordered with what was asked and done."""
        requested, charged = self.requested(), self.charged()
        once = sum(1 for count in charged.values() if count == 1)
        return Reconciliation(
            orders=len(self._orders),
            requests=requested.total(),
            repeated=requested.total() - len(requested),
            charged_once=once,
            charged_twice=len(charged) - once,
            lost=len(self._orders - charged.keys()),
        )

    def _count(self, query: str) -> Counter[str]:
        return Counter(order for (order,) in self._db.execute(query) if order in self._orders)
