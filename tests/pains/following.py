"""Rows 10, 11, 12, 15, 16, 17: canvases, failures, retries, deploys, revokes, beats."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from celery import chain, chord

from tests.crash.witness import STARTED
from tests.pains.kit import Seen, Side, pain, seen
from tests.pains.tasks import OLD

if TYPE_CHECKING:
    from pathlib import Path


@pain(
    10,
    "Chords stall",
    *("celery#4207", "celery#8211", "celery#9107", "celery#2324"),
    setting="Redis as broker and result backend, Celery's defaults; SIGKILL of the worker that runs the last part "
    "(chords that fire early or twice were not tried)",
    cure="`task_acks_late`: the part comes back after `visibility_timeout`",
)
def chords(side: Side) -> Seen:
    worker = side.worker(concurrency=2)
    tasks = side.app.tasks
    parts = [tasks["work"].s(1), tasks["work"].s(2), tasks["held"].s("end", 3)]
    body = chord(parts)(tasks["gathered"].s())
    last = body.parent.results[2].id
    side.await_run(last)
    side.await_(lambda: all(side.ends(r.id) for r in body.parent.results[:2]), "the other parts do not end")
    worker.kill()
    side.open("end")
    side.worker()
    if side.durable:
        side.await_end(body.id)
    side.settle(body.id)
    return seen(
        (
            side.ends(body.id) != 1,
            f"2 parts of 3 done, one killed: the body ran {side.ends(body.id)}x, said to be {side.state(body.id)}",
        )
    )


@pain(
    11,
    "No dead letters, no history, no replay",
    *("celery#4797", "flower#1348", "flower#1013"),
    setting="Redis as broker and result backend, Celery's defaults; five calls fail while what they need is down",
    cure="`result_extended` keeps name and arguments with the result, for `result_expires` (a day); sending them again "
    "is the user's to write",
)
def dead_letters(side: Side) -> Seen:
    side.worker()
    ids = [side.submit("dependent", f"ORD-{n}", 100 + n).id for n in range(5)]
    for i in ids:
        side.await_run(i)
    side.settle(*ids)
    if side.durable:
        kept = [side.ledger.get(i) for i in ids]
        (group,) = side.ledger.failure_groups(task="dependent")
        side.open("dependency")
        replayed = side.ledger.replay_many(fingerprint=group.fingerprint, reason="merchant 7 is known now")
        side.settle(*ids)
        known = f"one group of {group.count} failures ({len(kept)} dead letters)"
    else:
        results = [side.app.AsyncResult(i) for i in ids]
        side.await_(lambda: all(r.state == "FAILURE" for r in results), "they do not fail")
        kept = [r for r in results if r.name or r.args or r.kwargs]
        side.open("dependency")
        replayed = 0
        known = f"5 FAILUREs, {len(kept)} with their task's name or arguments"
    done = sum(side.ends(i) for i in ids)
    return seen(
        (not kept, known),
        (done < len(ids), f"{replayed} of 5 could be replayed, {done} finished"),
    )


@pain(
    12,
    "A retry is published before the old message is acknowledged: duplicates, with all that follows",
    *("celery#6631", "celery#2759", "celery#6178"),
    setting="RabbitMQ, `task_acks_late`; the worker is killed between both, in a chain (a retry that cannot be "
    "published: row 6)",
    cure="`worker_deduplicate_successful_tasks`, for a copy that comes after the other has succeeded; early "
    "acknowledgement, which loses what dies (row 2)",
    broker="rabbitmq",
    task_acks_late=True,
)
def retries(side: Side) -> Seen:
    worker = side.worker()
    tasks = side.app.tasks
    last = chain(tasks["retries_and_loses_its_worker"].si(), tasks["work"].si("next")).apply_async()
    first = last.parent.id
    side.await_run(first)
    side.await_(lambda: not worker.running, "the worker is not killed")
    side.worker()
    side.await_end(last.id)
    side.hurts(lambda: side.ends(last.id) >= 2, watch=4)
    side.settle(first, last.id)
    return seen(
        (side.ends(first) > 1, f"the retried task finished {side.ends(first)}x"),
        (side.ends(last.id) > 1, f"the next of its chain {side.ends(last.id)}x"),
    )


@pain(
    15,
    "Deploy skew: an unregistered task is discarded",
    *("celery#6893", "celery#8165"),
    setting="Redis, Celery's defaults; a call of a new task reaches a worker of the old version, then a new one starts",
    cure="none but the order of the deploy, or a queue of its own for each version",
)
def unregistered(side: Side) -> Seen:
    (side.folder / OLD).touch()
    old = side.worker()
    task = side.submit("fresh").id
    says = "Received unregistered task"
    if side.durable:
        side.await_(lambda: side.state(task) == "waiting", "it is not parked")
        says = side.why(task)
    else:
        side.await_(lambda: says in old.output, "it is not discarded")
    old.shut_down()
    old.exit_code()
    (side.folder / OLD).unlink()
    side.worker()
    side.settle(task)
    where = f"`why`: {says}" if side.durable else f"the log: {says}"
    return seen((not side.ends(task), f"{side.ends(task)} of 1 ran on the new worker ({where})"))


@pain(
    16,
    "Revokes are forgotten after a restart",
    *("celery#4886", "celery#1246"),
    setting="Redis, Celery's defaults; an ETA task is revoked, the only worker restarts",
    cure="`--statedb`, a file for each worker; workers that run meanwhile tell a new one of theirs (mingle)",
)
def revokes(side: Side) -> Seen:
    worker = side.worker()
    task = side.submit("work", "revoked", countdown=8).id
    if side.durable:
        side.ledger.cancel(task, "not wanted")
    else:
        side.await_(lambda: f"[{task}] received" in worker.output, "it is not received")
        side.app.control.revoke(task, reply=True, timeout=20, limit=1)
        assert task in str(side.app.control.inspect(timeout=20, limit=1).revoked())
    worker.shut_down()
    assert worker.exit_code() == 0
    side.worker()
    ran, verb = side.hurts(lambda: side.runs(task), watch=9), "cancelled" if side.durable else "revoked"
    return seen(
        (
            ran,
            f"the {verb} task ran {side.runs(task)}x, said to be {side.state(task)}",
        )
    )


@pain(
    17,
    "Two beats, two runs",
    *("celery#2856", "celery#1495", "django-celery-beat#337"),
    setting="Redis, two `celery beat`, a crontab entry that passes its tick (`BeatLazyFunc`); ours has "
    '`idempotency_key="{tick}"`',
    cure="none; exactly one beat has to run",
)
def beats(side: Side) -> Seen:
    side.worker(concurrency=2)
    logs = [
        side.program(name, "-m", "celery", "-A", "tests.pains.app", "beat", "-s", str(side.folder / name), "-l", "info")
        for name in ("beat1", "beat2")
    ]
    (tick, *_) = side.await_(lambda: set.intersection(*map(ticks, logs)), "they have no tick in common", 200)
    side.hurts(lambda: runs(side, tick) >= 2, watch=4)
    side.await_(lambda: runs(side, tick), "nothing ran")
    return seen((runs(side, tick) != 1, f"one tick of two beats: {runs(side, tick)} run{'s' * (runs(side, tick) > 1)}"))


def ticks(log: Path) -> set[str]:
    """The minutes in which a beat sent its task."""
    return set(re.findall(r":(\d\d):\d\d,\d+: INFO/MainProcess\] Scheduler: Sending due task report", log.read_text()))


def runs(side: Side, tick: str) -> int:
    found = Counter(s.note[14:16] for s in side.witness.sights if s.what == STARTED and s.note.endswith("Z"))
    return found[tick]
