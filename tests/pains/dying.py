"""Rows 2, 3, 14: what becomes of a task whose process dies."""

from __future__ import annotations

import time

from tests.pains.kit import Seen, Side, pain, seen

ENDLESS = 10  # runs: thrice as many as `durable_max_losses` allows, and nothing ends them


@pain(
    2,
    "A dead worker or child loses its task, or leaves it running for ever",
    *("celery#1628", "celery#3057", "celery#7924"),
    setting="Redis; early acknowledgement, the default, and SIGKILL of a worker; `acks_late` and SIGKILL of a child",
    cure="`task_acks_late` for a dead worker (on Redis after `visibility_timeout`), `task_reject_on_worker_lost` for a "
    "dead child (row 3)",
)
def dead_worker(side: Side) -> Seen:
    worker = side.worker()
    held = side.submit("held", "end").id
    side.await_run(held)
    worker.kill()
    side.open("end")
    side.worker()
    killed = side.submit("late_killed_once").id
    side.await_run(killed)
    side.settle(held, killed)
    return seen(
        (not side.ends(held), f"killed with its worker: {told(side, held)}"),
        (not side.ends(killed), f"killed alone: {told(side, killed)}"),
    )


def told(side: Side, task: str) -> str:
    return (
        f"{side.runs(task)} run{'s' * (side.runs(task) > 1)}, {side.ends(task)} finished, said to be {side.state(task)}"
    )


@pain(
    3,
    "A poison task kills process after process, once requeue is on",
    *("celery#9082", "celery#8610", "celery#2012"),
    setting="Redis, `task_acks_late`, `task_reject_on_worker_lost`; SIGKILL in every run, as the out-of-memory killer "
    "sends it (no memory was really short)",
    cure="none on Redis: without `task_reject_on_worker_lost` every killed task is lost (row 2); RabbitMQ's quorum "
    "queues have a delivery limit",
    task_acks_late=True,
    task_reject_on_worker_lost=True,
)
def poison(side: Side) -> Seen:
    side.worker()
    began = time.monotonic()
    task = side.submit("poison").id
    if not side.durable:
        side.await_run(task, ENDLESS)
    else:
        side.settle(task)
    spent = time.monotonic() - began
    runs, state = side.runs(task), side.state(task)
    if side.durable:
        record = side.ledger.get(task)
        state = f"{state}, kind {record.failure_kind}"
    after = "and on" if not side.durable else "and no more"
    return seen((runs >= ENDLESS, f"{runs} processes killed in {spent:.0f} s, {after}; said to be {state}"))


@pain(
    14,
    "MemoryError ends the worker; a hard time limit loses the task",
    *("celery#9596", "celery#10462"),
    setting="Redis, Celery's defaults; a task that allocates 4 EiB; one with `time_limit` and "
    "`autoretry_for=(Exception,)` that hangs in its first run",
    cure="a supervisor that starts the worker again; a soft time limit below the hard one, which the body can answer "
    "by a retry",
)
def limits(side: Side) -> Seen:
    worker = side.worker()
    greedy = side.submit("greedy").id
    side.await_run(greedy)
    if side.durable:
        side.settle(greedy)
    ended = side.hurts(lambda: not worker.running, watch=1)
    if ended:
        side.worker()
    hung = side.submit("hangs_once").id
    side.await_run(hung)
    side.settle(hung)
    return seen(
        (
            ended,
            f"MemoryError: the worker {'ended' if ended else 'lives'}, the task is said to be {side.state(greedy)}",
        ),
        (not side.ends(hung), f"time limit: {told(side, hung)}"),
    )
