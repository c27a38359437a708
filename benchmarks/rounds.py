"""Rounds of A B A B ...: all sides of a comparison in one run, a ratio for each round, their median and spread."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

ROUNDS = 5
#: Where each benchmark leaves its figures, as ``NAME.json``.
RESULTS = Path(__file__).with_name("results")

#: What one take measured, by name: ``rate`` is per second, ``... us`` microseconds, ``... ms`` milliseconds.
Figures = dict[str, float]


class Pair(NamedTuple):
    """A side, the side that it is compared with, and the ratio or difference that it has to reach, if one is set."""

    side: str
    against: str
    goal: str = ""
    figure: str = ""  # that the goal is for; "": every one that is compared


class Report:
    """The figures of one benchmark: tables for people as they come, one JSON file at the end."""

    def __init__(self, name: str) -> None:
        """``name`` is that of the JSON file."""
        self.name = name
        self.machine = {
            "python": platform.python_version(), "cores": psutil.cpu_count(),
            "celery": version("celery"), "celery-durable": version("celery-durable"),
        }  # fmt: skip
        self.tables: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        RESULTS.mkdir(exist_ok=True)
        told = {"benchmark": self.name, "machine": self.machine, "tables": self.tables}
        (RESULTS / f"{self.name}.json").write_text(json.dumps(told, indent=2) + "\n")

    def compare(
        self, title: str, sides: Mapping[str, Callable[[], Figures]], pairs: Sequence[Pair], *,
        of: Sequence[str] = ("rate",), more: Sequence[str] = (), rounds: int = ROUNDS,
    ) -> None:  # fmt: skip
        """Take turns, once for warmth and then in rounds.

        Tells medians, the ratios of the figures in ``of``, and by how much those in ``more`` differ.
        """
        for take in sides.values():
            take()
        taken: dict[str, list[Figures]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, take in sides.items():
                taken[name].append(take())
        medians = {name: {f: statistics.median(t[f] for t in takes) for f in takes[0]} for name, takes in taken.items()}
        columns = list(dict.fromkeys(f for found in medians.values() for f in found))
        self.table(f"{title}: medians of {rounds} rounds", columns, medians, keep=False)
        ratios = [
            _compared(pair, figure, taken[pair.side], taken[pair.against], minus=figure in more)
            for pair in pairs if pair.side in taken and pair.against in taken
            for figure in (*of, *more) if pair.figure in {"", figure}
        ]  # fmt: skip
        for ratio in ratios:
            goal = f"   to reach: {ratio['goal']}" if ratio["goal"] else ""
            print(
                f"  {ratio['side']} {ratio['by']} {ratio['against']}, {ratio['figure']}: {ratio['median']:.2f} "
                f"({ratio['lowest']:.2f}..{ratio['highest']:.2f}){goal}",
                flush=True,
            )
        self.tables.append({"title": title, "rounds": rounds, "medians": medians, "ratios": ratios, "takes": taken})

    def table(
        self, title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, float]], *, keep: bool = True
    ) -> None:
        """Tell figures that are compared with nothing, a row for each name."""
        widths = [max(len(column), 9) + 2 for column in columns]
        first = max([*map(len, rows), 10])
        print(f"\n{title}")
        print(f"  {'':{first}}" + "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)))
        for name, row in rows.items():
            cells = [_cell(row.get(column), width) for column, width in zip(columns, widths, strict=True)]
            print(f"  {name:{first}}" + "".join(cells), flush=True)
        if keep:
            self.tables.append({"title": title, "rows": {name: dict(row) for name, row in rows.items()}})


def _cell(value: float | None, width: int) -> str:
    if value is None:
        return f"{'-':>{width}}"
    return f"{value:>{width},.0f}" if abs(value) >= 100 else f"{value:>{width},.2f}"  # noqa: PLR2004 - digits that tell


def _compared(
    pair: Pair, figure: str, ours: Sequence[Figures], theirs: Sequence[Figures], *, minus: bool
) -> dict[str, Any]:
    both = [(a[figure], b[figure]) for a, b in zip(ours, theirs, strict=True)]
    ratios = [a - b if minus else a / b for a, b in both]
    return {
        "side": pair.side, "by": "-" if minus else "/", "against": pair.against, "figure": figure,
        "median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "goal": pair.goal,
    }  # fmt: skip


def options(doc: str | None, **numbers: int) -> argparse.ArgumentParser:
    """Make the command line of a benchmark: ``--rounds``, and a whole number for each of ``numbers``."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{Path(sys.argv[0]).stem}", description=doc)
    for name, default in {"rounds": ROUNDS, **numbers}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    return parser
