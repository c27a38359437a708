"""Messages that have no row: adopt those of other senders, park those whose row is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kombu.serialization import dumps, registry

from celery_durable import failures, submission
from celery_durable.ledger import Parcel
from celery_durable.records import Envelope, Submission

if TYPE_CHECKING:
    from celery_durable.delivery import Delivery
    from celery_durable.errors import SubmitError
    from celery_durable.ledger import Submitted

#: What a message of protocol 2 has in its headers.
HEADERS = (
    "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id",
    "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers",
    "stamps",
)  # fmt: skip


def adopt(delivery: Delivery) -> Submitted:
    """Give a message that somebody sent by name a row, as if it had been submitted here."""
    return delivery.side.ledger.submit(_submission(delivery), verb="adopt", actor=delivery.note.worker)


def park(delivery: Delivery) -> None:
    """Keep a marked message without a row as dead, kind ``rejected``: it never runs by itself (PROTOCOL 6)."""
    failure = failures.loss(
        "rejected", "celery_durable.RowMissing",
        "the message is marked as recorded, but the ledger has no such row: its submission was rolled back, "
        "or the ledger lost commits; replay it if the work is wanted",
        worker=delivery.note.worker, pid=None, claim=0,
    )  # fmt: skip
    delivery.side.ledger.park(_submission(delivery), failure, actor=delivery.note.worker)


def refuse(delivery: Delivery, exc: SubmitError) -> str:
    """Keep a message that cannot be adopted as dead, kind ``rejected``; return why."""
    envelope, (args, kwargs, embed) = _message(delivery)
    envelope = submission.sealed(delivery.task, envelope, args, kwargs, embed).sealed()
    sub = Submission(
        delivery.uuid, delivery.task.name, delivery.uuid, envelope, queue="", broker=delivery.side.broker,
    )  # fmt: skip
    failure = replace(failures.describe(exc, "rejected", worker=delivery.note.worker), traceback="")
    delivery.side.ledger.take_in([Parcel(sub, failure)], actor=delivery.note.worker)
    return f"its message was refused: {exc}"


def _submission(delivery: Delivery) -> Submission:
    return submission.compose(delivery.task, *_message(delivery))


def _message(delivery: Delivery) -> tuple[Envelope, Any]:
    request, app = delivery.request, delivery.side.app
    sent = delivery.note.message or {}
    serializer = registry.type_to_name.get(sent.get("content_type"), app.conf.task_serializer)
    body = (list(delivery.args), dict(delivery.kwargs), delivery.embed)
    content_type, encoding, data = dumps(body, serializer=serializer)
    headers = {k: request[k] for k in HEADERS if k in request} | {
        "id": delivery.uuid,
        "task": delivery.task.name,
    }
    headers |= {k: v for k, v in (sent.get("headers") or {}).items() if k not in {"compression", "eta"}}
    route = request.get("delivery_info") or {}
    properties = {"correlation_id": delivery.uuid, "reply_to": request.get("reply_to") or ""}
    if route.get("priority") is not None:
        properties["priority"] = route["priority"]
    envelope = Envelope(
        body=data.encode() if isinstance(data, str) else data,
        content_type=content_type, content_encoding=encoding, headers=headers, properties=properties,
        exchange=route.get("exchange") or "", routing_key=route.get("routing_key") or "",
    )  # fmt: skip
    return envelope, body
