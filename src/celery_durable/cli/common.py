"""What every command needs: the app with its tasks, its settings and its ledger."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

import click

from celery_durable.deployment import Deployment
from celery_durable.ledger import Ledger
from celery_durable.wiring import plugin


def deployment(ctx: click.Context) -> Deployment:
    """Import the app's tasks and open its ledger; nothing connects yet.

    Raises:
        SettingsError: a setting is unknown or makes no sense.
        click.ClickException: there is no ``-A``, or the tasks cannot be imported.
    """
    app = app_of(ctx)
    with redirect_stdout(sys.stderr):
        try:
            app.loader.import_default_modules()
            app.finalize()
        except Exception as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise click.ClickException(f"The app's tasks cannot be imported ({cause}).") from error
        settings = plugin(app).settings
    return Deployment(app, settings, Ledger.open(settings))


def ready(ctx: click.Context) -> Deployment:
    """Like ``deployment``, with a ledger that answers and has this version's tables. SQLite migrates itself.

    Raises:
        LedgerUnavailable: the database does not answer.
        LedgerSchemaError: its tables are missing or of another version.
    """
    found = deployment(ctx)
    if found.ledger.dialect.name == "sqlite" and found.ledger.migrate()[0] is None:
        # A command in the wrong directory would otherwise report an empty ledger as if it were the one.
        click.echo(f"Note: there was no ledger; a new, empty one was made at {found.ledger.db}.", err=True)
    found.ledger.ready()
    return found


class _NoApp(click.ClickException):
    exit_code = click.UsageError.exit_code


def app_of(ctx: click.Context) -> Any:
    """Return the app; Celery itself would quietly use a default one without ``-A``."""
    if ctx.obj is None or ctx.find_root().params.get("app") is None:
        raise _NoApp("Which app? Say 'celery -A <app> durable ...'.")
    return ctx.obj.app
