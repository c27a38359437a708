"""What one line about a task says: how to call it, what for it stands where it stands, how far it is. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable import states
from celery_durable.wording import brief, counted, relative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.records import Record

#: Longest key shown in a list in place of the task id.
KEY_WIDTH = 36


def ref_of(r: Record, among: Sequence[Record]) -> str:
    """Return the key if that says more than the id, and no other task listed has the same."""
    unusable = r.duplicate_of is not None or len(r.key) > KEY_WIDTH or not r.key.isprintable()
    if unusable or any(o.key == r.key and o.task != r.task for o in among):
        return r.task_id
    return r.key


def note(r: Record) -> str:
    """Say what a record does, waits for, died of, or has behind it."""
    if r.state == states.RUNNING:
        return f"{r.lease_owner} since {relative(r.started_at or r.now, r.now)}"
    if r.state == states.WAITING:
        return f"{r.wait_kind} {relative(r.wake_at or r.now, r.now)}: {r.wait_reason}"
    if r.state == states.DEAD:
        return f"{r.failure_kind}: {r.failure.headline}" if r.failure else str(r.failure_kind)
    if r.state == states.CANCELLED:
        return r.cancel_reason or ""
    return f"lost {counted(r.losses, 'time')}" if r.losses else ""


def progress_of(r: Record) -> str:
    """Say how far a task said it is: ``30 of 120 (25 %): reading``."""
    told = r.decoded_progress()
    if told is None:
        return ""
    done, total = told["done"], told["total"]
    text = f"{done:g}" if total is None else f"{done:g} of {total:g}"
    share = f" ({100 * done / total:.0f} %)" if total else ""
    return text + share + (f": {brief(told['note'])}" if told["note"] else "")
