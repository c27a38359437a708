"""Messages of one task by the thousand: Celery builds the first, the others are filled in where that is the same.

What may differ from call to call is the id, the arguments and how they are shown. Where anything else may depend on
them (a routing function, a signal's receiver, an overridden method), there is no stencil: Celery builds each message.
"""

from __future__ import annotations

import json
import re
from json.encoder import encode_basestring_ascii
from types import FunctionType
from typing import TYPE_CHECKING, Any

from celery import Celery, Task, signals
from celery.app.amqp import AMQP
from celery.app.routes import MapRoute, Router
from celery.utils.saferepr import saferepr
from kombu.compression import compress
from kombu.serialization import dumps, registry

from celery_durable.records import Envelope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Options under which one message may say more of its arguments than another.
_TELLING = frozenset({"argsrepr", "kwargsrepr", "link", "link_error", "router", "stamped_headers"})
_SIGNALS = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
_OURS = "celery-durable-"
_ENDS: dict[type, str] = {tuple: "()", list: "[]"}
_PLAIN = frozenset({str, int, float, bool, type(None)})


def applies(task: Task, stock: type[Task], options: Mapping[str, Any]) -> bool:
    """Say whether messages of a task differ in id and arguments only; ``stock`` is whose ``apply_async`` we know."""
    app, amqp, kind = task._get_app(), task._get_app().amqp, type(task)
    return (
        not _TELLING & options.keys()
        and kind.apply_async is stock.apply_async
        and kind.shadow_name is Task.shadow_name
        and not getattr(task, "_dump_pydantic_arguments", None)
        and not getattr(task, "__v2_compat__", False)
        and _untouched(Task.apply_async, "celery.app.task")
        and _untouched(Celery.send_task, "celery.app.base")
        and type(app).send_task is Celery.send_task
        and "send_task" not in vars(app)
        and not app.conf.task_send_sent_event
        and getattr(amqp.create_task_message, "__func__", None) is AMQP.as_task_v2
        and type(amqp.router) is Router
        and all(isinstance(route, MapRoute) for route in amqp.routes)
        and not any(_heard(signal) for signal in _SIGNALS)
    )


def _untouched(function: Any, module: str) -> bool:
    """Say whether a function is Celery's own: tracing libraries replace some."""
    return type(function) is FunctionType and function.__globals__.get("__name__") == module


def _heard(signal: Any) -> bool:
    """Say whether anybody but us receives a signal."""
    return any(not str(key[0]).startswith(_OURS) for key, _ in signal.receivers or ())


class Stencil:
    """The form of a message."""

    def __init__(self, first: Envelope, body: tuple[Any, Any, Any], amqp: AMQP) -> None:
        """Take what Celery has built, and the body before it was serialised."""
        self.first, self._embed = first, body[2]
        self._serializer = registry.type_to_name[first.content_type]
        self._compression = first.headers.get("compression")
        self._sizes = amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize
        levels = amqp.app.conf.get("task_repr_maxlevels")
        self._levels = {} if levels is None else {"maxlevels": levels}
        self._rooted = first.headers["root_id"] == first.headers["id"]
        holes = {name: f"\0{name}\0" for name in ("id", "argsrepr", "kwargsrepr")}
        escaped = [json.dumps(hole)[1:-1] for hole in holes.values()]
        form = self._envelope(first.body, holes).meta()
        self._parts = re.split(f"({'|'.join(map(re.escape, escaped))})", form)
        self._holes = dict(zip(holes, escaped, strict=True))
        again = self.filled(str(first.headers["id"]), body[0], body[1])
        self.fits = again == (first, first.meta())

    def filled(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Envelope, str]:
        """Return the message of another call, and its ``meta()``.

        Raises:
            Exception: an argument cannot be serialised; Celery's own way says which.
        """
        shown = {
            "id": task_id,
            "argsrepr": self._shown(args, self._sizes[0]),
            "kwargsrepr": self._shown(kwargs, self._sizes[1]),
        }
        _, _, data = dumps((args, kwargs, self._embed), serializer=self._serializer)
        data = data.encode() if isinstance(data, str) else data
        if self._compression:
            data, _ = compress(data, self._compression)
        told = {self._holes[name]: encode_basestring_ascii(value)[1:-1] for name, value in shown.items()}
        return self._envelope(data, shown), "".join([told.get(part, part) for part in self._parts])

    def _envelope(self, body: bytes, shown: dict[str, str]) -> Envelope:
        first = self.first
        headers = first.headers | shown
        if self._rooted:
            headers["root_id"] = shown["id"]
        return Envelope(
            body=body, content_type=first.content_type, content_encoding=first.content_encoding, headers=headers,
            properties=first.properties | {"correlation_id": shown["id"]}, exchange=first.exchange,
            routing_key=first.routing_key, declare=first.declare,
        )  # fmt: skip

    def _shown(self, value: Any, size: int) -> str:
        return plainly_shown(value, size) or str(saferepr(value, size, **self._levels))


def plainly_shown(value: Any, size: int) -> str:
    """Say what ``saferepr`` says of a few short texts and numbers; "" for what takes more than a glance."""
    if type(value) is dict:
        ends, values = "{}", [*value, *value.values()]
    elif type(value) in _ENDS:
        ends, values = _ENDS[type(value)], value
    else:
        return ""
    if not all(type(v) in _PLAIN for v in values):
        return ""
    texts = [f"'{v}'" if type(v) is str else str(v) for v in values]
    if sum(map(len, texts)) + 4 * len(texts) >= size or any("'" in v for v in values if type(v) is str):
        return ""
    if type(value) is dict:
        half = len(value)
        texts = [f"{k}: {v}" for k, v in zip(texts[:half], texts[half:], strict=True)]
    comma = "," if type(value) is tuple and len(value) == 1 else ""
    return f"{ends[0]}{', '.join(texts)}{comma}{ends[1]}"
