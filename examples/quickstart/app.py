"""A Celery app whose task survives `kill -9`: it charges orders through a payment gateway.

Everything durable is in the base class and in a handful of settings; the rest is stock Celery.
"""

import json
import os
import urllib.request
from pathlib import Path

from celery import Celery

from celery_durable import DurableTask

GATEWAY = os.environ.get("QUICKSTART_GATEWAY", "http://127.0.0.1:8085")
BROKER = os.environ.get("QUICKSTART_BROKER", "filesystem://")
STATE = Path(os.environ.get("QUICKSTART_STATE", "quickstart-state")).resolve()

app = Celery("quickstart", broker=BROKER)
app.conf.task_default_queue = "quickstart"
app.conf.durable_ledger_url = os.environ.get("QUICKSTART_LEDGER", f"sqlite:///{STATE}/ledger.db")
# Impatient on purpose, so that a short demo sees every recovery. The defaults suit production.
app.conf.durable_lease = 3
app.conf.durable_sweep_interval = 0.5
app.conf.durable_republish_after = 2

if BROKER.startswith("filesystem:"):
    # Messages are files in one folder. A worker takes its message out of it for good, so this broker
    # forgets whatever a killed worker held: nothing but the ledger can bring that work back.
    folders = {name: STATE / name for name in ("messages", "processed", "control")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    app.conf.broker_transport_options = {
        "data_folder_in": str(folders["messages"]),
        "data_folder_out": str(folders["messages"]),
        "processed_folder": str(folders["processed"]),
        "control_folder": str(folders["control"]),
        "store_processed": True,
        "polling_interval": 0.1,
    }


@app.task(
    base=DurableTask,
    idempotency_key="{order_id}",
    max_losses=20,  # here it is the demo that kills: an order that died often is no poison
    autoretry_for=(OSError,),  # the gateway is away, or too slow
    retry_backoff=True,
)
def charge(order_id: str, cents: int) -> str:
    """Charge one order and return the gateway's number for the charge."""
    request = urllib.request.Request(  # noqa: S310 - the URL is this demo's own
        f"{GATEWAY}/charges",
        data=json.dumps({"order_id": order_id, "cents": cents}).encode(),
        headers={
            "Content-Type": "application/json",
            # The same token in every attempt: a worker that dies after the charge, but before it could
            # say so, asks again, and the gateway answers with the charge it already made.
            "Idempotency-Key": f"charge-{order_id}",
            # Only so that the demo knows whom to kill.
            "X-Worker-Pid": str(os.getpid()),
        },
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)["charge_id"]
