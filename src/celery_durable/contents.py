"""Values as bytes and back, by the serializers that the app uses anyway."""

from __future__ import annotations

from typing import Any

from kombu.serialization import dumps, loads

from celery_durable.sealing import opened_result
from celery_durable.steps import Content

#: Types that every serializer hands over as they are.
PLAIN = frozenset({str, int, float, bool, type(None)})


def encoded(value: Any, serializer: str) -> Content:
    """Serialise a value.

    Raises:
        Exception: whatever the serializer raises for a value that it cannot take.
    """
    content_type, encoding, data = dumps(value, serializer=serializer)
    data = data.encode() if isinstance(data, str) else data
    return Content(data, content_type if encoding == "utf-8" else f"{content_type};{encoding}")


def decoded(content: Content) -> Any:
    """Read what this app has serialised itself: no type of content is refused."""
    data, kind = opened_result(content.data, content.type)
    content_type, _, encoding = kind.partition(";")
    return loads(data, content_type, encoding or "utf-8", accept=[content_type])
