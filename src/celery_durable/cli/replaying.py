"""The command that brings dead tasks back: replay."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from celery_durable import states
from celery_durable.api import actor, replayed
from celery_durable.cli import output
from celery_durable.cli.common import ready
from celery_durable.cli.group import command
from celery_durable.cli.pages import records_table
from celery_durable.ledger import Casualties
from celery_durable.wording import counted

if TYPE_CHECKING:
    from celery_durable.ledger import Ledger

#: How many tasks a dry run shows.
SAMPLE = 10


@command
@click.argument("refs", nargs=-1, metavar="[REF]...")
@click.option("--fingerprint", metavar="F", help="Those that died of this ('failures --group' lists fingerprints).")
@click.option("--task", metavar="NAME", help="Those with this task name.")
@click.option("--kind", help="Those that died of this kind of failure.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most N per second.")
@click.option("--dry-run", is_flag=True, help="Only say how many, and show some.")
@click.option("--reason", default="", help="Why; it stands in each task's history.")
@click.option("--fresh", is_flag=True, help="Forget steps, sleeps and received events: start over.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def replay(ctx: click.Context, refs: tuple[str, ...], *, as_json: bool, **given: Any) -> None:
    """Queue dead tasks again: those named by REF (cancelled ones too), or all dead ones that the filters fit.

    Their retries and losses start from 0; they go on where they stopped. Interrupted, run it again: what was replayed
    is no longer dead, and it goes on with the rest. Exit 1 when a REF is neither dead nor cancelled.
    """
    chosen = {name: given[name] for name in ("fingerprint", "task", "kind") if given[name]}
    if bool(refs) == bool(chosen):
        raise click.UsageError("Which tasks? Either REFs, or --fingerprint, --task or --kind.")
    if refs and (given["limit"] or given["rate"]):
        raise click.UsageError("--limit and --rate go with --fingerprint, --task and --kind, not with REFs.")
    ledger = ready(ctx).ledger
    if refs:
        _named(ctx, ledger, refs, given, as_json=as_json)
    else:
        _many(ctx, ledger, Casualties(**chosen), given, as_json=as_json)


def _named(ctx: click.Context, ledger: Ledger, refs: tuple[str, ...], given: dict[str, Any], *, as_json: bool) -> None:
    records = list({r.id: r for r in map(ledger.get, refs)}.values())  # an unknown REF before anything is done
    fit = [r for r in records if r.state in {states.DEAD, states.CANCELLED}]
    if given["dry_run"]:
        _tell_dry(ctx, len(fit), fit, as_json=as_json)
        return
    _confirm(len(fit), given)
    done = [r for r in fit if ledger.replay_row(r.id, given["reason"], actor=actor(), fresh=given["fresh"])]
    left = [ledger.get(r.task_id) for r in records if r not in done]
    if as_json:
        skipped = [{"task_id": r.task_id, "state": r.state} for r in left]
        output.emit({"replayed": len(done), "tasks": [r.task_id for r in done], "skipped": skipped})
    else:
        for r in done:
            click.echo(f"{r.task_id} is queued again.")
        for r in left:
            click.echo(f"{r.task_id} is {r.state}: there is nothing to replay.", err=True)
    if left:
        ctx.exit(1)


def _many(ctx: click.Context, ledger: Ledger, which: Casualties, given: dict[str, Any], *, as_json: bool) -> None:
    limit = given["limit"]
    found = ledger.count_dead(which)
    wanted = found if limit is None else min(found, limit)
    if given["dry_run"]:
        sample = [ledger.record(row_id) for row_id in ledger.sample_dead(which, min(wanted, SAMPLE))]
        _tell_dry(ctx, wanted, [r for r in sample if r is not None], as_json=as_json)
        return
    _confirm(wanted, given)
    done = passed_over = 0
    batches = replayed(ledger, which, given["reason"], fresh=given["fresh"], limit=limit, rate=given["rate"])
    for batch in batches:
        done, passed_over = done + batch.replayed, passed_over + batch.passed_over
        _progress(done, wanted)
    _progress(done, wanted, end=True)
    if as_json:
        output.emit({"replayed": done, "passed_over": passed_over})
        return
    click.echo(f"{counted(done, 'task')} queued again." if done else "No dead task fits.")
    if passed_over:
        click.echo(f"{counted(passed_over, 'task')} were in somebody else's hands: run it again for those.", err=True)


def _tell_dry(ctx: click.Context, count: int, sample: list[Any], *, as_json: bool) -> None:
    if as_json:
        output.emit({"dry_run": True, "count": count, "sample": [r.as_json() for r in sample[:SAMPLE]]})
        return
    to = output.console(ctx)
    to.print(f"{counted(count, 'task')} would be queued again.")
    if sample:
        to.print(records_table(sample[:SAMPLE]))
    if count > SAMPLE:
        to.print(output.plain(f"{SAMPLE} of {count}.", "dim"))


def _confirm(count: int, given: dict[str, Any]) -> None:
    """Ask a person before many tasks are replayed; a script has said what it wants."""
    if count > 1 and not given["yes"] and sys.stdin.isatty():
        how = " from their beginning" if given["fresh"] else ""
        click.confirm(f"Queue {counted(count, 'task')} again{how}?", abort=True, err=True)


def _progress(done: int, wanted: int, *, end: bool = False) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {wanted} queued again", nl=end, err=True)
