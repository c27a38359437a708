"""Starts `python -m celery ...` again and again without importing everything each time.

A process with the libraries loaded, but neither Celery's command nor ours, forks for each request. `tests.forked` talks
to it, in lines of JSON: `start` (words, folder, environment, files for stdout and stderr, whether it leads a session of
its own) is answered with the process id, `reap` with how that process ended.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback

import alembic.context
import celery.apps.worker
import celery.bin.worker
import celery.concurrency.prefork
import click_repl
import kombu.transport.filesystem
import kombu.transport.memory
import kombu.transport.pyamqp
import kombu.transport.redis
import psycopg
import pymysql
import rich.table
import sqlalchemy.dialects.mysql.pymysql
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite.pysqlite

LOADED = (alembic.context, celery.bin.worker, click_repl, kombu.transport, psycopg, pymysql, rich.table, sqlalchemy)


def run(request: dict) -> int:
    """Be `python -m celery` in a child."""
    if request["session"]:
        os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout.reconfigure(line_buffering=True)
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
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - what an interpreter does at its end
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if not child:
            os._exit(run(request))
        print(child, flush=True)
