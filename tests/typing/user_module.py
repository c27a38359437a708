"""A user's module, as mypy sees it: checked by `make check`, never run.

Where a use is wrong, mypy has to say so: it reports a ``type: ignore`` that ignores nothing.
"""

from __future__ import annotations

from celery import Celery

import celery_durable
from celery_durable import DurableTask, KeyConflict, LedgerUnavailable, ledger

app = Celery("shop")


class Charging(DurableTask):
    abstract = True
    lease = 60
    max_losses = 5
    on_loss = "dead"

    def idempotency_key(self, order_id: str, cents: int) -> str:
        return f"{self.name}-{order_id}-{cents}"


@app.task(base=Charging, bind=True)
def charge(self: Charging, order_id: str, cents: int) -> int:
    fence: int = self.fence
    return fence + cents


def submit(order_id: str) -> str:
    try:
        result = charge.apply_async((order_id, 100), idempotency_key=order_id, on_conflict="raise")
    except KeyConflict as conflict:
        return conflict.task_id
    except LedgerUnavailable as error:
        return error.outcome
    return str(result.id)


def state(task_id: str) -> str:
    found: str = ledger(app).get(task_id).state
    key: str = ledger(app).get(task_id).key
    claims: int = ledger(app).get(task_id).claims
    return f"{found} {key} {claims} {celery_durable.__version__}"


def cancel(task_id: str) -> bool:
    ledger(app).cancel(task_id, "not wanted")
    return ledger(app).replay(task_id)


class Wrong(DurableTask):
    on_loss = 3  # type: ignore[assignment]


def misuse(task_id: str) -> None:
    state: int = ledger(app).get(task_id).state  # type: ignore[assignment]
    ledger(app).cancel(task_id, state)  # type: ignore[arg-type]


def submit_all(orders: list[tuple[str, int]], session: object) -> list[str]:
    with ledger(app).transaction(session):
        receipts = charge.submit_many(orders, key="{order_id}", chunk=100, queue="bulk")
    new: int = receipts.counts["new"]
    ids: list[str] = [receipt.id for receipt in receipts if receipt.outcome == "new"]
    return ids[:new]
