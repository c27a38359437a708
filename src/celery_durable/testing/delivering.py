"""One delivery of a row: what a worker's pool process does with a message, in this process or in one that may die."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery.app.trace import build_tracer
from celery.signals import before_task_publish
from celery.states import IGNORED
from kombu.serialization import loads, prepare_accept_content

from celery_durable import DurableTask, failpoints, runs, stepper
from celery_durable.delivery import Note
from celery_durable.outbox import HEADER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery_durable.ledger import Ring
    from celery_durable.testing.trail import Guide
    from celery_durable.wiring import Plugin

#: The worker that runs what is run here, and the seconds after which a run that does not end is killed.
WORKER, LONGEST_RUN = "crash-kit", 120


def deliver(side: Plugin, ring: Ring) -> None:
    """Run a row's message as a worker's pool process does; the outcome is in the ledger."""
    app, envelope = side.app, ring.envelope
    accept = prepare_accept_content(app.conf.accept_content)
    args, kwargs, embed = loads(envelope.body, envelope.content_type, envelope.content_encoding, accept=accept)
    task = app.tasks[envelope.headers["task"]]
    note = Note(uuid4().hex, recorded=True, envelope_no=ring.envelope_no, worker=WORKER)
    request = {
        **envelope.headers, "retries": ring.retries, HEADER: note.plain(), "args": args, "kwargs": kwargs,
        "hostname": WORKER, "is_eager": False, **(embed or {}),
        "delivery_info": {"exchange": envelope.exchange, "routing_key": envelope.routing_key, "redelivered": False},
    }  # fmt: skip
    tracer = build_tracer(task.name, task, app=app)
    traced = runs.deliver(task, tracer, ring.task_id, args, kwargs, request)
    dropped = traced.info is not None and traced.info.state == IGNORED
    if not dropped:
        side.ledger.clear_continuations({ring.task_id: note.token})


def deliver_in_child(side: Plugin, ring: Ring, guide: Guide | None, strays: Path) -> int:
    """Run a row's message in a process of its own, which the guide may kill; return how that ended, as waitpid tells.

    Names of tasks that are not durable and were sent go to the file ``strays``: nobody runs them.
    """

    def work() -> None:
        vars(stepper)["LONGEST_STAY"] = 0.0  # the pauses between tries of a step are waits, which are advanced through
        if guide is not None:
            failpoints.watch(guide)
        before_task_publish.connect(note, weak=False)
        deliver(side, ring)

    def note(sender: str, **_: Any) -> None:
        if not isinstance(side.app.tasks.get(sender), DurableTask):
            with strays.open("a") as file:
                file.write(sender + "\n")

    side.ledger.db.dispose()
    return in_child(work)


def in_child(work: Callable[[], None]) -> int:
    """Do work in a forked process; return how that ended, as waitpid tells."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LONGEST_RUN)
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - nothing of the test's may run on in this process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1]


__all__ = ["WORKER", "deliver", "deliver_in_child", "in_child"]
