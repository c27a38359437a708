"""Who is put into the storm: stock Celery as well as it can be set up, and the same app with the ledger."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable.ledger import Ledger
from celery_durable.wiring import plugin
from tests.crash.fleet import ROOT
from tests.crash.kit import environment
from tests.forked import Forked
from tests.soak.places import address
from tests.soak.tasks import EFFECTS, build, metadata
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.witness import Witness

#: The same on both sides.
COMMON = {
    "task_default_queue": "soak",
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_ignore_result": True,
    "worker_prefetch_multiplier": 1,
    "worker_hijack_root_logger": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
}
#: Redis gives back what is not acknowledged after ten seconds (an hour by default), and looks each ten (hundred).
REDIS = {"visibility_timeout": 10, "unacked_restore_limit": 1}
RABBITMQ = {"confirm_publish": True}
DURABLE = {"durable_lease": 3.0, "durable_sweep_interval": 0.5, "durable_republish_after": 5.0}
PATIENCE = 300.0


class Side:
    """One side of a soak; `name` is what the report calls it."""

    name = "stock"

    def __init__(self, folder: Path, broker_url: str, ledger_url: str) -> None:
        self.folder, self.ledger_url = folder, ledger_url
        options = REDIS if broker_url.startswith("redis") else RABBITMQ
        self.conf: dict[str, Any] = COMMON | {"broker_url": broker_url, "broker_transport_options": options}
        self.conf |= {"shop": ledger_url} | self.own()

    def own(self) -> dict[str, Any]:
        """What this side sets beside what both do."""
        return {}

    def env(self, slot: int | None = None) -> dict[str, str]:
        """The environment of a worker, or of the client."""
        urls = {k: v if slot is None else address(v, slot) for k, v in self.conf.items() if isinstance(v, str)}
        return {**os.environ, **environment(self.conf | urls, self.folder)}

    def prepare(self) -> None:
        """Create the tables."""
        engine = sa.create_engine(self.ledger_url)
        metadata.create_all(engine)
        engine.dispose()

    def settle(self, witness: Witness) -> bool:
        """Wait until nothing is left to be done; whether that came."""
        last, since = -1, time.monotonic()
        while time.monotonic() - since < 45:  # four looks of Redis, ten times the longest pause of a retry
            seen = len(witness.sights)
            if seen != last:
                last, since = seen, time.monotonic()
            time.sleep(0.5)
        return True

    def effects(self) -> dict[int, int]:
        """How many rows each order left."""
        engine = sa.create_engine(self.ledger_url)
        with engine.connect() as connection:
            rows = connection.execute(sa.select(EFFECTS.c.number)).scalars()
            counts = Counter(rows)
        engine.dispose()
        return dict(counts)

    def audit(self) -> dict[str, Any]:
        """What else this side can tell; `faults` in it are broken promises."""
        return {}

    def close(self) -> None:
        """Let go of the servers."""


class Durable(Side):
    name = "durable"

    def own(self) -> dict[str, Any]:
        return DURABLE | {"durable_ledger_url": self.ledger_url}

    def prepare(self) -> None:
        super().prepare()
        self.app = build(self.conf, self.folder)
        self.side = plugin(self.app)
        Ledger.open(self.side.settings).migrate()

    def settle(self, witness: Witness) -> bool:
        def over() -> bool:
            states = self.side.ledger.stats()["states"]
            return not any(states.get(state) for state in ("queued", "running", "waiting"))

        try:
            wait_until(over, PATIENCE)
        except AssertionError:
            return False
        return True

    def audit(self) -> dict[str, Any]:
        ledger = self.side.ledger
        t = ledger.t
        query = sa.select(t.event.c.task_row).where(t.event.c.verb == "succeed")
        query = query.group_by(t.event.c.task_row).having(sa.func.count() > 1)
        twice = ledger.db.run(lambda c: c.execute(query).all(), read_only=True)
        sums = sa.select(sa.func.sum(t.task.c.claims), sa.func.sum(t.task.c.losses), sa.func.sum(t.task.c.retries))
        claims, losses, retries = ledger.db.run(lambda c: tuple(c.execute(sums).one()), read_only=True)
        states = {k: v for k, v in ledger.stats()["states"].items() if v}
        told = {
            "states": states, "claims": int(claims), "losses": int(losses), "retries": int(retries),
            "completed_twice": len(twice), "violations": self._verify(),
        }  # fmt: skip
        told["faults"] = len(twice) + len(told["violations"]) + sum(v for k, v in states.items() if k != "succeeded")
        return told

    def _verify(self) -> list[Any]:
        out, err = self.folder / "verify.json", self.folder / "verify.err"
        words = ["-A", "tests.soak.app", "durable", "verify", "--json"]
        Forked(words, folder=ROOT, env=self.env(), out=out, err=err).wait(120)
        try:
            found: list[Any] = json.loads(out.read_text())["violations"]
        except ValueError:
            return [err.read_text()[-2000:]]
        return found

    def close(self) -> None:
        self.side.ledger.db.dispose()
        self.side.publisher.close()


SIDES: dict[str, type[Side]] = {side.name: side for side in (Durable, Side)}
