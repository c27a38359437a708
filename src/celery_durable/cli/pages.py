"""What the tables and pages say about records, failures, history and workers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from celery_durable import states
from celery_durable.cli.output import Column, line, pairs, plain, shortened, table
from celery_durable.notes import note, progress_of, ref_of
from celery_durable.redaction_shown import bounded
from celery_durable.wording import SECOND, brief, clock, counted, moment, relative, span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from celery_durable.records import Event, Failure, Record, Worker
    from celery_durable.steps import Step

#: Longest result of a step shown in the page of a task.
RESULT_WIDTH = 200


def states_line(counts: Mapping[str, int]) -> Text:
    """Say how many tasks are in each state."""
    parts = [Text(f"{n} ").append_text(plain(s, s if n else "dim")) for s, n in counts.items()]
    return Text("   ").join(parts)


def queues_table(queues: Sequence[Mapping[str, Any]]) -> Table:
    """List the queues with what is queued in them."""
    rows = [(q["queue"], q["queued"], span(round(q["oldest_age_seconds"] * 1e6))) for q in queues]
    return table((Column("queue"), Column("queued", right=True), Column("oldest", right=True)), rows)


def workers_table(workers: Sequence[Worker]) -> Table:
    """List workers."""
    columns = (
        Column("worker"),
        Column("pid", right=True),
        Column("phase"),
        Column("runs", right=True),
        Column("queues"),
        Column("started", right=True),
        Column("heard of", right=True),
    )
    return table(
        columns,
        [
            (
                w.hostname, w.pid, plain(w.phase) if w.live else plain("gone", "gone"), w.running,
                ", ".join(w.queues), relative(w.started_at, w.now), relative(w.heartbeat_at, w.now),
            )
            for w in workers
        ],
    )  # fmt: skip


def records_table(records: Sequence[Record]) -> Table:
    """List records: how to call each, where it stands, and what for."""
    columns = (
        Column("ref"),
        Column("state"),
        Column("task", ratio=2),
        Column("queue"),
        Column("age", right=True),
        Column("note", ratio=3),
    )
    made = table(
        columns,
        [(ref_of(r, records), plain(r.state, r.state), r.task, r.queue, _age(r), note(r)) for r in records],
    )
    made.expand = True
    return made


def _age(r: Record) -> str:
    age = r.now - r.submitted_at
    return span(age) if age >= SECOND else "0 s"


def record_page(r: Record, reason: str) -> RenderableType:
    """Tell everything about one record."""
    counts = [
        f"{counted(r.claims, 'attempt')}, {counted(r.losses, 'loss')} (limit {r.max_losses})",
        f"retry {r.retries}",
        f"message sent {counted(r.publish_count, 'time')}",
    ]
    rows: list[tuple[str, object]] = [
        ("task", r.task),
        ("task id", r.task_id),
        ("key", r.key),
        ("state", plain(r.state, r.state)),
        ("why", line(reason)),
        ("queue", r.queue if r.priority is None else f"{r.queue}, priority {r.priority}"),
        ("counted", ", ".join(counts)),
        ("submitted", f"{moment(r.submitted_at, r.now)} by {r.submitted_by or 'nobody named'}"),
    ]
    times = (
        ("started", r.started_at), ("finished", r.finished_at), ("expires", r.deadline_at),
        ("lease until", r.lease_expires_at), ("wakes", r.wake_at), ("next message", r.publish_at),
        ("cancel asked", r.cancel_requested_at),
    )  # fmt: skip
    rows += [(name, moment(at, r.now)) for name, at in times if at is not None]
    others = (("part of", r.root_id if r.root_id != r.task_id else None), ("called by", r.parent_id))
    rows += [(name, value) for name, value in others if value]
    far = progress_of(r)
    if far:
        rows.append(("progress", line(f"{far} ({relative(r.progress_at or r.now, r.now)})")))
    if r.lease_owner:
        rows.append(("owner", f"{r.lease_owner} (pid {r.lease_pid})"))
    if r.wait_kind:
        rows.append(("waits", f"{r.wait_kind}: {r.wait_reason} (since {moment(r.wait_since, r.now)})"))
        if r.waits:
            since = f", since {moment(r.waiting_from, r.now)}" if r.waiting_from is not None else ""
            rows.append(("waited", f"{counted(r.waits, 'time')} in a row{since}"))
        if r.give_up_at is not None:
            rows.append(("gives up", moment(r.give_up_at, r.now)))
    if r.state == states.SUCCEEDED:
        rows.append(("result", line(repr(r.decoded_result()))))
    return pairs(rows)


def steps_page(steps: Sequence[Step], names: Sequence[str], now: int) -> RenderableType:
    """Tell which steps are done, oldest first; ``names`` are those that the task redacts."""
    rows = [
        (clock(s.finished_at, now), s.name, s.claim, span(s.finished_at - s.started_at), bounded(shown, RESULT_WIDTH))
        for s, shown in ((s, s.as_json(names)["result"]) for s in steps)
    ]
    columns = (
        Column("done"),
        Column("step", fold=True),
        Column("claim", right=True),
        Column("took", right=True),
        Column("result", fold=True, ratio=1),
    )
    made = table(columns, rows)
    made.expand = True
    return Group(Text(), made)


def history_page(events: Sequence[Event], now: int) -> RenderableType:
    """Tell the history, oldest first."""
    rows = [
        (clock(e.at, now), relative(e.at, now), e.verb, f"{e.source or '-'} -> {e.target}", e.claim, e.actor, e.reason)
        for e in events
    ]
    columns = (
        Column("history"),
        Column("", right=True),
        Column("move"),
        Column("from -> to"),
        Column("claim", right=True),
        Column("actor", fold=True),
        Column("reason", fold=True, ratio=1),
    )
    made = table(columns, rows)
    made.expand = True
    return Group(Text(), made)


def failures_page(failures: Sequence[Failure], now: int, *, full: bool) -> RenderableType:
    """Tell every failure, oldest first, with the last one's traceback; with ``full`` with everybody's."""
    parts: list[RenderableType] = []
    hidden = 0
    for number, f in enumerate(failures, 1):
        again = f", again at {moment(f.retry_at, now)}" if f.retry_at is not None else ""
        where = f" on {f.worker} (pid {f.pid})" if f.worker else ""
        parts += [
            Text(),
            plain(f"failure {number} of {len(failures)}: {f.kind}, attempt {f.claim}{where}", "bold"),
            plain(f"{moment(f.occurred_at, now)}{again}  fingerprint {f.fingerprint or '-'}", "dim"),
            *_circumstances(f),
        ]
        trace, left_out = (f.traceback.rstrip(), 0) if full else shortened(f.traceback)
        if not trace or (number < len(failures) and not full):
            hidden += bool(trace)
            parts.append(line(f.headline, "wrong"))
        else:
            hidden += left_out
            parts.append(plain(trace))
    if hidden:
        parts += [Text(), plain("Tracebacks are shortened; --full shows them whole.", "dim")]
    return Group(*parts)


def _circumstances(f: Failure) -> list[RenderableType]:
    """Tell what is known of an attempt beside the exception: why it was judged so, with what, where, how long."""
    where = [
        f"host {f.host}" if f.host else "",
        f"after {f.runtime_micros / 1e6:.3g} s" if f.runtime_micros is not None else "",
        f"{f.memory_bytes / 2**20:.0f} MiB of memory" if f.memory_bytes is not None else "",
        f"code {f.code_version}" if f.code_version else "",
    ]
    lines = [
        ("verdict", f"{f.verdict} ({'retryable' if f.retryable else 'not retryable'})" if f.verdict else ""),
        ("arguments", f.arguments or ""),
        ("where", ", ".join(x for x in where if x)),
    ]
    causes = json.loads(f.causes) if f.causes else []
    lines += [("caused by", brief(" ".join(str(x) for x in cause.values()))) for cause in causes]
    return [line(f"{name}: {told}") for name, told in lines if told]
