"""Runs `python -m celery` again and again without importing everything each time.

A process with the libraries loaded, but neither Celery's command nor ours, forks for each request (one
JSON line: words, folder, environment, files for stdout and stderr) and answers with the exit code.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback

import alembic.context
import celery.app
import click_repl
import kombu.transport.memory
import rich.table
import sqlalchemy.dialects.sqlite.pysqlite

import celery_durable

LOADED = (alembic.context, celery.app, click_repl, kombu, rich.table, sqlalchemy, celery_durable)


def run(request: dict) -> int:
    """Be `python -m celery` in a child."""
    for number, file in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["celery", *request["words"]]
    sys.path.insert(0, request["folder"])
    code = 0
    try:
        runpy.run_module("celery", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - what an interpreter does at its end
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(run(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
