"""The doorbell: capture the message that Celery would send, keep it, send it, send it again.

``Recorder`` stands in for the kombu producer while Celery builds a message; ``Publisher`` sends a
captured message on connections of our own, once, with every wait bounded.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery.backends.rpc import RPCBackend
from kombu import Exchange, Queue, binding
from kombu.compression import compress
from kombu.exceptions import EncodeError, OperationalError
from kombu.serialization import dumps, prepare_accept_content, registry

from celery_durable.errors import PayloadRefused, PayloadTooLarge
from celery_durable.records import Envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery
    from kombu import Connection, Producer

#: The header that marks the message of a row: ledger, task id, envelope number.
HEADER = "durable"
#: Seconds: one attempt at the broker, and how long none is made after one failed.
BROKER_TIMEOUT, BROKER_PAUSE = 1.0, 1.0

_QUEUE_FIELDS = (
    "name", "routing_key", "durable", "exclusive", "auto_delete", "no_ack", "alias", "queue_arguments",
    "binding_arguments", "consumer_arguments", "expires", "message_ttl", "max_length", "max_length_bytes",
    "max_priority",
)  # fmt: skip
_EXCHANGE_FIELDS = (
    "name",
    "type",
    "durable",
    "auto_delete",
    "delivery_mode",
    "arguments",
    "no_declare",
    "passive",
)


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
        for signature in embed.get(kind) or ():
            if isinstance(signature, dict) and signature.get("subtask_type") is None:
                signature.setdefault("options", {}).setdefault("task_id", str(uuid4()))


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


def described(entity: Any) -> dict[str, Any]:
    """Describe a queue or exchange in plain data, enough to declare it just as it is."""
    if isinstance(entity, Exchange):
        return {"kind": "exchange"} | {k: getattr(entity, k) for k in _EXCHANGE_FIELDS}
    plain = {"kind": "queue"} | {k: getattr(entity, k) for k in _QUEUE_FIELDS}
    plain["exchange"] = described(entity.exchange) if entity.exchange else None
    plain["bindings"] = [
        {"exchange": described(b.exchange), "routing_key": b.routing_key, "arguments": b.arguments}
        for b in entity.bindings or ()
    ]
    return plain


def rebuilt(plain: dict[str, Any]) -> Queue | Exchange:
    """Make the kombu entity that a description stands for."""
    fields = {k: v for k, v in plain.items() if k not in {"kind", "exchange", "bindings"}}
    if plain["kind"] == "exchange":
        return Exchange(**fields)
    exchange = rebuilt(plain["exchange"]) if plain["exchange"] else None
    bindings = [binding(rebuilt(b["exchange"]), b["routing_key"], arguments=b["arguments"]) for b in plain["bindings"]]
    return Queue(exchange=exchange, bindings=bindings or None, **fields)


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


def scope_of(connection: Connection) -> str:
    """Name a broker so that every process names it alike, whatever host name it knows it by."""
    transport = (
        connection.transport_cls if isinstance(connection.transport_cls, str) else connection.transport.driver_type
    )
    folder = (connection.transport_options or {}).get("data_folder_out")
    place = os.path.abspath(folder) if folder else str(connection.virtual_host or "/")  # noqa: PTH100 - text, not I/O
    return f"{transport}:{place}"[:255]


class Publisher:
    """Sends captured messages on connections of its own; safe for threads, and after a fork."""

    def __init__(self, app: Celery, ledger_uuid: str) -> None:
        """Bind to an app; nothing connects yet."""
        self.app, self.ledger_uuid = app, ledger_uuid
        self._idle: deque[Producer] = deque()
        self._pid = os.getpid()
        self._kept: list[deque[Producer]] = []
        self._down_until = 0.0

    @property
    def down(self) -> bool:
        """Whether the broker failed a moment ago, so that trying now would only cost time."""
        return time.monotonic() < self._down_until

    def ring(  # noqa: PLR0913 - submitters and sweeps know different parts
        self, envelope: Envelope, task_id: str, envelope_no: int, *, retries: int | None = None,
        deadline_at: int | None = None, now: int | None = None, owed: bool = False,
    ) -> None:  # fmt: skip
        """Send the message of a row; times in microseconds on the database's clock.

        ``owed`` marks the message of a row that is over: neither a revoke nor ``expires`` may stop it on its
        way to tell the outcome (PROTOCOL 14).

        Raises:
            Exception: whatever the transport raises; the row is rung again by a sweep.
        """
        headers = dict(envelope.headers)
        headers[HEADER] = {"ledger": self.ledger_uuid, "id": task_id, "envelope": envelope_no}
        if retries is not None:
            headers["retries"] = retries
        if owed:
            headers[HEADER]["owed"] = True
            headers["expires"] = None
        properties = dict(envelope.properties)
        if deadline_at is not None:
            now = now if now is not None else round(time.time() * 1e6)
            properties["expiration"] = max(0.0, (deadline_at - now) / 1e6)
        self._send(envelope, headers, properties)

    def _send(self, envelope: Envelope, headers: dict[str, Any], properties: dict[str, Any]) -> None:
        fresh = False
        patience = time.monotonic() + BROKER_TIMEOUT
        while True:
            producer, reused = self._take(fresh=fresh)
            try:
                producer.publish(
                    envelope.body, exchange=envelope.exchange, routing_key=envelope.routing_key,
                    content_type=envelope.content_type, content_encoding=envelope.content_encoding,
                    headers=dict(headers), declare=[rebuilt(d) for d in envelope.declare],
                    retry=False, **properties,
                )  # fmt: skip
            except Exception as exc:
                self._discard(producer)
                if reused and time.monotonic() < patience:
                    # The broker may have been restarted since: once more, on a new connection.
                    fresh = True
                    continue
                if isinstance(exc, (OSError, OperationalError, *producer.connection.connection_errors)):
                    self._down_until = time.monotonic() + BROKER_PAUSE
                raise
            self._idle.append(producer)
            self._down_until = 0.0
            return

    def prepare_reply(self, task_id: str) -> None:
        """Declare the queue that an ``rpc://`` result comes to: what nobody has declared is dropped."""
        if isinstance(self.app.backend, RPCBackend):
            producer, _ = self._take()
            try:
                self.app.backend.on_task_call(producer, task_id)
            except Exception:
                self._discard(producer)
                raise
            self._idle.append(producer)

    def depth(self, queue: str) -> int:
        """Count the messages that lie in a queue; 0 when that is unknown (PROTOCOL 8)."""
        producer, _ = self._take()
        try:
            count = producer.channel.queue_declare(queue=queue, passive=True).message_count
        except Exception:  # noqa: BLE001 - "no such queue" looks different on every transport
            _close(producer)
            return 0
        self._idle.append(producer)
        return max(0, int(count or 0))

    def _discard(self, producer: Producer) -> None:
        _close(producer)

    def close(self) -> None:
        """Close the idle connections of this process."""
        while self._idle:
            _close(self._idle.pop())

    def _take(self, *, fresh: bool = False) -> tuple[Producer, bool]:
        """Return a producer, and whether its connection was used before."""
        if self._pid != os.getpid():
            self._kept.append(self._idle)  # closing them here would speak on the parent's sockets
            self._idle, self._pid = deque(), os.getpid()
        if fresh:
            self.close()
        try:
            return self._idle.pop(), True
        except IndexError:
            connection = self.app.connection_for_write(
                connect_timeout=BROKER_TIMEOUT, transport_options=self._bounded()
            )
            return self.app.amqp.Producer(connection, auto_declare=False), False

    def _bounded(self) -> dict[str, Any]:
        """Bound every wait of the transport, unless the user has said how long to wait."""
        given = self.app.conf.broker_transport_options or {}
        limits = {"socket_timeout": 2 * BROKER_TIMEOUT, "socket_connect_timeout": BROKER_TIMEOUT}
        connection = self.app.connection_for_write()
        if connection.transport.driver_type == "amqp":
            limits = {"read_timeout": 2 * BROKER_TIMEOUT, "write_timeout": 2 * BROKER_TIMEOUT}
        # Each host of a failover URL once: kombu would sleep two seconds and try the first one again.
        once = {"max_retries": max(0, len(connection.alt) - 1)}
        return {k: v for k, v in limits.items() if k not in given} | once


class GivenPublisher(Publisher):
    """Sends with a producer that the caller passed: it may belong to another broker."""

    def __init__(self, app: Celery, ledger_uuid: str, producer: Producer) -> None:
        """Use this producer and no other."""
        super().__init__(app, ledger_uuid)
        self._given = producer

    def _take(self, *, fresh: bool = False) -> tuple[Producer, bool]:  # noqa: ARG002 - there is just the one
        return self._given, False

    def _discard(self, producer: Producer) -> None:
        """Leave the caller's connection to the caller."""


def _close(producer: Producer) -> None:
    try:
        producer.connection.collect(socket_timeout=BROKER_TIMEOUT)
        producer.connection.close()
    except Exception:  # noqa: BLE001, S110 - it is broken; that is why it is closed
        pass


def moment(value: Any) -> int | None:
    """Turn a message's absolute time into microseconds since the epoch."""
    if value is None:
        return None
    when = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return round(when.timestamp() * 1_000_000)
