"""The program that strikes, and what a whole sweep comes to, told at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import build
from tests.sweep.strace import Strace

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter


@pytest.fixture(scope="session")
def strace() -> Strace:
    return build(Strace)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Tell how many system calls each move was struck at."""
    for report in terminalreporter.stats.get("passed", ()):
        for dialect, moves in dict(report.user_properties).get("swept", {}).items():
            told = ", ".join(f"{move} {sum(points.values())}" for move, points in moves.items())
            total = sum(sum(points.values()) for points in moves.values())
            terminalreporter.write_line(f"{total} strikes at system calls, {dialect}: {told}")
