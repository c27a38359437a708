"""Runs scenarios, both sides of each, a few at a time; judges what was seen."""

from __future__ import annotations

import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.forked import zygote
from tests.pains import delivering, dying, following, submitting
from tests.pains.kit import DURABLE, PAINS, STOCK, Pain, Seen, Servers, side

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["PAINS", "Row", "compare", "delivering", "dying", "following", "submitting"]


@dataclass(frozen=True)
class Row:
    """Both sides of a pain, side by side."""

    pain: Pain
    stock: Seen | str  # or how the scenario failed
    durable: Seen | str

    @property
    def faults(self) -> list[str]:
        """What contradicts the claim: a pain that stock did not show, one that ours did."""
        found = [f"{name}: {s}" for name, s in ((STOCK, self.stock), (DURABLE, self.durable)) if isinstance(s, str)]
        if isinstance(self.stock, Seen):
            found += [f"{STOCK} shows no pain: {text}" for hurt, text in self.stock.parts if not hurt]
        if isinstance(self.durable, Seen):
            found += [f"{DURABLE} hurts: {text}" for hurt, text in self.durable.parts if hurt]
        return found


def compare(
    servers: Servers,
    folder: Path,
    numbers: Sequence[int],
    *,
    jobs: int = 4,
    told: Callable[[Row], None] = lambda _: None,
) -> list[Row]:
    """Run both sides of these rows."""
    # The beats wait for a minute, whatever else goes on: they begin first.
    order = sorted(numbers, reverse=True)
    zygote()  # before there are threads that would each start one
    with ThreadPoolExecutor(jobs) as pool:
        futures = {n: [pool.submit(_see, servers, folder, PAINS[n], name) for name in (STOCK, DURABLE)] for n in order}
        rows = []
        for n in order:
            stock, durable = (f.result() for f in futures[n])
            rows.append(Row(PAINS[n], stock, durable))
            told(rows[-1])
    return sorted(rows, key=lambda row: row.pain.number)


def _see(servers: Servers, folder: Path, pain: Pain, name: str) -> Seen | str:
    where = folder / f"{pain.number:02}-{name}"
    try:
        with side(servers, where, pain, name) as one:
            return pain.run(one)
    except Exception:  # noqa: BLE001 - a scenario that breaks is a row that failed
        logs = [f"--- {log}\n{_end(log)}" for log in sorted(where.glob("*.log"))]
        return "\n".join([*logs, traceback.format_exc()])


def _end(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])
