"""From a message that cannot run here to what the ledger keeps of it."""

from __future__ import annotations

import codecs
import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from kombu.serialization import dumps, registry

from celery_durable import adoption, failures, submission
from celery_durable.capture import moment
from celery_durable.keys import MAX_LENGTH
from celery_durable.ledger import Parcel
from celery_durable.outbox import HEADER
from celery_durable.records import Envelope, Submission
from celery_durable.redaction_shown import shape
from celery_durable.worker.checking import Flaw, Seen, usable_id

if TYPE_CHECKING:
    from celery_durable.records import Failure
    from celery_durable.states import At
    from celery_durable.task import DurableTask
    from celery_durable.wiring import Plugin

UNKNOWN = "<unknown>"
#: Characters of the shape of a message's start that its failure shows, and of headers that are kept.
SHOWN, MAX_HEADERS = 500, 64_000
#: Headers that quote arguments.
QUOTING = frozenset({"argsrepr", "kwargsrepr"})


@dataclass(frozen=True, slots=True)
class Wire:
    """A message that never came to be one: what lay in the broker is all there is."""

    body: bytes
    queue: str
    content_type: str = "application/octet-stream"
    content_encoding: str = "binary"

    @property
    def headers(self) -> dict[str, Any]:
        """Nothing that could be told from the rest."""
        return {}

    properties = headers

    @property
    def delivery_info(self) -> dict[str, Any]:
        """Where it lay."""
        return {"routing_key": self.queue}


def mark_of(message: Any, ledger_uuid: str) -> tuple[str, int] | None:
    """Return task id and envelope number that a message's mark names; None without a mark of this ledger."""
    headers = message.headers
    mark = headers.get(HEADER) if isinstance(headers, Mapping) else None
    if not isinstance(mark, Mapping) or mark.get("ledger") != ledger_uuid:
        return None
    task_id, number = mark.get("id"), mark.get("envelope")
    known = isinstance(task_id, str) and usable_id(task_id) and isinstance(number, int) and not isinstance(number, bool)
    return (task_id, number) if known else None  # type: ignore[return-value]


def undecodable(side: Plugin, message: Any, flaw: Flaw, *, worker: str) -> Parcel:
    """Make the dead row of a message that nobody can read: at most ``durable_max_message_bytes`` of it."""
    limit = side.settings.max_message_bytes
    headers = message.headers if isinstance(message.headers, Mapping) else {}
    body = raw(message)
    given = headers.get("id")
    task_id = str(given) if usable_id(given) else str(uuid4())
    name = _text(headers.get("task")) or UNKNOWN
    envelope = _envelope(message, _plain(headers), body[:limit]).sealed()
    kept = f"; {limit} of its {len(body)} bytes are kept" if len(body) > limit else ""
    failure = _failure(flaw, f"{flaw}{kept}", worker, _preview(body))
    sub = Submission(task_id, name, task_id, envelope, queue="", broker=side.broker, submitted_by=_origin(headers))
    return Parcel(sub, failure, mark_of(message, side.ledger.uuid))


def unregistered(side: Plugin, message: Any, seen: Seen) -> Parcel:
    """Make the waiting row of a message whose task this worker does not know."""
    fields, envelope = seen.fields, readable(side, message, seen).sealed()
    ignored = bool(fields.get("ignore_result"))
    sub = Submission(
        seen.id, _text(seen.task), seen.id, envelope, queue="", broker=side.broker,
        priority=envelope.properties.get("priority"), root_id=fields.get("root_id"), parent_id=fields.get("parent_id"),
        deadline_at=moment(fields.get("expires")), retries=int(fields.get("retries") or 0),
        owes=submission.owes(side.app, seen.embed, fields.get("group"), ignore_result=ignored),
        max_losses=side.settings.max_losses, submitted_by=_origin(fields),
    )  # fmt: skip
    return Parcel(sub, None, mark_of(message, side.ledger.uuid))


def scheduled(side: Plugin, message: Any, seen: Seen, task: DurableTask, wake: At) -> Submission:
    """Read a message that is not to run yet as its task would have been submitted.

    Raises:
        SubmitError: its arguments do not fit the task.
    """
    envelope = readable(side, message, seen)
    return submission.compose(
        task, replace(envelope, headers=envelope.headers | {"eta": None}), seen.body, submission.Call(wake=wake)
    )


def readable(side: Plugin, message: Any, seen: Seen) -> Envelope:
    """Return a message as it can be sent again: as it came, or in protocol 2 if it came in an older one."""
    if seen.plain:
        return _envelope(message, _plain(seen.fields), raw(message))
    serializer = registry.type_to_name.get(message.content_type, side.app.conf.task_serializer)
    content_type, encoding, data = dumps(seen.body, serializer=serializer)
    headers = _plain({k: seen.fields[k] for k in adoption.HEADERS if k in seen.fields})
    envelope = _envelope(message, headers, data.encode() if isinstance(data, str) else data)
    return replace(envelope, content_type=content_type, content_encoding=encoding)


def raw(message: Any) -> bytes:
    """Return a message's body as bytes, decompressed."""
    body = message.body
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass")
    return bytes(body) if isinstance(body, bytes | bytearray | memoryview) else b""


def _envelope(message: Any, headers: dict[str, Any], body: bytes) -> Envelope:
    info, sent = _mapping(message.delivery_info), _mapping(message.properties)
    properties: dict[str, Any] = {k: _text(sent[k]) for k in ("correlation_id", "reply_to") if sent.get(k)}
    priority = sent.get("priority")
    if isinstance(priority, int) and not isinstance(priority, bool) and 0 <= priority <= MAX_LENGTH:
        properties["priority"] = priority
    return Envelope(
        body=body, content_type=_text(message.content_type), content_encoding=_text(message.content_encoding),
        headers=headers, properties=properties, exchange=_text(info.get("exchange")),
        routing_key=_text(info.get("routing_key")),
    )  # fmt: skip


def _plain(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Copy headers as far as JSON can hold them, without our mark and without what is undone already."""
    left = {
        k: shape(v)[:SHOWN] if k in QUOTING and isinstance(v, str) else v
        for k, v in headers.items()
        if k not in {HEADER, "compression"}
    }
    try:
        written = json.dumps(left, default=repr, skipkeys=True)
        if len(written) <= MAX_HEADERS:
            return dict(json.loads(written))
    except Exception:  # noqa: BLE001 - too deep, or objects that do not even have a repr
        written = ""
    return {k: v for k in ("id", "task") if isinstance(v := headers.get(k), str) and len(v) <= MAX_LENGTH}


def _failure(flaw: Flaw, message: str, worker: str, preview: str) -> Failure:
    name = failures.qualified_name(type(flaw.cause)) if flaw.cause is not None else "celery_durable.Undecodable"
    failure = failures.loss(
        "undecodable", name, failures.storable(message), worker=worker, pid=None, claim=0
    )  # fmt: skip
    return replace(
        failure,
        retryable=False,
        fingerprint=hashlib.sha256(flaw.group.encode()).hexdigest()[:16],
        host=socket.gethostname(),
        verdict="no worker can read the message",
        arguments=preview,
    )


def _preview(body: bytes) -> str:
    """Show how a body begins: the shape of text, and of anything else the size."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(body[: 8 * SHOWN])
    except UnicodeDecodeError:
        return f"{len(body)} bytes that are no text"
    return failures.storable(shape(text))[:SHOWN]


def _text(value: Any) -> str:
    return failures.storable(value)[:MAX_LENGTH] if isinstance(value, str) else ""


def _origin(fields: Mapping[str, Any]) -> str:
    return _text(fields.get("origin"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
