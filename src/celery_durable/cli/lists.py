"""What the lists across tasks say: failures, groups of them, waits, pauses.

Ids, names and messages are long, and a terminal is not wide: an entry is a head line and what is told below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding

from celery_durable.cli.output import Column, line, plain, table
from celery_durable.notes import ref_of
from celery_durable.wording import brief, counted, moment, relative

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from celery_durable.ledger import Failed, FailureGroup
    from celery_durable.records import Pause, Record

#: How much of a message a list shows, in characters.
SHOWN = 90


def failures_list(failures: Iterable[Failed]) -> RenderableType:
    """Tell each failure: when, of which task, how that stands now, and what it was."""
    parts: list[RenderableType] = []
    for f in failures:
        seen = plain(f"{relative(f.failure.occurred_at or f.now, f.now)}  ", "dim")
        named = plain(f"{f.failure.kind}  {f.task}  {f.task_id}  ")
        alike = f"  ({f.failure.fingerprint})" if f.failure.fingerprint else ""
        parts += [
            _head(seen, named, plain(f"{f.state} now", f.state)),
            _below(f"{brief(f.failure.headline, SHOWN)}{alike}"),
        ]
    return Group(*parts)


def groups_list(groups: Iterable[FailureGroup]) -> RenderableType:
    """Tell each group: how many, how many of their tasks are dead now, and what they have in common."""
    parts: list[RenderableType] = []
    for g in groups:
        dead = plain(f"{counted(g.dead, 'task')} dead now", "dead" if g.dead else "dim")
        count = plain(f"{counted(g.count, 'failure')}  ", "bold")
        parts += [
            _head(count, dead, plain(f"  {g.kind}  {g.fingerprint or '-'}")),
            _below(f"{g.exception} in {g.task}"),
            *([_below(brief(g.message.strip().partition("\n")[0], SHOWN))] if g.message.strip() else []),
            _below(f"first {moment(g.first_seen, g.now)}, last {moment(g.last_seen, g.now)}", "dim"),
        ]
    return Group(*parts)


def waits_list(records: Sequence[Record]) -> RenderableType:
    """Tell each wait: for what, since when, when it is looked at again, how often it was, and until when."""
    parts: list[RenderableType] = []
    for r in records:
        times = [f"since {relative(_since(r), r.now)}"]
        if r.wake_at is not None:
            times.append(f"looked at again {relative(r.wake_at, r.now)}")
        if r.waits > 1:
            times.append(f"waited {counted(r.waits, 'time')}")
        if r.give_up_at is not None:
            times.append(f"gives up {relative(r.give_up_at, r.now)}")
        parts += [
            _head(plain(f"{ref_of(r, records)}  ", "bold"), plain(f"{r.wait_kind}  ", "waiting"), plain(r.task)),
            _below(brief(r.wait_reason or "-", SHOWN)),
            _below(", ".join(times), "dim"),
        ]
    return Group(*parts)


def _head(*parts: Text) -> Text:
    first, *rest = parts
    for part in rest:
        first.append_text(part)
    return first


def _below(text: str, style: str = "") -> Padding:
    return Padding(line(text, style), (0, 0, 0, 2))


def _since(r: Record) -> int:
    """When the first of consecutive waits began."""
    return r.waiting_from if r.waiting_from is not None and r.waits else r.wait_since or r.now


def pauses_table(pauses: Sequence[Pause]) -> Table:
    """List what is held back, by whom, why and until when."""
    columns = (
        Column("paused", fold=True), Column("since", right=True), Column("until", right=True), Column("by", fold=True),
        Column("why", fold=True),
    )  # fmt: skip
    return table(
        columns,
        [
            (
                f"{p.kind}:{p.target}", relative(p.since, p.now),
                "resumed" if p.until is None else relative(p.until, p.now), p.actor, p.reason,
            )
            for p in pauses
        ],
    )  # fmt: skip
