"""Guard against what lies in a Redis list and is no message: kombu would let it end the worker.

What kombu reads there is JSON of its own, with headers, properties and a delivery tag. Anything else raises before
there is a message that could be judged, and is gone from the list by then.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

if TYPE_CHECKING:
    from collections.abc import Callable

READ = "BRPOP"


class WireGuard:
    """Watches one channel's reads."""

    def __init__(self, channel: Any, found: Callable[[bytes, str, Exception], None]) -> None:
        """``found`` is told of an item that is no message: item, queue, what reading it raised."""
        self._channel, self._found = channel, found
        self._last: Any = None

    @classmethod
    def install(cls, consumer: Any, found: Callable[[bytes, str, Exception], None]) -> None:
        """Watch the channel that a consumer reads tasks from, if it is one of Redis."""
        channel = consumer.task_consumer.channel
        handlers = getattr(channel, "handlers", None) or {}
        if consumer.connection.transport.driver_type != "redis" or READ not in handlers:
            return
        guard = cls(channel, found)
        client = channel.client
        client.parse_response = functools.partial(guard.note, client.parse_response)
        channel.handlers[READ] = functools.partial(guard.read, handlers[READ])

    def note(self, parse: Callable[..., Any], connection: Any, command: str, **options: Any) -> Any:
        """Remember what was read last."""
        answer = parse(connection, command, **options)
        if command == READ:
            self._last = answer
        return answer

    def read(self, handler: Callable[..., Any], **options: Any) -> Any:
        """Read and deliver one item; one that cannot be delivered is told of."""
        self._last = None
        try:
            return handler(**options)
        except Exception as exc:
            if not self._last or self._delivers(self._last[1]):
                raise
            queue, item = self._last
            name = bytes_to_str(queue).rsplit(self._channel.sep, 1)[0]
            self._found(item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogatepass"), name, exc)
            return True
        finally:
            self._last = None

    def _delivers(self, item: Any) -> bool:
        """Whether an item is a message by kombu's own measure."""
        try:
            message = self._channel.Message(loads(bytes_to_str(item)), channel=self._channel)
            info = message.delivery_info
            return {"exchange", "routing_key"} <= set(info) and isinstance(message.delivery_tag, str)
        except Exception:  # noqa: BLE001 - it does not, for whatever reason
            return False
