"""Commands that only look: status, ls, show, why, workers, verify, failpoints."""

from __future__ import annotations

import click

from celery_durable import states
from celery_durable.cli import output
from celery_durable.cli.common import ready
from celery_durable.cli.following import follow
from celery_durable.cli.group import command
from celery_durable.cli.lists import pauses_table
from celery_durable.cli.output import Column
from celery_durable.cli.pages import (
    failures_page,
    history_page,
    queues_table,
    record_page,
    records_table,
    states_line,
    steps_page,
    workers_table,
)
from celery_durable.failpoints import points
from celery_durable.ledger import Ledger
from celery_durable.wording import counted, moment


@command
def status(ctx: click.Context, *, as_json: bool) -> None:
    """Show counts by state, queues, live workers."""
    ledger = ready(ctx).ledger
    stats, workers, pauses = ledger.stats(), [w for w in ledger.workers() if w.live], ledger.pauses()
    if as_json:
        document = {**stats, "workers": [w.as_json() for w in workers], "pauses": [p.as_json() for p in pauses]}
        output.emit(document)
        return
    to = output.console(ctx)
    to.print(states_line(stats["states"]))
    if pauses:
        to.print()
        to.print(pauses_table(pauses))
    to.print()
    to.print(queues_table(stats["queues"]) if stats["queues"] else "Nothing is queued.")
    to.print()
    to.print(workers_table(workers) if workers else output.plain("No live worker.", "wrong"))


@command
@click.option("--state", type=click.Choice(states.STATES), help="Only tasks in this state.")
@click.option("--task", metavar="NAME", help="Only tasks with this name.")
@click.option("--queue", metavar="NAME", help="Only tasks of this queue.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
def ls(
    ctx: click.Context, *, state: str | None, task: str | None, queue: str | None, limit: int, as_json: bool
) -> None:
    """List tasks, newest first."""
    ledger = ready(ctx).ledger
    found = ledger.find(state=state, task=task, queue=queue, limit=limit)
    if as_json:
        output.emit([r.as_json() for r in found])
        return
    to = output.console(ctx)
    to.print(records_table(found) if found else "No such tasks.")
    if len(found) == limit:
        to.print(output.plain(f"The newest {limit}; --limit shows more.", "dim"))


@command
@click.argument("ref")
@click.option("--full", is_flag=True, help="Show every traceback whole.")
@click.option("--follow", "followed", is_flag=True, help="Show how it goes on, until it has ended.")
def show(ctx: click.Context, ref: str, *, full: bool, followed: bool, as_json: bool) -> None:
    """Show one task with its history and its failures.

    With --follow how it goes on: a bar on a terminal, a line for each change elsewhere; with --json as well, it waits
    until the task has ended and prints the one document then.
    """
    found = ready(ctx)
    record = found.ledger.get(ref)
    if followed:
        record = follow(ctx, found.ledger, record.task_id, quiet=as_json)
        if not as_json:
            return
    failures, events = found.ledger.failures(record.id), found.ledger.events(record.id)
    names = found.redacted(record.task)
    steps = found.ledger.steps(record.id)
    if as_json:
        document = record.as_json() | {
            "failures": [f.as_json() for f in failures], "steps": [s.as_json(names) for s in steps],
            "events": [e.as_json() for e in events],
        }  # fmt: skip
        output.emit(document)
        return
    to = output.console(ctx)
    to.print(record_page(record, found.explained(record).reason))
    if steps:
        to.print(steps_page(steps, names, record.now))
    to.print(history_page(events, record.now))
    if failures:
        to.print(failures_page(failures, record.now, full=full))


@command
@click.argument("ref")
def why(ctx: click.Context, ref: str, *, as_json: bool) -> None:
    """Say why a task stands where it stands, with the evidence."""
    found = ready(ctx)
    record = found.ledger.get(ref)
    answer = found.explained(record)
    if as_json:
        output.emit(answer.as_json(record))
        return
    to = output.console(ctx)
    head = output.plain(f"{record.task} {record.task_id} is ").append_text(output.plain(record.state, record.state))
    to.print(head)
    to.print(output.line(answer.reason, "bold"))
    for sentence in answer.evidence:
        to.print(output.line(f"  - {sentence}"))
    if answer.wake_at is not None:
        to.print(output.plain(f"Looked at again: {moment(answer.wake_at, record.now)}", "dim"))


@command
def workers(ctx: click.Context, *, as_json: bool) -> None:
    """List the workers of the last day, gone ones too."""
    found = ready(ctx).ledger.workers()
    if as_json:
        output.emit([w.as_json() for w in found])
        return
    output.console(ctx).print(workers_table(found) if found else "No worker is registered.")


@command
def verify(ctx: click.Context, *, as_json: bool) -> None:
    """Audit the ledger against the five invariants.

    Exit 1 when one is broken.
    """
    found = ready(ctx)
    violations = found.ledger.verify(lease=found.settings.lease)
    if as_json:
        output.emit({"ok": not violations, "violations": [v.as_json() for v in violations]})
    elif violations:
        rows = [(v.invariant, v.ref, v.detail) for v in violations]
        to = output.console(ctx)
        to.print(
            output.table([Column("invariant", right=True), Column("ref", fold=True), Column("detail", fold=True)], rows)
        )
        to.print(output.plain(f"{counted(len(violations), 'violation')}.", "wrong"))
    else:
        output.console(ctx).print(output.plain("The five invariants hold.", "ok"))
    if violations:
        ctx.exit(1)


@command
def failpoints(_ctx: click.Context, *, as_json: bool) -> None:
    """List the places at which DURABLE_FAILPOINTS can make a process die, fail, stop or wait.

    For tests only: DURABLE_FAILPOINTS="succeed.commit=execute-then-die".
    """
    names = points(Ledger.verbs())
    if as_json:
        output.emit(names)
    else:
        click.echo("\n".join(names))
