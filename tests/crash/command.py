"""`celery durable ...` of a stage's app, within the test's process: one that starts takes a second."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click
from click.testing import CliRunner

from celery_durable.cli import durable

if TYPE_CHECKING:
    from tests.crash.kit import Stage


def told(stage: Stage, *words: str, code: int = 0) -> str:
    """What the command prints."""

    @click.group()
    @click.option("-A", "--app")
    @click.pass_context
    def celery(ctx: click.Context, app: str) -> None:
        ctx.obj = SimpleNamespace(app=stage.app, no_color=True)

    celery.add_command(durable)
    done = CliRunner().invoke(celery, ["-A", "crash", "durable", *words])
    assert done.exit_code == code, (words, done.output, done.exception)
    return done.output


def told_json(stage: Stage, *words: str) -> Any:
    """Its one JSON document."""
    return json.loads(told(stage, *words, "--json"))
