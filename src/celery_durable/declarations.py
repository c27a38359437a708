"""Queues and exchanges as plain data: kombu's own form does not come back as it was."""

from __future__ import annotations

from typing import Any

from kombu import Exchange, Queue, binding

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
