"""The group of commands, and what makes a function one of them."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import click

from celery_durable.cli import stdout
from celery_durable.errors import DurableError

if TYPE_CHECKING:
    from collections.abc import Callable

stdout.hold(sys.argv)

#: Modules whose import adds their commands to the group.
ROOMS = ("acting", "asking", "checking", "crashing", "holding", "pruning", "replaying", "reporting")


class Command(click.Command):
    """A command that tells the errors of celery-durable in one line and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DurableError as error:
            raise click.ClickException(" ".join(str(error).split())) from error


class Commands(click.Group):
    """The group; Celery has imported the app by the time it is entered.

    Celery imports it for each of its own commands, a worker's too: the rooms are loaded once somebody asks for one.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        _load()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name."""
        _load()
        return super().get_command(ctx, cmd_name)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Enter the group."""
        stdout.release()
        return super().make_context(info_name, args, parent, **extra)


@click.group(cls=Commands)
def durable() -> None:
    """The ledger of durable tasks: what is where, and why.

    REF is a task id, an idempotency key, or TASK_NAME/KEY where several tasks use the same key.
    Every command takes --json and then prints one JSON document and nothing else. Times are UTC.
    """


def command(function: Callable[..., None]) -> click.Command:
    """Make a function, which gets the context first, a command of the group that takes ``--json``."""
    json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
    return durable.command(cls=Command)(json(click.pass_context(function)))


def _load() -> None:
    for room in ROOMS:
        importlib.import_module(f"celery_durable.cli.{room}")
