"""Why a task stands where it stands: one sentence, the time it is looked at again, and the evidence.

The command, an admin page and the API all ask here. Every state has an answer; none of them is "unknown".
Nothing here reads a clock or a database: ``look_up`` collects the facts, ``explain`` judges them.
Times in sentences are UTC; a date is added when it is not today's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_durable import states
from celery_durable.explain_waits import COMMAND, STUCK, about, names, paused, unswept, waiting
from celery_durable.facts import Facts, look_up
from celery_durable.records import isotime
from celery_durable.wording import SECOND, brief, clock, counted, span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_durable.records import Event, Record, Worker

__all__ = ["Explanation", "Facts", "explain", "look_up"]

#: Phases of a live worker that takes no new work: its ledger does not answer, or it is being shut down.
IDLE = frozenset({"paused", "stopping"})


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. ``wake_at`` (microseconds) is when the ledger looks again, None when it never has to."""

    reason: str
    wake_at: int | None
    evidence: list[str]

    def as_json(self, record: Record) -> dict[str, Any]:
        """Return the contract's JSON form of an answer to ``why``."""
        return {
            "task_id": record.task_id, "state": record.state, "reason": self.reason,
            "wake_at": isotime(self.wake_at), "evidence": self.evidence,
        }  # fmt: skip


def explain(record: Record, facts: Facts) -> Explanation:
    """Say why a task stands where it stands."""
    answers = _SEEN if record.observed else _ANSWERS
    reason, wake_at, evidence = answers[record.state](record, facts)
    return Explanation(reason, wake_at, [*evidence, *_past(record, facts)])


_Answer = tuple[str, "int | None", list[str]]


# --- queued -----------------------------------------------------------------------------------------


def _queued(r: Record, f: Facts) -> _Answer:
    if r.deadline_at is not None and r.deadline_at <= f.now:
        verdict, seen = unswept(f.now - r.deadline_at, f)
        return (
            f"expired at {clock(r.deadline_at, f.now)} before anybody ran it: {verdict}",
            r.publish_at,
            seen,
        )
    nobody, evidence = _nobody(r, f)
    pause = paused(r, f)
    if pause is not None:
        sentence, hint = about(pause, f.now)
        nobody = f"{sentence}; the first worker that meets it holds it back"
        evidence.append(hint)
    arrived = f.last("submit", "adopt", "release", "replay", "lose", "replace")
    if arrived is not None:
        evidence.append(f"queued since {clock(arrived.at, f.now)} ({arrived.verb})")
    evidence.append(_message(r, f))
    if f.depth is not None:
        evidence.append(f"the broker holds {counted(f.depth, 'message')} in queue '{r.queue}'")
    if r.deadline_at is not None:
        evidence.append(f"it expires at {clock(r.deadline_at, f.now)} unless it runs before")
    reason = nobody or _unclaimed(r, f, arrived)
    if arrived is not None and arrived.verb == "lose":
        reason += f"; queued again after loss {r.losses} of {r.max_losses}: {brief(arrived.reason)}"
    return reason, r.publish_at, evidence


def _nobody(r: Record, f: Facts) -> tuple[str | None, list[str]]:
    """Say which kind of worker is missing, None when none is, and what the live ones are."""
    live = f.live
    if live:
        return _missing(r, live), [
            f"{w.hostname} (pid {w.pid}, {w.phase}) consumes {names(w.queues)} and runs {w.running}" for w in live
        ]
    last = max(f.workers, key=lambda w: w.heartbeat_at, default=None)
    if last is None:
        return "no live worker: none is registered", []
    return f"no live worker: the last one heard of was {last.hostname}, {span(f.now - last.heartbeat_at)} ago", []


def _missing(r: Record, live: Sequence[Worker]) -> str | None:
    here = [w for w in live if w.broker == r.broker]
    if not here:
        others = names(sorted({w.broker for w in live}))
        return f"no live worker uses its broker '{r.broker}': the live ones use {others}"
    consuming = [w for w in here if r.queue in w.queues]
    if not consuming:
        return f"no live worker consumes queue '{r.queue}'"
    knowing = [w for w in consuming if r.task in w.tasks or not w.tasks or r.task.startswith("celery.")]
    if not knowing:
        return f"no live worker that consumes queue '{r.queue}' knows the task '{r.task}'"
    if all(w.phase in IDLE for w in knowing):
        those = ", ".join(f"{w.hostname} is {w.phase}" for w in knowing)
        return f"the workers that consume queue '{r.queue}' take no new work: {those}"
    return None


def _message(r: Record, f: Facts) -> str:
    sent = "no message has been sent yet"
    if r.publish_count:
        sent = f"message sent {counted(r.publish_count, 'time')}, last at {clock(r.published_at, f.now)}"
    return f"{sent}; the next is due at {clock(r.publish_at, f.now)}"


def _unclaimed(r: Record, f: Facts, arrived: Event | None) -> str:
    """Say why a row that some live worker could run is not running."""
    due = r.publish_at if r.publish_at is not None else f.now
    at = clock(due, f.now)
    if f.now - due > STUCK * SECOND:
        return (
            f"its message has been due since {at} ({span(f.now - due)}), but no worker of its broker "
            "sends it: no sweep gets through"
        )
    if r.published_at is None or not _rung(r, arrived):
        since = "has been due since" if due < f.now else "is due at"
        return f"its message {since} {at}: the next sweep of a live worker sends it"
    if not r.publish_count:
        return f"the broker did not take its message; it is tried again at {at}"
    sent = f.now - r.published_at
    reason = f"message sent {span(sent)} ago"
    if f.depth == 0:
        return f"{reason}, but the broker holds none any more: it is sent again at {at}"
    if f.ahead:
        return f"{reason}, {counted(f.ahead, 'task')} {'is' if f.ahead == 1 else 'are'} ahead of it"
    if f.ahead == 0:
        reason += ", no task is ahead of it"
        if sent > STUCK * SECOND or r.publish_count > 1:
            reason += (
                f", yet nobody has claimed it (message sent {counted(r.publish_count, 'time')}): the workers "
                f"are busy, or the message was lost; it is sent again at {at}"
            )
    return reason


def _rung(r: Record, arrived: Event | None) -> bool:
    """Whether a message was sent since the row came to be queued, not in an earlier life."""
    if arrived is None or r.published_at is None:
        return r.published_at is not None
    # A submission rings in the same breath, and its two times differ by the length of a statement.
    breath = SECOND if arrived.verb in {"submit", "adopt", "replay"} else 0
    return r.published_at >= arrived.at - breath


# --- running ----------------------------------------------------------------------------------------


def _running(r: Record, f: Facts) -> _Answer:
    owner = next((w for w in f.workers if r.lease_owner in {w.id, w.hostname}), None)
    # A worker's id is its host name and a number that changes with every start.
    name = owner.hostname if owner else str(r.lease_owner).rpartition("/")[0] or str(r.lease_owner)
    who = name if r.lease_pid is None else f"{name} (pid {r.lease_pid})"
    since, until = clock(r.started_at, f.now), clock(r.lease_expires_at, f.now)
    evidence = [f"attempt {r.claims} started at {since}, {span(f.now - (r.started_at or f.now))} ago"]
    if owner is not None:
        phase = owner.phase if owner.live else "gone"
        evidence.append(f"{name} is {phase}: it reported itself {span(f.now - owner.heartbeat_at)} ago")
    else:
        evidence.append(f"no worker named {name} is registered")
    late = f.now - (r.lease_expires_at or f.now)
    reason = f"running on {who} since {since}, lease until {until}"
    if late > 0:
        verdict, seen = unswept(late, f)
        reason = f"the lease of {who}, running since {since}, passed at {until}, {span(late)} ago: {verdict}"
        evidence += seen
    if r.cancel_requested_at is not None:
        why = f": {brief(r.cancel_reason)}" if r.cancel_reason else ""
        reason += f"; its cancellation was asked for at {clock(r.cancel_requested_at, f.now)}{why}"
    return reason, r.lease_expires_at, evidence


# --- over -------------------------------------------------------------------------------------------


def _succeeded(r: Record, f: Facts) -> _Answer:
    how = f"on attempt {r.claims}"
    if r.duplicate_of is not None:
        how = f"with the outcome of {f.holder.task_id if f.holder else 'the task that held its key'}"
    return f"succeeded at {clock(r.finished_at, f.now)} {how}{_owed(r)}", r.publish_at, _pruned(r, f)


def _dead(r: Record, f: Facts) -> _Answer:
    failed = r.failure or (f.failures[-1] if f.failures else None)
    what = f"{r.failure_kind}, {brief(failed.headline)}" if failed else str(r.failure_kind)
    tried = "before any attempt"
    if r.claims:
        tried = f"after {counted(r.claims, 'attempt')} and {counted(r.losses, 'loss')}"
    reason = f"dead since {clock(r.finished_at, f.now)}, {tried}: {what}{_owed(r)}"
    ended = f.last("fail", "lose", "expire", "park", "follow")
    told = ended is not None and ended.reason and (failed is None or ended.reason != failed.headline)
    evidence = [f"{ended.verb}: {brief(ended.reason)}"] if ended and told else []
    if failed and failed.verdict:
        evidence.append(f"why it was not tried again: {brief(failed.verdict)}")
    evidence += _pruned(r, f) or [f"bring it back with: {COMMAND} replay {r.task_id}"]
    return reason, r.publish_at, evidence


def _cancelled(r: Record, f: Facts) -> _Answer:
    asked, followed = f.last("cancel"), f.last("follow")
    who = f" by {asked.actor}" if asked and asked.actor else ""
    told = asked or followed
    why = brief(r.cancel_reason or (told.reason if told else "")) or "no reason was given"
    evidence = []
    if asked and asked.target == states.RUNNING:
        evidence.append(f"the cancellation was asked for at {clock(asked.at, f.now)}, while it was running")
    evidence += _pruned(r, f)
    return f"cancelled at {clock(r.finished_at, f.now)}{who}: {why}{_owed(r)}", r.publish_at, evidence


def _pruned(r: Record, f: Facts) -> list[str]:
    if r.pruned_at is None:
        return []
    return [f"its message, result and history were pruned at {clock(r.pruned_at, f.now)}; its key still holds"]


def _owed(r: Record) -> str:
    return "; its outcome has still to be told to those who wait for it" if r.continuation_pending else ""


def _past(r: Record, f: Facts) -> list[str]:
    """Evidence that bears on every state: submission, attempts, losses and failures so far."""
    by = f" by {r.submitted_by}" if r.submitted_by else ""
    lines = [f"submitted at {clock(r.submitted_at, f.now)}{by} to queue '{r.queue}'"]
    if r.claims and r.state != states.RUNNING:
        lines.append(f"{counted(r.claims, 'attempt')} so far, the last started at {clock(r.started_at, f.now)}")
    if r.losses:
        lines.append(f"{counted(r.losses, 'loss')} so far, {r.max_losses} end it")
    waited = f.last("wait")
    if r.waits and waited is not None and r.state in {states.QUEUED, states.RUNNING}:
        lines.append(f"it has waited {counted(r.waits, 'time')} in a row, the last time for: {brief(waited.reason)}")
    lines += [
        f"attempt {x.claim} failed at {clock(x.occurred_at, f.now)} ({x.kind}): {brief(x.headline)}"
        for x in f.failures[-3:]
    ]
    if r.continuation_pending:
        at = clock(r.publish_at, f.now)
        lines.append(f"a message that has a worker tell its outcome is sent at {at}, unless it was told before")
    return lines


# --- observed ---------------------------------------------------------------------------------------


def _seen(r: Record, f: Facts) -> _Answer:
    """Tell of a task that Celery runs without the ledger what its signals told."""
    seen = f.last("observe")
    since = clock(seen.at if seen is not None else r.submitted_at, f.now)
    told = f": {brief(r.wait_reason)}" if r.wait_reason else ""
    by = f" on {seen.actor}" if seen is not None and seen.actor and r.state == states.RUNNING else ""
    reason = f"seen {r.state}{by} at {since}{told}; it is only observed"
    return reason, None, ["Celery runs it by itself: the ledger tells what it saw, and promises nothing"]


def _seen_dead(r: Record, f: Facts) -> _Answer:
    reason, _, evidence = _dead(r, f)
    return f"{reason}; it was only observed: submit it anew to run it again", None, evidence[:-1]


_ANSWERS: dict[str, Callable[[Record, Facts], _Answer]] = {
    states.QUEUED: _queued,
    states.RUNNING: _running,
    states.WAITING: waiting,
    states.SUCCEEDED: _succeeded,
    states.DEAD: _dead,
    states.CANCELLED: _cancelled,
}
_SEEN: dict[str, Callable[[Record, Facts], _Answer]] = {**dict.fromkeys(_ANSWERS, _seen), states.DEAD: _seen_dead}
