"""Messages that Redis need not keep while a worker has them: the row is the work, its message only a doorbell.

Redis has no acknowledgements; kombu emulates them with two transactions per message, which take a third of the time of
a worker's parent. For a message whose row stands in the ledger they promise nothing: if it is lost with its worker, the
row's ``publish_at`` has it rung again (PROTOCOL 7), long before Redis' visibility timeout would.

Only where Redis is the broker may this be imported: kombu's transport cannot be without its driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.transport import redis, virtual

if TYPE_CHECKING:
    from collections.abc import Callable


class Doorbells(redis.QoS):
    """The unacknowledged messages of one channel; doorbells in this process alone, all others as kombu keeps them.

    Both count towards the prefetch limit, are put back by a reject and when the channel closes. After a crash the
    doorbells are gone, and their rows are rung when they are due.
    """

    def __init__(self, channel: Any, prefetch_count: int, ours: Callable[[Any], bool]) -> None:
        """Keep messages for which ``ours`` is true in memory."""
        super().__init__(channel, prefetch_count)
        self._ours = ours
        self._light: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

    @classmethod
    def install(cls, consumer: Any, ours: Callable[[Any], bool]) -> None:
        """Take the place of what kombu has on the channel that a consumer reads tasks from, if it is one of Redis."""
        channel = consumer.task_consumer.channel
        stock: Any = getattr(channel, "qos", None)
        if type(stock) is not redis.QoS or stock._delivered:  # noqa: SLF001 - kombu's only account
            return
        stock._on_collect.cancel()  # noqa: SLF001 - it has nothing to put back
        channel._qos = cls(channel, stock.prefetch_count, ours)  # noqa: SLF001 - kombu has no other way to set it

    def append(self, message: Any, delivery_tag: str) -> None:
        """Take note of a message that was delivered."""
        if self._ours(message):
            # A copy: reading a request takes the mark out of the message's own headers.
            self._light[delivery_tag] = (message._raw | {"headers": dict(message.headers)}, message.delivery_info)  # noqa: SLF001
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Forget a message."""
        if self._light.pop(delivery_tag, None) is None:
            super().ack(delivery_tag)
        else:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's signature
        """Forget a message, or put it back, where kombu itself puts one that is requeued."""
        message = self._light.pop(delivery_tag, None)
        if message is None:
            super().reject(delivery_tag, requeue=requeue)
            return
        if requeue:
            self._put_back([message], leftmost=True)
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back whatever is not acknowledged, as a channel does that closes.

        A connection that broke may be taken apart already, and knows of no server any more. Then there is nothing to be
        done: rows are due again, and kombu's own messages come back at their time. An error here would end the worker,
        for Celery expects those of a connection only.
        """
        if self.channel.connection.client is None:
            return
        light, self._light = self._light, {}
        for tag in light:
            self._delivered.pop(tag, None)
        self._put_back(light.values(), client=client)
        super().restore_unacked(client)

    def _put_back(self, messages: Any, *, leftmost: bool = False, client: Any = None) -> None:
        if not messages:
            return
        with self.pipe_or_acquire(client=client) as pipe:
            for raw, info in messages:
                self.channel._do_restore_message(raw, info["exchange"], info["routing_key"], pipe, leftmost)  # noqa: SLF001 - as kombu
            pipe.execute()
