"""The command that forgets what is long over: prune."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from celery_durable import states
from celery_durable.api import when
from celery_durable.cli import output
from celery_durable.cli.common import ready
from celery_durable.cli.group import command
from celery_durable.cli.moments import MOMENT
from celery_durable.ledger import Aged
from celery_durable.ledger.pruning import BATCH, USUAL
from celery_durable.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime


@command
@click.option("--older-than", type=MOMENT, metavar="AGE", help="Over for longer than this (30d), or since before a time"
              " (default: durable_result_retention).")  # fmt: skip
@click.option("--state", "chosen", multiple=True, type=click.Choice(sorted(states.TERMINAL)),
              help=f"In this state; may be given several times (default: {' and '.join(USUAL)}).")  # fmt: skip
@click.option("--task", metavar="NAME", help="Only tasks with this name.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=BATCH, show_default=True, help="Rows per transaction.")
@click.option("--dry-run", is_flag=True, help="Only say how many.")
def prune(  # noqa: PLR0913 - options
    ctx: click.Context, *, older_than: datetime | timedelta | None, chosen: tuple[str, ...], task: str | None,
    batch: int, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Forget messages, results, steps and history of tasks that are long over.

    What stays is a small row for each: its id, its key and how it ended, so that a key that is done never runs again.
    Dead tasks are pruned only with --state dead; they cannot be replayed then. Where durable_key_retention is set, the
    rows that are older than that go too. Work goes on meanwhile; interrupted, run it again.
    """
    found = ready(ctx)
    before = when(older_than or timedelta(seconds=found.settings.result_retention), ago=True)
    assert before is not None  # noqa: S101 - a duration is always a time
    which = Aged(before=before, states=chosen or USUAL, task=task)
    if dry_run:
        count = found.ledger.count_prunable(which)
        if as_json:
            output.emit({"dry_run": True, "count": count})
        else:
            click.echo(f"{counted(count, 'task')} would be pruned.")
        return
    pruned = _total(found.ledger.prune(which, batch=batch), "pruned")
    kept = found.settings.key_retention
    deleted = _total(found.ledger.forget_keys(kept, batch=batch), "deleted") if kept else 0
    if as_json:
        output.emit({"pruned": pruned, "deleted": deleted})
        return
    click.echo(f"{counted(pruned, 'task')} pruned." if pruned else "Nothing to prune.")
    if deleted:
        click.echo(f"{counted(deleted, 'task')} older than durable_key_retention deleted.")


def _total(batches: Iterator[int], what: str) -> int:
    total = 0
    for count in batches:
        total += count
        if sys.stderr.isatty():
            click.echo(f"\r{total} {what}", nl=False, err=True)
    if total and sys.stderr.isatty():
        click.echo(err=True)
    return total
