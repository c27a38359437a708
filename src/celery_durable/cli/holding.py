"""Commands that hold back and let go: pause, resume, send-event."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from celery_durable.api import LedgerView
from celery_durable.cli import output
from celery_durable.cli.common import ready
from celery_durable.cli.group import command
from celery_durable.cli.moments import MOMENT
from celery_durable.wording import brief, counted, moment

if TYPE_CHECKING:
    from datetime import datetime, timedelta

#: How much of a payload that is no JSON is shown, in characters.
SHOWN = 60


@command
@click.argument("target")
@click.option("--reason", required=True, help="Why; everything that is held back says so.")
@click.option("--until", type=MOMENT, help="When it ends by itself (2h, 3d, or ISO 8601); without it by 'resume' only.")
def pause(ctx: click.Context, target: str, *, reason: str, until: datetime | timedelta | None, as_json: bool) -> None:
    """Hold back a task or a queue.

    TARGET is task:NAME or queue:NAME, or a bare name that can only mean one of them. What runs goes on; what is queued
    or arrives waits, kind 'paused', and 'why' says who paused it and why.
    """
    view = _view(ctx)
    kind, name = view.target(target)
    held = view.pause(f"{kind}:{name}", reason, until=until)
    made = next(p for p in view.pauses() if (p.kind, p.target) == (kind, name))
    if as_json:
        output.emit(made.as_json() | {"held": held})
        return
    ends = "" if made.until is None else f" until {moment(made.until, made.now)}"
    click.echo(f"{kind} '{name}' is paused{ends}; {counted(held, 'queued task')} held back.")


@command
@click.argument("target")
@click.option("--reason", default="", help="Why; it stands in the history of what is let go.")
def resume(ctx: click.Context, target: str, *, reason: str, as_json: bool) -> None:
    """End a pause.

    TARGET is task:NAME or queue:NAME, or a bare name that can only mean one of them. What it held back is queued at
    once. Exit 1 when there was no such pause and nothing to let go.
    """
    view = _view(ctx)
    kind, name = view.target(target)
    was = any((p.kind, p.target) == (kind, name) for p in view.pauses())
    released = view.resume(f"{kind}:{name}", reason)
    if not was and not released:
        raise click.ClickException(f"{kind} '{name}' is not paused.")
    if as_json:
        output.emit({"kind": kind, "target": name, "released": released})
    else:
        click.echo(f"{kind} '{name}' is resumed; {counted(released, 'task')} queued.")


@command
@click.argument("ref")
@click.argument("name")
@click.argument("payload", metavar="[PAYLOAD-JSON]", required=False, default="null")
def send_event(ctx: click.Context, ref: str, name: str, payload: str, *, as_json: bool) -> None:
    """Send a task an event that it waits for, or will.

    The payload is JSON, null by default. The first event of a name counts; one sent before the wait is not lost.
    Exit 1 when the task is over.
    """
    view = _view(ctx)
    task_id = view.get(ref).task_id
    stored = view.send_event(task_id, name, _json(payload))
    if as_json:
        output.emit({"task_id": task_id, "event": name, "stored": stored})
    elif stored:
        click.echo(f"Event '{name}' was sent to {task_id}.")
    else:
        click.echo(f"{task_id} got an event '{name}' before: the first one counts, this one was not stored.")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(
            f"{brief(text, SHOWN)!r} is no JSON ({error}); a string needs quotes of its own: '\"text\"'.",
            param_hint="PAYLOAD-JSON",
        ) from error


def _view(ctx: click.Context) -> LedgerView:
    return LedgerView(ready(ctx).app)
