"""Capture the message that Celery would send: ``Recorder`` stands in for the producer while Celery builds it."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from kombu import Exchange
from kombu.compression import compress
from kombu.exceptions import EncodeError
from kombu.serialization import dumps, prepare_accept_content, registry

from celery_durable.declarations import described
from celery_durable.errors import PayloadRefused, PayloadTooLarge
from celery_durable.records import Envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery
    from kombu import Producer


class Recorder:
    """Quacks like a producer for one submission; ``publish`` hands the captured message over."""

    def __init__(self, app: Celery, task: str, record: Callable[[Envelope, tuple[Any, ...]], None]) -> None:
        """``record(envelope, body)`` is called with the captured message and its body before serialisation."""
        self.app, self.task, self._record = app, task, record
        self.connection = self
        # Asked for where Celery sends a chain or callback: nothing here is tried again by Celery.
        self.recoverable_connection_errors: tuple[type[Exception], ...] = ()
        self.serializer: str | None = None
        self._recorded = False

    def revive(self, channel: object) -> None:
        """Celery revives a producer between two tries; there is nothing to revive here."""

    def _reraise_as_library_errors(self) -> Any:
        return nullcontext()

    @contextmanager
    def _borrowed(self) -> Iterator[Producer]:
        with self.app.producer_or_acquire() as producer:
            yield producer

    def publish(self, body: Any, **options: Any) -> None:
        """Capture the first message; what follows it (the task-sent event) goes to the broker."""
        if self._recorded:
            with self._borrowed() as producer:
                producer.publish(body, **options)
            return
        self._recorded = True
        self._record(capture(self.app, self.task, body, **options), body)


def quieten(backend: Any) -> None:
    """Keep a result backend from talking to its store while a call is merely recorded.

    Redis subscribes to a result when the task is sent; with the store down that would hang the call. It does
    so again when the result is asked for.
    """
    if "on_task_call" in vars(backend):
        return
    stock = backend.on_task_call

    def on_task_call(producer: Any, task_id: str) -> Any:
        return None if isinstance(producer, Recorder) else stock(producer, task_id)

    backend.on_task_call = on_task_call


def capture(  # noqa: PLR0913 - what kombu's publish takes
    app: Celery, task: str, body: Any, *, exchange: Any, routing_key: str, headers: dict[str, Any],
    serializer: str | None = None, compression: str | None = None, declare: Any = None,
    delivery_mode: Any = None, retry: Any = None, retry_policy: Any = None, timeout: Any = None,  # noqa: ARG001
    confirm_timeout: Any = None, expiration: Any = None, **properties: Any,  # noqa: ARG001
) -> Envelope:  # fmt: skip
    """Serialise a message as kombu's producer would.

    Raises:
        kombu.exceptions.EncodeError: an argument cannot be serialised; says which.
        PayloadRefused: the app itself does not accept this serializer.
    """
    serializer = serializer or app.conf.task_serializer
    _name_signatures(body)
    try:
        content_type, content_encoding, data = dumps(body, serializer=serializer)
    except Exception as exc:
        raise EncodeError(_unserialisable(task, body, serializer, exc)) from exc
    if content_type not in prepare_accept_content(app.conf.accept_content):
        raise PayloadRefused(
            f"{task}: the message is {content_type!r} (serializer {serializer!r}), which this app's workers refuse: "
            f"accept_content is {list(app.conf.accept_content)!r}. Use the json serializer, or accept it there."
        )
    data = data.encode() if isinstance(data, str) else data
    headers = dict(headers)
    if compression:
        data, headers["compression"] = compress(data, compression)
    if isinstance(exchange, Exchange):
        delivery_mode = delivery_mode or exchange.delivery_mode
        declare = [*(declare or ()), exchange] if exchange.name else declare
        exchange = exchange.name
    if delivery_mode:
        properties["delivery_mode"] = delivery_mode
    return Envelope(
        body=data, content_type=content_type, content_encoding=content_encoding, headers=headers,
        properties=properties,
        exchange=exchange or "", routing_key=routing_key or "",
        declare=tuple(described(e) for e in declare or ()),
    )  # fmt: skip


def uncontinued(envelope: Envelope, body: tuple[Any, Any, Any]) -> Envelope:
    """Return the message without callbacks, chain, chord and group."""
    args, kwargs, embed = body
    serializer = registry.type_to_name[envelope.content_type]
    _, _, data = dumps((args, kwargs, dict.fromkeys(embed)), serializer=serializer)
    data = data.encode() if isinstance(data, str) else data
    if envelope.headers.get("compression"):
        data, _ = compress(data, envelope.headers["compression"])
    return replace(envelope, body=data, headers=envelope.headers | {"group": None, "group_index": None})


def _name_signatures(body: Any) -> None:
    """Give callbacks their ids now: sent twice, they shall meet their own key."""
    embed = body[2] if isinstance(body, tuple) else body
    for kind in ("callbacks", "errbacks"):
        if embed.get(kind):
            embed[kind] = [_named(signature) for signature in embed[kind]]


def _named(signature: Any) -> Any:
    """Return a callback with an id. The caller's own has none: linked to another call, it is another callback."""
    if not isinstance(signature, dict) or signature.get("subtask_type") is not None:
        return signature
    options = signature.get("options") or {}
    return {**signature, "options": {"task_id": str(uuid4()), **options}}


def _unserialisable(task: str, body: Any, serializer: str, exc: Exception) -> str:
    """Name the argument that cannot be serialised, by its place and type."""
    culprit = "an argument"
    args, kwargs = (body[0], body[1]) if isinstance(body, tuple) else (body.get("args"), body.get("kwargs"))
    for name, value in [*((f"argument {i + 1}", a) for i, a in enumerate(args)), *kwargs.items()]:
        try:
            dumps(value, serializer=serializer)
        except Exception:  # noqa: BLE001 - any failure makes it the culprit
            culprit = f"{name} (a {type(value).__name__})"
            break
    return (
        f"{task}: {culprit} cannot be serialised as {serializer}: {exc}. Nothing was submitted; "
        "pass an id or plain data instead."
    )


def checked_size(task: str, envelope: Envelope, limit: int) -> None:
    """Refuse a message larger than ``limit`` bytes.

    Raises:
        PayloadTooLarge: with the size seen and the setting to change.
    """
    size = len(envelope.body)
    if size > limit:
        raise PayloadTooLarge(
            f"{task}: the message has {size} bytes, durable_max_message_bytes allows {limit}. "
            "Store the data elsewhere and pass its id."
        )


def moment(value: Any) -> int | None:
    """Turn a message's absolute time into microseconds since the epoch."""
    if value is None:
        return None
    when = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return round(when.timestamp() * 1_000_000)
