"""The doorbell: send a captured message, and send it again, on connections of our own, with every wait bounded."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from celery.backends.rpc import RPCBackend
from kombu.exceptions import OperationalError

from celery_durable import failpoints
from celery_durable.declarations import rebuilt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from celery import Celery
    from kombu import Connection, Producer

    from celery_durable.ledger import Ring
    from celery_durable.records import Envelope

    _Message = tuple[Envelope, dict[str, Any], dict[str, Any]]

logger = logging.getLogger(__name__)

#: The header that marks the message of a row: ledger, task id, envelope number.
HEADER = "durable"
#: Seconds: one attempt at the broker, and how long none is made after one failed.
BROKER_TIMEOUT, BROKER_PAUSE = 1.0, 1.0


def scope_of(connection: Connection) -> str:
    """Name a broker so that every process names it alike, whatever host name it knows it by."""
    transport = (
        connection.transport_cls if isinstance(connection.transport_cls, str) else connection.transport.driver_type
    )
    folder = (connection.transport_options or {}).get("data_folder_out")
    place = os.path.abspath(folder) if folder else str(connection.virtual_host or "/")  # noqa: PTH100 - text, not I/O
    return f"{transport}:{place}"[:255]


#: Where a producer keeps what was declared last on its connection.
_DECLARED = "_durable_declared"


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
        self._send([self._dressed(envelope, task_id, envelope_no, retries, deadline_at, now, owed=owed)])

    def ring_all(self, rings: Sequence[Ring]) -> list[int]:
        """Send the messages of many queued rows, in one pipeline where kombu can; never raises.

        Returns the ids of rows whose message may not have arrived.
        """
        messages = [self._dressed(r.envelope, r.task_id, r.envelope_no, r.retries, r.deadline_at, r.now) for r in rings]
        try:
            if not self.down:
                self._send(messages)
                return []
        except Exception as exc:  # noqa: BLE001 - whatever the transport raises
            logger.warning("%d messages could not be sent at once (%s: %s).", len(rings), type(exc).__name__, exc)
        unsent = []
        for ring, message in zip(rings, messages, strict=True):  # one that cannot be sent holds up no other
            try:
                if not self.down:
                    self._send([message])
                    continue
            except Exception as exc:  # noqa: BLE001 - as above
                logger.warning("Task %s could not be sent (%s: %s).", ring.task_id, type(exc).__name__, exc)
            unsent.append(ring.row_id)
        return unsent

    def _dressed(  # noqa: PLR0913 - as ring
        self, envelope: Envelope, task_id: str, envelope_no: int, retries: int | None, deadline_at: int | None,
        now: int | None, *, owed: bool = False,
    ) -> _Message:  # fmt: skip
        """Mark a message as that of a row."""
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
        return envelope, headers, properties

    def _send(self, messages: Sequence[_Message]) -> None:
        fresh = False
        patience = time.monotonic() + BROKER_TIMEOUT
        while True:
            producer, reused = self._take(fresh=fresh)
            try:
                if not reused:
                    self._made(producer)
                with failpoints.around(failpoints.PUBLISH), _pipelined(producer, len(messages)):
                    _publish(producer, messages)
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

    def prepare_reply_quietly(self, task_id: str) -> None:
        """Declare that queue if the broker is there; its result can be asked for again."""
        with suppress(Exception):
            self.prepare_reply(task_id)

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

    def _made(self, producer: Producer) -> None:
        """Make a new producer of ours thrifty."""
        setattr(producer, _DECLARED, None)
        _keep_client(producer)

    def _discard(self, producer: Producer) -> None:
        _close(producer)

    def close(self) -> None:
        """Close the idle connections of this process; what was sent on them arrives.

        RabbitMQ may drop what it has read from a connection that breaks off, so the goodbye is waited for.
        """
        while self._idle:
            producer = self._idle.pop()
            with suppress(Exception):
                producer.connection.close()
            _close(producer)

    def _take(self, *, fresh: bool = False) -> tuple[Producer, bool]:
        """Return a producer, and whether its connection was used before."""
        if self._pid != os.getpid():
            self._kept.append(self._idle)  # closing them here would speak on the parent's sockets
            self._idle, self._pid = deque(), os.getpid()
        if fresh:
            while self._idle:
                _close(self._idle.pop())
        try:
            return self._idle.pop(), True
        except IndexError:
            return self.app.amqp.Producer(self.connection(), auto_declare=False), False

    def connection(self) -> Connection:
        """Make a connection of the app's whose waits are bounded; it connects at first use, in one try."""
        found: Connection = self.app.connection_for_write(
            connect_timeout=BROKER_TIMEOUT, transport_options=self._bounded()
        )
        return found

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


def _keep_client(producer: Producer) -> None:
    """On Redis, use one client for all that a producer of ours sends: kombu makes one for each message.

    A client holds no socket, it takes one from its channel's pool for each command.
    """
    channel = producer.channel
    if producer.connection.transport.driver_type != "redis" or not hasattr(channel, "_create_client"):
        return
    make, clients = channel._create_client, {}  # noqa: SLF001 - kombu has no other place for it

    def create(asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
        if asynchronous not in clients:
            clients[asynchronous] = make(asynchronous=asynchronous)
        return clients[asynchronous]

    channel._create_client = create  # noqa: SLF001


class GivenPublisher(Publisher):
    """Sends with a producer that the caller passed: it may belong to another broker."""

    def __init__(self, app: Celery, ledger_uuid: str, producer: Producer) -> None:
        """Use this producer and no other."""
        super().__init__(app, ledger_uuid)
        self._given = producer

    def _take(self, *, fresh: bool = False) -> tuple[Producer, bool]:  # noqa: ARG002 - there is just the one
        return self._given, False

    def _made(self, producer: Producer) -> None:
        """Leave the caller's channel as it is."""

    def _discard(self, producer: Producer) -> None:
        """Leave the caller's connection to the caller."""


def _pipelined(producer: Producer, count: int) -> AbstractContextManager[Any]:
    """One round trip for many messages, where kombu (5.7) and the transport can; what fails then is all of them."""
    return producer.batch() if count > 1 and hasattr(producer, "batch") else nullcontext()


def _publish(producer: Producer, messages: Sequence[_Message]) -> None:
    # kombu itself finds what was declared on a connection, at some cost.
    declared = getattr(producer, _DECLARED, None)
    for envelope, headers, properties in messages:
        declare = [] if envelope.declare == declared else [rebuilt(d) for d in envelope.declare]
        declared = envelope.declare
        producer.publish(
            envelope.body, exchange=envelope.exchange, routing_key=envelope.routing_key,
            content_type=envelope.content_type, content_encoding=envelope.content_encoding,
            headers=dict(headers), declare=declare, retry=False, **properties,
        )  # fmt: skip
    if hasattr(producer, _DECLARED):
        setattr(producer, _DECLARED, declared)


def _close(producer: Producer) -> None:
    try:
        producer.connection.collect(socket_timeout=BROKER_TIMEOUT)
        producer.connection.close()
    except Exception:  # noqa: BLE001, S110 - it is broken; that is why it is closed
        pass
