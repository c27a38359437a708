"""A row, as Celery's result backends tell of a task."""

from __future__ import annotations

from datetime import datetime, timezone
from itertools import groupby
from typing import TYPE_CHECKING, Any

from celery import states as celery_states
from celery.exceptions import TaskRevokedError
from celery.utils.serialization import create_exception_cls
from kombu.compression import decompress
from kombu.serialization import loads

from celery_durable import failures, states
from celery_durable.ledger.results import FORGOTTEN
from celery_durable.records import Envelope
from celery_durable.submission import decoded
from celery_durable.wiring import plugin

if TYPE_CHECKING:
    from celery_durable.ledger import Seen


def meta(backend: Any, seen: Seen | None) -> dict[str, Any]:
    """Tell of a task as Celery's own backends do; ``children`` of a row are the caller's to add."""
    if seen is None or (seen.row is None and seen.stored is None):
        return {"status": celery_states.PENDING, "result": None}
    if seen.row is None or _stands(seen):
        return _stored(backend, seen)
    row = seen.row
    status, result, traceback = _outcome(backend.app, seen)
    told = {"task_id": row.task_id, "status": status, "result": result, "traceback": traceback, "date_done": None}
    if row.parent_id:
        told["parent_id"] = row.parent_id
    if status in celery_states.READY_STATES:
        told["date_done"] = moment(row.finished_at)
    if backend.app.conf.result_extended:
        told |= _extended(backend.app, row)
    return told


def moment(micros: int) -> str:
    """Write a time as Celery's backends do."""
    return datetime.fromtimestamp(micros / 1e6, timezone.utc).isoformat()


def children(sent: list[tuple[str, str | None]]) -> list[Any]:
    """Tell what a task has sent, as results told in tuples: groups as groups."""
    told: list[Any] = []
    for group, members in groupby(sent, key=lambda child: child[1]):
        tuples = [((task_id, None), None) for task_id, _ in members]
        told += [((group, None), tuples)] if group else tuples
    return told


def _stands(seen: Seen) -> bool:
    """Whether what was stored beside a row counts for more than the row.

    That is: its result was forgotten; the task set a state of its own since it began, and the row has nothing to
    say beyond that; or a stock task that replaced it has stored the result.
    """
    row, stored = seen.row, seen.stored
    if row is None or stored is None:
        return stored is not None
    if stored.state == FORGOTTEN:
        return bool(row.state in states.TERMINAL and stored.stored_at >= row.finished_at)
    if row.started_at is None or stored.stored_at < row.started_at:
        return False
    if row.state in states.TERMINAL:
        return bool(row.state == states.SUCCEEDED and row.result_type is None)
    return bool(row.state == states.RUNNING or not row.retries)


def _stored(backend: Any, seen: Seen) -> dict[str, Any]:
    stored = seen.stored
    if stored is None or stored.content is None or stored.content_type is None:
        return {"status": celery_states.PENDING, "result": None, "children": None}
    told: dict[str, Any] = backend.meta_from_decoded(backend.unpacked(stored.content, stored.content_type))
    return told


def _outcome(app: Any, seen: Seen) -> tuple[str, Any, str | None]:
    """Return Celery's state, result and traceback of a row."""
    row, failure = seen.row, seen.failure
    assert row is not None  # noqa: S101 - the caller has looked
    if row.state == states.SUCCEEDED:
        return celery_states.SUCCESS, decoded(row), None
    expired = row.failure_kind == "expired"
    if row.state == states.CANCELLED or expired:
        return celery_states.REVOKED, TaskRevokedError("expired" if expired else row.cancel_reason or "cancelled"), None
    raised = failures.rebuilt(failure, create_exception_cls) if failure is not None else None
    if row.state == states.DEAD:
        traceback = failure.traceback if failure is not None else None
        return celery_states.FAILURE, raised or TaskRevokedError(row.failure_kind), traceback
    if row.state == states.RUNNING and _tracked(app, row.task):
        worker = row.lease_owner.rpartition("/")[0] or row.lease_owner
        return celery_states.STARTED, {"pid": row.lease_pid, "hostname": worker}, None
    if row.retries and failure is not None:
        return celery_states.RETRY, raised, failure.traceback
    return celery_states.PENDING, None, None


def _tracked(app: Any, name: str) -> bool:
    """Whether a task that runs is to be shown as started."""
    task = app.tasks.get(name)
    said = getattr(task, "track_started", None)
    return bool(app.conf.task_track_started if said is None else said)


def _extended(app: Any, row: Any) -> dict[str, Any]:
    """Tell what ``result_extended`` asks for: what was called, how and by whom."""
    message = plugin(app).ledger.message(row.id)
    if message is None:
        return {}
    envelope = Envelope.load(message.envelope, message.body)
    headers = envelope.headers
    told = {
        "name": headers.get("task") or row.task,
        "worker": (message.worker or "").rpartition("/")[0] or None,
        "retries": row.retries,
        "queue": row.queue,
        "group_id": headers.get("group"),
        "args": headers.get("argsrepr"),
        "kwargs": headers.get("kwargsrepr"),
    }
    if not envelope.seal:  # what holds secrets is told as it may be shown
        told["args"], told["kwargs"] = _arguments(envelope)
    stamped = headers.get("stamped_headers")
    if stamped:
        stamps = headers.get("stamps") or {}
        told |= {"stamped_headers": stamped} | {name: stamps[name] for name in stamped if name in stamps}
    return told


def _arguments(envelope: Envelope) -> tuple[Any, Any]:
    body = envelope.body
    if envelope.headers.get("compression"):
        body = decompress(body, envelope.headers["compression"])
    sent = loads(body, envelope.content_type, envelope.content_encoding, accept=[envelope.content_type])
    return (sent[0], sent[1]) if isinstance(sent, list | tuple) else (sent.get("args"), sent.get("kwargs"))
