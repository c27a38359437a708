"""``crashtest``: a task is killed at each of its crash points, in a sandbox, and judged."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from celery.utils.imports import import_from_cwd

from celery_durable import states
from celery_durable.cli.common import deployment
from celery_durable.cli.group import command
from celery_durable.cli.output import Column, console, emit, line, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.testing import Report


def _parsed(kind: type) -> Any:
    def parse(_ctx: click.Context, parameter: click.Parameter, text: str) -> Any:
        shape = '[1, "two"]' if kind is list else '{"order_id": 1}'
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, kind):
            raise click.BadParameter(f"{text!r} is no JSON {parameter.name}: it looks like {shape}.")
        return value

    return parse


def _function(_ctx: click.Context, _parameter: click.Parameter, name: str | None) -> Any:
    """Import what ``module:function`` names, from the working directory as well, as ``-A`` does."""
    if name is None:
        return ()
    module, _, function = name.partition(":")
    try:
        return getattr(import_from_cwd(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.BadParameter(
            f"{name!r} cannot be imported ({error}): it looks like shop.checks:paid_once."
        ) from None


@command
@click.argument("task")
@click.option("--args", default="[]", callback=_parsed(list), help="The task's arguments, a JSON list.")
@click.option("--kwargs", default="{}", callback=_parsed(dict), help="Its keyword arguments, a JSON object.")
@click.option("--events", default="{}", callback=_parsed(dict), help="Events that it is sent, a JSON object by name.")
@click.option("--ends", default=states.SUCCEEDED, type=click.Choice(sorted(states.TERMINAL)), show_default=True,
              help="The state that it is to end in.")  # fmt: skip
@click.option("--check", callback=_function, help="module:function that fails unless there is one effect.")
@click.option("--reset", callback=_function, help="module:function that makes the world anew before each run.")
def crashtest(ctx: click.Context, task: str, args: list[Any], *, as_json: bool, **how: Any) -> None:
    """Kill TASK at every crash point, recover it, and see whether its effects are there once.

    It runs for real, once per crash point, in processes of its own: run this against test systems. The app's ledger and
    broker are not touched, a ledger and a broker in a temporary folder take their place. Without --check only
    how the task ends is judged. Exit code 1 when a crash point broke.
    """
    from celery_durable.testing import Durable  # other commands do without the kit

    app = deployment(ctx).app
    if task not in app.tasks:
        known = ", ".join(sorted(n for n in app.tasks if not n.startswith("celery."))) or "none"
        raise click.ClickException(f"The app has no task {task!r}; it has: {known}.")
    with (
        tempfile.TemporaryDirectory(prefix="durable-crashtest-") as folder,
        redirect_stdout(sys.stderr),  # what the task prints
        Durable(app, Path(folder)) as kit,
    ):
        report = kit.crash_report(app.tasks[task], args, **how)
    if as_json:
        emit(report.as_json())
    else:
        _tell(console(ctx).print, report)
    if not report.ok:
        ctx.exit(1)


def _tell(tell: Callable[..., None], report: Report) -> None:
    rows = [
        (line(v.point, "wrong" if v.problem else ""), line(v.problem or "ok", "wrong" if v.problem else "ok"))
        for v in report.verdicts
    ]
    tell(table([Column("crash point", fold=True), Column("verdict", fold=True)], rows))
    tell()
    for sentence in (report.headline, *report.notes):
        tell(line(sentence))
