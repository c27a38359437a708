"""What the lists across tasks say: failures, groups of them, waits, pauses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from celery_durable.cli.output import Column, line, moment, plain, relative, table
from celery_durable.cli.pages import ref_of
from celery_durable.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from celery_durable.ledger import Failed, FailureGroup
    from celery_durable.records import Pause, Record


def failures_list(failures: Sequence[Failed]) -> Table:
    """List failures of many tasks, one line each."""
    columns = (
        Column("when", right=True),
        Column("kind"),
        Column("task", ratio=2),
        Column("ref", fold=True),
        Column("now"),
        Column("fingerprint"),
        Column("what", ratio=3),
    )
    made = table(
        columns,
        [
            (
                relative(f.failure.occurred_at or f.now, f.now), f.failure.kind, f.task, f.task_id,
                plain(f.state, f.state), f.failure.fingerprint, f.failure.headline,
            )
            for f in failures
        ],
    )  # fmt: skip
    made.expand = True
    return made


def groups_list(groups: Sequence[FailureGroup]) -> RenderableType:
    """Tell each group in a few lines: names and messages are long, and a terminal is not wide."""
    parts: list[RenderableType] = []
    for g in groups:
        head = plain(f"{counted(g.count, 'failure')}", "bold").append_text(plain("  "))
        head.append_text(plain(f"{counted(g.dead, 'task')} dead now", "dead" if g.dead else "dim"))
        head.append_text(plain(f"  {g.kind}  {g.fingerprint or '-'}"))
        parts += [
            head,
            line(f"  {g.exception} in {g.task}"),
            *([line(f"  {_first_line(g.message)}")] if g.message.strip() else []),
            plain(f"  first {moment(g.first_seen, g.now)}, last {moment(g.last_seen, g.now)}", "dim"),
            Text(),
        ]
    return Group(*parts[:-1])


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0][:160]


def waits_table(records: Sequence[Record]) -> Table:
    """List what waits: for what, since when, when it is looked at again, how often it was, and until when."""
    columns = (
        Column("ref"),
        Column("task", ratio=2),
        Column("kind"),
        Column("since", right=True),
        Column("wakes", right=True),
        Column("waits", right=True),
        Column("gives up", right=True),
        Column("reason", ratio=4),
    )
    made = table(
        columns,
        [
            (
                ref_of(r, records), r.task, r.wait_kind or "-", relative(_since(r), r.now),
                relative(r.wake_at or r.now, r.now), r.waits or "-",
                "-" if r.give_up_at is None else relative(r.give_up_at, r.now), r.wait_reason or "-",
            )
            for r in records
        ],
    )  # fmt: skip
    made.expand = True
    return made


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
