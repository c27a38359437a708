"""One task's life as a page tells it: moves, steps and failures in the order in which they happened. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_durable import states
from celery_durable.redaction_shown import bounded
from celery_durable.wording import clock, counted, moment, relative, span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from celery_durable.records import Event, Failure, Record
    from celery_durable.steps import Step

#: Entries shown at once, and characters of a step's result.
SHOWN, RESULT_WIDTH = 200, 400
#: What a move is called by its verb, or by its verb and where it led.
TITLES: dict[str | tuple[str, str], str] = {
    "submit": "Submitted", ("submit", states.WAITING): "Submitted for later", "adopt": "Adopted from a message",
    "park": "Set aside", "succeed": "Succeeded", ("fail", states.WAITING): "Failed, to be tried again",
    ("fail", states.DEAD): "Failed for good", "fail": "Failed", "wait": "Waits", "replace": "Replaced",
    "lose": "Lost", ("lose", states.QUEUED): "Lost, queued again", ("lose", states.DEAD): "Lost for good",
    "release": "Due, queued again", "follow": "Followed the task that held its key", "expire": "Expired",
    "cancel": "Cancelled", ("cancel", states.RUNNING): "Cancellation asked for", "replay": "Replayed",
    "pause": "Held back by a pause", "hand_over": "Handed over", "fenced": "A late outcome was refused",
    "event": "An event arrived", "observe": "Seen",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened; ``tone`` is the state that it led to, or ``step``."""

    at: int
    when: str
    ago: str
    title: str
    tone: str
    text: str = ""
    by: str = ""
    took: str = ""
    result: str = ""
    failure: Mishap | None = None


@dataclass(frozen=True, slots=True)
class Mishap:
    """A failure with what is known beside the exception: pairs of a name and a text."""

    kind: str
    headline: str
    fingerprint: str
    traceback: str
    facts: Sequence[tuple[str, str]] = field(default=())


def told(
    record: Record, events: Sequence[Event], steps: Sequence[Step], failures: Sequence[Failure], names: Iterable[str]
) -> list[Entry]:
    """Tell a task's life, oldest first; ``names`` are those of values that the task redacts."""
    now = record.now
    waiting = {f.claim: f for f in failures}
    begun = {e.claim: e.at for e in events if e.verb == "claim"}
    entries = []
    for event in events:
        ends = event.source == states.RUNNING and event.target != states.RUNNING
        failure = waiting.pop(event.claim, None) if event.verb in {"fail", "lose", "expire", "park"} else None
        took = span(event.at - begun[event.claim]) if ends and event.claim in begun else ""
        repeated = failure is not None and event.reason in {failure.headline, failure.message}
        entries.append(
            Entry(
                event.at, clock(event.at, now), relative(event.at, now), _title(event), event.target,
                text="" if repeated else event.reason, by=event.actor, took=took,
                failure=_mishap(failure, now) if failure else None,
            )
        )  # fmt: skip
    for step in steps:
        shown = step.as_json(names)["result"]
        entries.append(
            Entry(
                step.finished_at, clock(step.finished_at, now), relative(step.finished_at, now), f"Step {step.name}",
                "step", took=span(step.finished_at - step.started_at),
                result="" if shown is None else bounded(shown, RESULT_WIDTH),
            )
        )  # fmt: skip
    for failure in waiting.values():
        at = failure.occurred_at or now
        entries.append(
            Entry(at, clock(at, now), relative(at, now), "Failed", states.DEAD, failure=_mishap(failure, now))
        )
    # Sorted by time only: what has the same stays as it was written.
    return sorted(entries, key=lambda entry: entry.at)


def _title(event: Event) -> str:
    if event.verb == "claim":
        return f"Attempt {event.claim} started"
    return TITLES.get((event.verb, event.target)) or TITLES.get(event.verb) or event.verb.capitalize()


def _mishap(f: Failure, now: int) -> Mishap:
    causes = json.loads(f.causes) if f.causes else []
    facts = [
        ("verdict", f"{f.verdict} ({'retryable' if f.retryable else 'not retryable'})" if f.verdict else ""),
        ("again at", clock(f.retry_at, now) if f.retry_at is not None else ""),
        ("arguments", f.arguments or ""),
        ("worker", _where(f)),
        ("used", ", ".join(x for x in _used(f) if x)),
        ("code", f.code_version or ""),
        *(("caused by", " ".join(str(x) for x in cause.values())) for cause in causes),
    ]
    return Mishap(f.kind, f.headline, f.fingerprint, f.traceback.rstrip(), [(n, text) for n, text in facts if text])


def _where(f: Failure) -> str:
    pid = f" (pid {f.pid})" if f.worker and f.pid is not None else ""
    host = f" on {f.host}" if f.host and f.host not in f.worker else ""
    return f"{f.worker}{pid}{host}"


def _used(f: Failure) -> tuple[str, str]:
    return (
        f"{f.runtime_micros / 1e6:.3g} s" if f.runtime_micros is not None else "",
        f"{f.memory_bytes / 2**20:.0f} MiB of memory" if f.memory_bytes is not None else "",
    )


def facts_of(r: Record) -> list[tuple[str, Any]]:
    """Tell the facts of a record, pairs of a name and a text; times in UTC."""
    rows = [
        ("task", r.task),
        ("task id", r.task_id),
        ("key", r.key if r.key != r.task_id else None),
        ("queue", r.queue if r.priority is None else f"{r.queue}, priority {r.priority}"),
        ("attempts", f"{r.claims}, {counted(r.losses, 'loss')} (limit {r.max_losses}), retry {r.retries}"),
        ("messages sent", str(r.publish_count)),
        ("submitted", f"{moment(r.submitted_at, r.now)} by {r.submitted_by or 'nobody named'}"),
        ("lease", f"{r.lease_owner} (pid {r.lease_pid})" if r.lease_owner else None),
    ]
    times = (
        ("started", r.started_at), ("finished", r.finished_at), ("expires", r.deadline_at),
        ("lease until", r.lease_expires_at), ("wakes", r.wake_at), ("gives up", r.give_up_at),
        ("next message", r.publish_at), ("cancel asked", r.cancel_requested_at),
    )  # fmt: skip
    rows += [(name, moment(at, r.now)) for name, at in times if at is not None]
    return [(name, text) for name, text in rows if text]
