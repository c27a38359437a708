"""How answers look: one JSON document, or tables that a person can read at 100 columns."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Columns where the width of a terminal is not known.
WIDTH = 100
STYLES = {
    "queued": "cyan", "running": "bold blue", "waiting": "yellow", "succeeded": "green", "dead": "bold red",
    "cancelled": "magenta", "gone": "red", "ok": "bold green", "wrong": "bold red", "dim": "dim",
    "bold": "bold",
}  # fmt: skip
_CONTROL = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if n not in {9, 10}}


def emit(document: object) -> None:
    """Print one JSON document. What JSON has no number for (NaN, infinities) is printed as a string."""
    text = json.dumps(document, default=str)
    click.echo(json.dumps(json.loads(text, parse_constant=str), indent=2))


def console(ctx: click.Context) -> Console:
    """Return where tables go: coloured on a terminal only, and not with ``--no-color``."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(
        file=sys.stdout,
        width=None if known else WIDTH,
        no_color=True if getattr(ctx.obj, "no_color", False) else None,
        markup=False,
        highlight=False,
        emoji=False,
    )


def plain(value: object, style: str = "") -> Text:
    """Text as it is, without a control character that a terminal would obey."""
    return Text(str(value).translate(_CONTROL), style=STYLES.get(style, ""))


def line(value: object, style: str = "") -> Text:
    """Like ``plain``, on one line."""
    return plain(" ".join(str(value).split()), style)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: numbers stand right, ``fold`` wraps what is too long, ``ratio`` shares what width is left."""

    heading: str = field(kw_only=False)
    right: bool = False
    fold: bool = False
    ratio: int | None = None


def table(columns: Iterable[Column], rows: Iterable[Sequence[object]]) -> Table:
    """Lay rows out in columns; what is too long for its column is cut, unless it folds."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(
            column.heading,
            justify="right" if column.right else "left",
            overflow="fold" if column.fold else "ellipsis",
            no_wrap=not column.fold,
            ratio=column.ratio,
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else line(cell) for cell in row))
    return made


def pairs(rows: Iterable[tuple[str, object]]) -> Table:
    """Lay names and values out in two columns; values wrap."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value if isinstance(value, Text) else plain(value))
    return made


def shortened(traceback: str, *, keep: int = 8) -> tuple[str, int]:
    """Cut a traceback to its head and its last lines; return it with the number of lines left out."""
    lines = traceback.rstrip().splitlines()
    left_out = len(lines) - keep - 1
    if left_out <= 1:
        return "\n".join(lines), 0
    return "\n".join([lines[0], f"  ... {left_out} lines ...", *lines[-keep:]]), left_out
