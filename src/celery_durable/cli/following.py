"""``show --follow``: how a task goes on, as it goes on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from celery_durable import states
from celery_durable.cli import output
from celery_durable.errors import LedgerUnavailable
from celery_durable.notes import progress_of
from celery_durable.wording import SECOND, brief, clock, span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.ledger import Ledger
    from celery_durable.records import Record

#: Seconds between two looks; over which the rate is taken; width of the bar.
EVERY, WINDOW, BAR = 0.5, 60.0, 30
#: The exit code of a command that Ctrl-C ended.
INTERRUPTED = 130


@dataclass(slots=True)
class Pace:
    """How fast a task gets on: from what it said within the last minute, by the ledger's clock."""

    _seen: deque[tuple[int, float]] = field(default_factory=deque)
    _claim: int = 0

    def note(self, record: Record) -> None:
        """Take what the record says now."""
        told = record.decoded_progress()
        if told is None or record.progress_at is None:
            return
        if record.claims != self._claim or (self._seen and told["done"] < self._seen[-1][1]):
            self._seen.clear()  # it has begun again
            self._claim = record.claims
        if not self._seen or record.progress_at > self._seen[-1][0]:
            self._seen.append((record.progress_at, told["done"]))
        while self._seen[-1][0] - self._seen[0][0] > WINDOW * SECOND:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Units a second; None while that is not known."""
        if len(self._seen) < 2:  # noqa: PLR2004 - two points make a line
            return None
        (first, begun), (last, done) = self._seen[0], self._seen[-1]
        return (done - begun) * SECOND / (last - first)

    def left(self, record: Record) -> float | None:
        """Seconds until it is done, going on like this; None while that is not known."""
        told, rate = record.decoded_progress(), self.rate
        if told is None or told["total"] is None or not rate or record.progress_at is None:
            return None
        since = (record.now - record.progress_at) / SECOND
        return max(0.0, float((told["total"] - told["done"]) / rate - since))


def progress_line(record: Record, pace: Pace) -> str:
    """Say how far a task is and how fast: ``1.5/s, 60 s left, 30 of 120 (25 %): reading``."""
    parts = [progress_of(record)]
    if record.state == states.RUNNING and pace.rate:
        left = pace.left(record)
        parts[:0] = [f"{pace.rate:.3g}/s"] + ([f"{span(round(left * SECOND))} left"] if left is not None else [])
    return ", ".join(part for part in parts if part)


def standing(record: Record) -> str:
    """Say where a task stands."""
    why = {
        states.WAITING: f" ({record.wait_kind}): {record.wait_reason}",
        states.DEAD: f" ({record.failure_kind}): {record.failure.headline if record.failure else ''}",
        states.CANCELLED: f": {record.cancel_reason}" if record.cancel_reason else "",
        states.SUCCEEDED: f": {record.decoded_result()!r}",
        states.RUNNING: f" on {record.lease_owner}",
    }
    return brief(record.state + why.get(record.state, ""))


def follow(ctx: click.Context, ledger: Ledger, task_id: str, *, quiet: bool) -> Record:
    """Show how a task goes on until it has ended; return its record then. Ctrl-C ends the command, not the task."""
    try:
        with _nothing() if quiet else _bar(ctx) if sys.stdout.isatty() else _lines() as show:
            return _watch(ledger, task_id, show)
    except KeyboardInterrupt:
        click.echo("Not followed any more; the task goes on.", err=True)
        ctx.exit(INTERRUPTED)


def _watch(ledger: Ledger, task_id: str, show: Callable[[Record, Pace], None]) -> Record:
    pace, away = Pace(), False
    while True:
        try:
            record, away = ledger.get(task_id), False
        except LedgerUnavailable as exc:
            if not away:
                click.echo(f"{exc} Trying on.", err=True)
            away = True
        else:
            pace.note(record)
            show(record, pace)
            if record.state in states.TERMINAL:
                return record
        time.sleep(EVERY)


@contextmanager
def _nothing() -> Iterator[Callable[[Record, Pace], None]]:
    yield lambda _record, _pace: None


@contextmanager
def _lines() -> Iterator[Callable[[Record, Pace], None]]:
    """One line for each change of where it stands or how far it is."""
    last: tuple[object, ...] = ()

    def show(record: Record, pace: Pace) -> None:
        nonlocal last
        told = (record.state, record.claims, record.wait_kind, record.progress)
        if told == last:
            return
        last = told
        far = progress_line(record, pace)
        text = standing(record) if record.state != states.RUNNING or not far else f"{record.state} {far}"
        click.echo(output.plain(f"{clock(record.now, record.now)} {text}").plain)

    yield show


@contextmanager
def _bar(ctx: click.Context) -> Iterator[Callable[[Record, Pace], None]]:
    """A bar that is drawn anew, and stays as it was at the end."""
    with Live(console=output.console(ctx), auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        def show(record: Record, pace: Pace) -> None:
            told = record.decoded_progress() or {}
            grid = Table.grid(padding=(0, 1))
            total = told.get("total")
            head = output.plain(record.state, record.state)
            if total:
                bar = ProgressBar(total=total, completed=min(told["done"], total), width=BAR)
                grid.add_row(head, bar, output.line(progress_line(record, pace)))
            else:
                grid.add_row(head, output.line(progress_line(record, pace)))
            live.update(grid, refresh=True)
            if record.state in states.TERMINAL:
                live.console.print(output.line(standing(record), record.state))

        yield show
