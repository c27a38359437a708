"""The command that looks at a deployment: doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from celery_durable.cli import output
from celery_durable.cli.common import app_of
from celery_durable.cli.group import command
from celery_durable.doctor import Finding, examine, healthy, summary

if TYPE_CHECKING:
    import click
    from rich.console import Console

_STYLES = {"error": "wrong", "warning": "waiting", "info": "dim"}


@command
def doctor(ctx: click.Context, *, as_json: bool) -> None:
    """Say what of the configuration, the ledger and the broker breaks a promise or weakens one, and the fix.

    It changes nothing. Exit 1 when there is an error. docs/doctor.md describes each finding.
    """
    found = examine(app_of(ctx))
    if as_json:
        output.emit({"ok": healthy(found), "findings": [f.as_json() for f in found]})
    else:
        to = output.console(ctx)
        for finding in found:
            _tell(to, finding)
        style = "ok" if healthy(found) else "wrong"
        to.print(output.plain(f"{summary(found)}." if found else "Nothing is wrong.", style))
    if not healthy(found):
        ctx.exit(1)


def _tell(to: Console, finding: Finding) -> None:
    """A head line, and below it the sentence and the fix."""
    to.print(Text.assemble(output.plain(finding.level, _STYLES[finding.level]), "  ", output.plain(finding.id, "bold")))
    to.print(Padding(output.line(finding.message), (0, 0, 0, 2), expand=False))
    to.print(Padding(output.line(f"Fix: {finding.fix}"), (0, 0, 1, 2), expand=False))
