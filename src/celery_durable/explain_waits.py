"""What a waiting task waits for, kind by kind: one sentence, and the evidence for it. Pure, as ``explain`` is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable import states
from celery_durable.wording import SECOND, brief, clock, counted, span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_durable.facts import Facts
    from celery_durable.records import Pause, Record, Worker

#: Seconds that something due may wait for a sweep before that is worth a word, and before it looks wrong.
LATE, STUCK = 5.0, 60.0
#: How a command is called, in hints.
COMMAND = "celery -A <app> durable"


def waiting(r: Record, f: Facts) -> tuple[str, int | None, list[str]]:
    """Say what a waiting task waits for, when it is looked at again, and what shows that."""
    at, told = clock(r.wake_at, f.now), brief(r.wait_reason or "")
    evidence = [f"waiting since {clock(r.wait_since, f.now)}: {told}"]
    tell = _KINDS.get(str(r.wait_kind))
    if tell is None:
        reason = f"waits ({r.wait_kind}): {told}; looked at again at {at}"
    else:
        reason, seen = tell(r, f)
        evidence += seen
    late = f.now - (r.wake_at if r.wake_at is not None else f.now)
    if late > LATE * SECOND:
        verdict, swept = unswept(late, f)
        reason += f"; due for {span(late)} already: {verdict}"
        evidence += swept
    elif late < 0:
        evidence.append(f"looked at again at {at}, in {span(late)}")
    return reason, r.wake_at, evidence + _patience(r, f)


def unswept(late: int, f: Facts) -> tuple[str, list[str]]:
    """Say who should look at something that is due, and the workers that could."""
    if not f.live:
        last = max((w.heartbeat_at for w in f.workers), default=None)
        heard = "none is registered" if last is None else f"the last one was heard of {span(f.now - last)} ago"
        return "no live worker sweeps the ledger", [f"no live worker: {heard}"]
    seen = [f"{w.hostname} (pid {w.pid}) is {w.phase}, heard of {span(f.now - w.heartbeat_at)} ago" for w in f.live]
    if late > STUCK * SECOND:
        names = ", ".join(w.hostname for w in f.live)
        return f"{names} should have swept it, but no sweep gets through", seen
    return "the next sweep of a live worker takes it up", seen


def names(those: Sequence[str]) -> str:
    """Quote names and list them."""
    return ", ".join(f"'{n}'" for n in those) or "nothing"


def paused(r: Record, f: Facts) -> Pause | None:
    """Return the pause that concerns a task."""
    return next((p for p in f.pauses if p.concerns(r.task, r.queue)), None)


def about(pause: Pause, now: int) -> tuple[str, str]:
    """Say who holds what back, why and until when; and how to end that."""
    until = "until it is resumed" if pause.until is None else f"until {clock(pause.until, now)}"
    sentence = f"{brief(pause.sentence)} (since {clock(pause.since, now)}, {until})"
    return sentence, f"end it with: {COMMAND} resume {pause.kind}:{pause.target}"


def _patience(r: Record, f: Facts) -> list[str]:
    """How often it has waited for this in a row, and when it gives up."""
    lines = []
    if r.waits > 1:
        since = f", the first time at {clock(r.waiting_from, f.now)}" if r.waiting_from is not None else ""
        lines.append(f"it has waited {counted(r.waits, 'time')} in a row{since}")
    if r.give_up_at is not None and r.wait_kind == states.CONDITION:
        lines.append(f"it gives up at {clock(r.give_up_at, f.now)}, and is dead then (timeout)")
    return lines


# --- kinds ------------------------------------------------------------------------------------------

_Told = tuple[str, "list[str]"]


def _retry(r: Record, f: Facts) -> _Told:
    of = "" if f.max_retries is None else f" of {f.max_retries}"
    told = brief(r.failure.headline) if r.failure else brief(r.wait_reason or "")
    verdict = [f"why it is retried: {brief(r.failure.verdict)}"] if r.failure and r.failure.verdict else []
    return f"retry {r.retries}{of} at {clock(r.wake_at, f.now)} after {told}", verdict


def _scheduled(r: Record, f: Facts) -> _Told:
    return f"scheduled for {clock(r.wake_at, f.now)}: {brief(r.wait_reason or '')}", []


def _duplicate(r: Record, f: Facts) -> _Told:
    h = f.holder
    if h is None:
        return f"waits for the task that held the same key '{r.key}', which is gone: it ends as dead", []
    return f"waits for {h.task_id} ({h.state}), which holds the same key '{r.key}', to take its outcome", []


def _condition(r: Record, f: Facts) -> _Told:
    return f"waits for a condition: {brief(r.wait_reason or '')}; looked at again at {clock(r.wake_at, f.now)}", []


def _event(r: Record, f: Facts) -> _Told:
    if r.give_up_at is not None and r.wake_at is not None and r.wake_at < r.give_up_at and r.wake_at <= f.now:
        return f"event '{r.wait_event}' has arrived: it is run again", []
    hint = f"send it with: {COMMAND} send-event {r.task_id} {r.wait_event} '<JSON>'"
    ends = r.give_up_at if r.give_up_at is not None else r.wake_at
    return f"waits for event '{r.wait_event}', until {clock(ends, f.now)} at most (its timeout)", [hint]


def _sleep(r: Record, f: Facts) -> _Told:
    return f"sleeps until {clock(r.wake_at, f.now)}: {brief(r.wait_reason or '')}", []


def _paused(r: Record, f: Facts) -> _Told:
    pause = paused(r, f)
    if pause is None:
        return f"the pause that held it back is over, it is queued at {clock(r.wake_at, f.now)}", []
    sentence, hint = about(pause, f.now)
    return sentence, [hint]


def _requeue(r: Record, f: Facts) -> _Told:
    return f"{brief(r.wait_reason or 'rejected with requeue')}: queued again at {clock(r.wake_at, f.now)}", []


def _drain(r: Record, f: Facts) -> _Told:
    return (
        f"gave way to a worker that shuts down ({brief(r.wait_reason or '')}): queued at {clock(r.wake_at, f.now)}",
        [],
    )


def _unregistered(r: Record, f: Facts) -> _Told:
    knowing = [w for w in f.live if r.task in w.tasks]
    if knowing:
        known = ", ".join(w.hostname for w in knowing)
        return f"the task '{r.task}' is known to {known} now: it is queued at {clock(r.wake_at, f.now)}", []
    if not f.live:
        return f"no live worker: nobody can tell whether the task '{r.task}' is known", []
    reason = f"no live worker knows the task '{r.task}': deploy one that does, or cancel it"
    return reason, [_at_work(w) for w in f.live]


def _at_work(w: Worker) -> str:
    return f"{w.hostname} (pid {w.pid}, {w.phase}) knows {counted(len(w.tasks), 'task')} and consumes {names(w.queues)}"


def _replaced(r: Record, _f: Facts) -> _Told:
    """A canvas stands in for it."""
    reason = "it replaced itself by a canvas, the last part of which takes its place; it ends if a part of that fails"
    return reason, [f"the parts of the canvas have root_id {r.root_id}; those that it sent have parent_id {r.task_id}"]


_KINDS: dict[str, Callable[[Record, Facts], _Told]] = {
    states.RETRY: _retry,
    states.SCHEDULED: _scheduled,
    states.DUPLICATE: _duplicate,
    states.CONDITION: _condition,
    states.EVENT: _event,
    states.SLEEP: _sleep,
    states.PAUSED: _paused,
    "requeue": _requeue,
    "drain": _drain,
    "unregistered": _unregistered,
    states.REPLACED: _replaced,
}
