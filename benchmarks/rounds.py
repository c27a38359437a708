"""Rounds of A B A B ...: both sides of a comparison in one run, a ratio for each round, their median and spread."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

#: Rounds of each comparison, and where the figures are left as JSON.
ROUNDS = 5
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Sample:
    """One side of one round: tasks a second, and microseconds of CPU per task (ours, and the database's)."""

    rate: float
    cpu: float
    server: float = 0.0


def cpu_seconds(pids: list[int]) -> float:
    """Count user and system time of processes and all their descendants, so far."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.cpu_times().user + one.cpu_times().system
            except psutil.NoSuchProcess:
                continue
    return total


def compare(title: str, sides: dict[str, Callable[[], Sample]], *, against: str, rounds: int = ROUNDS) -> None:
    """Take turns, print a table, and leave the figures as JSON."""
    for take in sides.values():  # once for warmth
        take()
    taken: dict[str, list[Sample]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, take in sides.items():
            taken[name].append(take())
    told: dict[str, Any] = {}
    print(f"\n{title} ({rounds} rounds, Python {platform.python_version()}, {psutil.cpu_count()} cores)")
    print(f"{'':30}{'per second':>12}{'CPU us':>10}{'server us':>11}   ratio to {against}, median (lowest..highest)")
    for name, samples in taken.items():
        ratios = [a.rate / b.rate for a, b in zip(samples, taken[against], strict=True)]
        row = {
            "rate": statistics.median(s.rate for s in samples),
            "cpu_us": statistics.median(s.cpu for s in samples),
            "server_us": statistics.median(s.server for s in samples),
            "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
        }  # fmt: skip
        told[name] = row
        print(
            f"{name:30}{row['rate']:12.0f}{row['cpu_us']:10.0f}{row['server_us']:11.0f}"
            f"   {row['ratio']:.2f} ({row['lowest']:.2f}..{row['highest']:.2f})"
        )
    RESULTS.mkdir(exist_ok=True)
    name = Path(sys.argv[0]).stem
    (RESULTS / f"{name}.json").write_text(json.dumps({"title": title, "against": against, "sides": told}, indent=2))
