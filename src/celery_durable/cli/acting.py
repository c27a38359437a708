"""Commands that change something: migrate, cancel."""

from __future__ import annotations

import click

from celery_durable import states
from celery_durable.api import actor
from celery_durable.cli import output
from celery_durable.cli.common import deployment, ready
from celery_durable.cli.group import command


@command
def migrate(ctx: click.Context, *, as_json: bool) -> None:
    """Create or update the ledger's tables.

    Running it again changes nothing.
    """
    ledger = deployment(ctx).ledger
    before, after = ledger.migrate()
    if as_json:
        output.emit({"from": before, "to": after, "ledger": str(ledger.db)})
    elif before == after:
        click.echo(f"{ledger.db}: already at version {after}.")
    else:
        click.echo(f"{ledger.db}: migrated from {before or 'nothing'} to version {after}.")


@command
@click.argument("ref")
@click.option("--reason", required=True, help="Why; it stands in the task's history.")
@click.option("--terminate", is_flag=True, help="End the process of a running task (prefork pools only).")
def cancel(ctx: click.Context, ref: str, reason: str, *, terminate: bool, as_json: bool) -> None:
    """Cancel a task.

    A running one is told within about a second, and ends cancelled at its next check() or move. Exit 1 when it
    succeeded or died before, or when --terminate is asked of a pool that cannot end one task.
    """
    ledger = ready(ctx).ledger
    before = ledger.get(ref)
    state = ledger.cancel_row(before.id, reason, actor=actor(), terminate=terminate)
    if state in {states.SUCCEEDED, states.DEAD}:
        raise click.ClickException(f"{before.task_id} is {state} already: there is nothing to cancel.")
    if as_json:
        output.emit(ledger.get(before.task_id).as_json())
    elif state == states.RUNNING and terminate:
        click.echo(f"{before.task_id} is running: its worker was asked to end its process.")
    elif state == states.RUNNING:
        click.echo(f"{before.task_id} is running: it was told, and ends cancelled at its next check() or move.")
    elif before.state == states.CANCELLED:
        click.echo(f"{before.task_id} was cancelled already.")
    else:
        click.echo(f"{before.task_id} is cancelled.")
