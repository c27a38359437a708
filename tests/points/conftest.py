"""What the whole enumeration comes to, told at the end of a run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Count what struck in the tests that have passed."""
    strikes: Counter[str] = Counter()
    cells: dict[str, set[Any]] = {"action": set(), "ledger": set(), "broker": set()}
    for report in terminalreporter.stats.get("passed", ()):
        told = dict(report.user_properties)
        strikes.update(told.get("points", ()))
        for name, seen in cells.items():
            seen.update({told[name]} if name in told else ())
    if strikes:
        sizes = " x ".join(f"{len(seen)} {name}s" for name, seen in cells.items())
        terminalreporter.write_line(f"{strikes.total()} strikes: {len(strikes)} points x {sizes}")
