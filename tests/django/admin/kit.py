"""A shop's ledger with something of everything."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from celery_durable import failures, states
from celery_durable.ledger import Presence
from celery_durable.steps import Content
from tests.ledger.kit import BROKER, cancelled, claimed, gone, queued, running, succeed, waiting

if TYPE_CHECKING:
    from celery_durable.ledger import Ledger

JSON = "application/json"


def declined(order: str) -> str:
    raise ConnectionError(f"gateway.example refused the charge of {order}: 503 Service Unavailable")


def unknown(order: str) -> str:
    return {"ORD-0": "EUR"}[order]


def described(call: Any, kind: str, claim: int) -> Any:
    """A failure as a worker describes it, with a traceback of its own."""
    try:
        call("ORD-7")
    except Exception as error:  # noqa: BLE001 - whatever it is
        return failures.describe(error, kind, worker="worker-1@shop", claim=claim)
    raise AssertionError


def seed(ledger: Ledger) -> dict[str, int]:
    """Tasks in every state; return how they are called -> their row ids."""
    presence = ("worker-1", "worker-1@shop", 4711, ["celery", "mail"], ["shop.charge", "shop.invoice"], BROKER, 30.0)
    ledger.enter(Presence(*presence, pool="prefork"))
    ledger.beat("worker-1", phase="running", running=1)
    made: dict[str, int] = {}
    for number in range(1, 4):
        claim = running(ledger, f"ORD-{number}")
        ledger.record_step(
            claim, "charge", Content(json.dumps({"charged": True}).encode(), JSON), seconds=1.2, actor="w"
        )
        succeed(ledger, claim, b'{"receipt": 17}')
        made[f"ORD-{number}"] = claim.row_id
    made["ORD-7"] = _dead(ledger, "ORD-7", declined, "transient")
    made["ORD-8"] = _dead(ledger, "ORD-8", declined, "transient")
    made["ORD-9"] = _dead(ledger, "ORD-9", unknown, "permanent")
    made["ORD-10"] = cancelled(ledger, "ORD-10").row_id
    made["ORD-11"] = waiting(ledger, "ORD-11").row_id
    made["ORD-12"] = queued(ledger, "ORD-12").row_id
    made["INV-1"] = queued(ledger, "INV-1", task="shop.invoice", queue="mail").row_id
    busy = running(ledger, "ORD-13")
    ledger.record_step(
        busy, "charge", Content(b'{"card": "4242 4242 4242 4242", "voucher": "TEA-5"}', JSON), seconds=0.4, actor="w"
    )
    ledger.progress(busy, json.dumps({"done": 30, "total": 120, "note": "booking"}))
    made["ORD-13"] = busy.row_id
    return made


def _dead(ledger: Ledger, key: str, call: Any, kind: str) -> int:
    """One that was lost once, failed once, and died."""
    claim = running(ledger, key, max_losses=5)
    ledger.record_step(claim, "reserve", Content(b"true", JSON), seconds=0.1, actor="w")
    ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="keeper")
    again = claimed(ledger, claim.task_id)
    end = described(call, kind, again.claims)
    ledger.settle(
        again, lambda row: states.fail(row, end, "owed", owes=False, ring=30, retry=None), actor="worker-1@shop"
    )
    return claim.row_id


def history(ledger: Ledger, row_id: int) -> list[tuple[str, str, str]]:
    """What was done to a row: verb, by whom, why."""
    return [(e.verb, e.actor, e.reason) for e in ledger.events(row_id)]
