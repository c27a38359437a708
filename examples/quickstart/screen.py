"""What the demo shows: a live bar on a terminal, plain lines elsewhere (a CI log, a file)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

PLAIN_INTERVAL = 2.0  # seconds between two progress lines


@dataclass(frozen=True)
class Row:
    """One line of the reconciliation; `good` is None where a number is neither good nor bad."""

    name: str
    value: str
    note: str = ""
    good: bool | None = None


class Screen:
    """Where the demo speaks. Between `open` and `close` it also shows progress."""

    def __init__(self, total: int) -> None:
        """Prepare for `total` orders; nothing is drawn yet."""
        self._console = Console(highlight=False)
        self._total = total
        self._began = time.monotonic()
        self._last_line = 0.0
        self._bars: tuple[Progress, TaskID, TaskID] | None = None

    def open(self) -> None:
        """Show progress from now on."""
        self._began = time.monotonic()
        if self._console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            progress = Progress(*columns, TextColumn("{task.fields[note]}"), TimeElapsedColumn(), console=self._console)
            charged = progress.add_task("charged (gateway)  ", total=self._total, note="")
            settled = progress.add_task("succeeded (ledger) ", total=self._total, note="")
            self._bars = progress, charged, settled
            progress.start()

    def progress(self, charged: int, settled: int, kills: int) -> None:
        """Show how far the gateway and the ledger are."""
        if self._bars:
            bars, first, second = self._bars
            bars.update(first, completed=charged, note=f"{kills} kills")
            bars.update(second, completed=settled)
        elif self._elapsed - self._last_line >= PLAIN_INTERVAL:
            self._last_line = self._elapsed
            self.event(
                f"charged {charged}/{self._total} (gateway), succeeded {settled}/{self._total} (ledger), {kills} kills"
            )

    def close(self) -> None:
        """Leave the bars where they are."""
        if self._bars:
            self._bars[0].stop()
            self._bars = None

    def event(self, text: str, style: str = "") -> None:
        """Say what just happened, with the seconds since `open`."""
        self.say(f"{self._elapsed:6.1f} s  {text}", style)

    def say(self, text: str = "", style: str = "") -> None:
        """Print text as it is."""
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Print the rows: as a table on a terminal, as aligned lines elsewhere."""
        if not self._console.is_terminal:
            self.say(title)
            for row in rows:
                self.say(f"  {row.name:<18}{row.value:>8}  {row.note}".rstrip())
            return
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        table.add_column(style="dim")
        for row in rows:
            colour = {True: "bold green", False: "bold red", None: "bold"}[row.good]
            table.add_row(row.name, f"[{colour}]{row.value}[/]", row.note)
        self._console.print(table)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began
