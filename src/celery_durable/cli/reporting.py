"""Commands that list across tasks: failures, waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from celery_durable.api import when
from celery_durable.cli import output
from celery_durable.cli.common import ready
from celery_durable.cli.group import command
from celery_durable.cli.lists import failures_list, groups_list, waits_list
from celery_durable.cli.moments import MOMENT
from celery_durable.ledger import Which

if TYPE_CHECKING:
    from datetime import datetime, timedelta

_limit = click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")


@command
@click.option("--task", metavar="NAME", help="Only failures of tasks with this name.")
@click.option("--kind", help="Only failures of this kind: transient, permanent, timeout, ...")
@click.option("--fingerprint", metavar="F", help="Only failures that are alike in this way.")
@click.option("--since", type=MOMENT, help="Only those after this time (2h, 3d, or ISO 8601).")
@_limit
@click.option(
    "--group", is_flag=True, help="Group those that are alike: how often, how many dead, first and last seen."
)
def failures(  # noqa: PLR0913 - one parameter for each option
    ctx: click.Context, *, task: str | None, kind: str | None, fingerprint: str | None,
    since: datetime | timedelta | None, limit: int, group: bool, as_json: bool,
) -> None:  # fmt: skip
    """List failed attempts of all tasks, newest first; with --group what they have in common, most frequent first."""
    ledger = ready(ctx).ledger
    which = Which(task=task, kind=kind, fingerprint=fingerprint, since=when(since, ago=True))
    found = ledger.failure_groups(which, limit) if group else ledger.failed(which, limit)
    if as_json:
        output.emit([f.as_json() for f in found])
        return
    to = output.console(ctx)
    if not found:
        to.print("No such failures.")
        return
    to.print(groups_list(found) if group else failures_list(found))  # type: ignore[arg-type]
    if len(found) == limit:
        to.print(output.plain(f"The first {limit}; --limit shows more.", "dim"))


@command
@click.option("--kind", help="Only waits of this kind: retry, condition, event, sleep, scheduled, paused, ...")
@click.option("--task", metavar="NAME", help="Only tasks with this name.")
@click.option("--queue", metavar="NAME", help="Only tasks of this queue.")
@_limit
def waits(
    ctx: click.Context, *, kind: str | None, task: str | None, queue: str | None, limit: int, as_json: bool
) -> None:
    """List what waits, for what and since when, in the order in which it is looked at again."""
    found = ready(ctx).ledger.waits(kind=kind, task=task, queue=queue, limit=limit)
    if as_json:
        output.emit([r.as_json() for r in found])
        return
    to = output.console(ctx)
    to.print(waits_list(found) if found else "Nothing waits.")
    if len(found) == limit:
        to.print(output.plain(f"The first {limit}; --limit shows more.", "dim"))
