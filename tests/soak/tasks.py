"""The shop under the storm: one task, the same on Celery's Task and on DurableTask.

An order works for a while, writes one row into the shop's own table, and tells the witness that it came to its end.
"""

from __future__ import annotations

import random
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from celery import Celery, Task
from sqlalchemy.exc import SQLAlchemyError

from celery_durable import DurableTask
from tests.crash.witness import FINISHED, STARTED, Witness

if TYPE_CHECKING:
    from pathlib import Path

metadata = sa.MetaData()
EFFECTS = sa.Table("soak_effect", metadata, sa.Column("number", sa.Integer, nullable=False, index=True))
#: Bytes that each order needs anew: who has hit a memory limit finds out.
NEED = 8 << 20
#: Best practice on both sides: what a database that is away raises is tried again, patiently.
RETRIES = {
    "autoretry_for": (SQLAlchemyError,),
    "max_retries": 1000,
    "retry_backoff": 1,
    "retry_backoff_max": 4,
    "retry_jitter": True,
}


@lru_cache(maxsize=1)
def engine(url: str) -> sa.Engine:
    """The shop's connections, one for each pool process; made after the fork."""
    return sa.create_engine(url, pool_pre_ping=True, pool_size=1, connect_args={"connect_timeout": 5})


def book(connection: sa.Connection, number: int) -> None:
    """The effect."""
    connection.execute(sa.insert(EFFECTS).values(number=number))


def duration(seed: int, number: int) -> float:
    """How long an order takes, in seconds: one in ten is long."""
    dice = random.Random(f"{seed}-{number}")
    return dice.uniform(0.5, 2.0) if dice.random() < 0.1 else dice.uniform(0.01, 0.1)


def build(conf: dict[str, Any], folder: Path) -> Celery:
    """Make the app of one side; `shop` is the database of the effects."""
    conf = dict(conf)
    shop = conf.pop("shop")
    durable = "durable_ledger_url" in conf
    app = Celery("soak", set_as_current=False)
    app.conf.update(conf)
    witness = Witness(folder / "witness")

    def order(self: Any, number: int, seconds: float) -> None:
        note = f"{number} {self.request.hostname}"
        witness.saw(STARTED, self.request.id, note=note)
        time.sleep(seconds)
        bytearray(NEED)
        if durable:
            self.step("book", book, number, transaction=True)
        else:
            with engine(shop).begin() as connection:
                book(connection, number)
        witness.saw(FINISHED, self.request.id, note=note)

    options: dict[str, Any] = {"base": DurableTask, "idempotency_key": "{number}", "max_losses": 1000}
    app.task(bind=True, shared=False, name="order", **(options if durable else {"base": Task}), **RETRIES)(order)
    app.finalize()
    return app
