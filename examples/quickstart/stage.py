"""Sets the stage: the gateway, the environment of the app, the ledger's tables, the orders."""

import csv
import importlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kombu.exceptions import KombuError
from services import Command, DemoError, Gateway

import celery_durable
from celery_durable.errors import DurableError, NoSuchTask

BROKER_TIMEOUT = 5


@dataclass(frozen=True)
class Place:
    """Where a run happens; empty URLs mean the embedded defaults."""

    folder: Path
    state: Path
    broker: str
    ledger: str

    @property
    def logs(self) -> Path:
        """The folder of all log files."""
        return self.state / "logs"


class Standing(NamedTuple):
    """Where an order stands in the ledger, and how often its worker was lost."""

    state: str
    losses: int


@dataclass
class Stage:
    """Everything that stands ready before the first worker starts."""

    place: Place
    gateway: Gateway
    env: dict[str, str]
    app: Any = field(repr=False)
    charge: Any = field(repr=False)

    def read_orders(self, count: int) -> dict[str, int]:
        """Return the first `count` orders of the CSV file, with their cents."""
        with (self.place.folder / "orders.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))[:count]
        if len(rows) < count:
            msg = f"orders.csv has {len(rows)} orders, fewer than {count}: lower --orders"
            raise DemoError(msg)
        # A ledger that outlives the run remembers its keys: the same order would not run a second time.
        suffix = f"-{secrets.token_hex(2)}" if self.place.ledger else ""
        return {row["order_id"] + suffix: int(row["cents"]) for row in rows}

    def submit(self, orders: dict[str, int]) -> None:
        """Submit every order; from here on the ledger owes them all."""
        try:
            for order, cents in orders.items():
                self.charge.delay(order, cents)
        except DurableError as error:
            msg = f"the orders could not be submitted: {error}"
            raise DemoError(msg) from error

    def look_up(self, order: str) -> Standing:
        """Ask the ledger where an order stands."""
        try:
            record = celery_durable.ledger(self.app).get(order)
        except NoSuchTask:
            return Standing("unknown", 0)
        except DurableError as error:
            msg = f"the ledger does not answer: {error}"
            raise DemoError(msg) from error
        return Standing(record.state, record.losses)

    def command(self, *arguments: str) -> Command:
        """Start `celery -A app durable ...`."""
        return Command(self.place.folder, self.env, *arguments)

    def migrate(self) -> None:
        """Create the ledger's tables."""
        command = self.command("migrate")
        code, out, errors = command.result()
        if code:
            msg = f"`{command.line}` failed: {(errors or out).rpartition(chr(10))[2]}"
            raise DemoError(msg)

    def check_broker(self) -> None:
        """Connect once, so that a wrong URL is said now."""
        try:
            with self.app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_TIMEOUT)
        except (KombuError, OSError, ImportError, KeyError) as error:
            # kombu's KeyError and the clients' errors name no password; the URL might.
            msg = f"no connection to the {self.place.broker.partition(':')[0]} broker: {error}"
            raise DemoError(msg) from error


def set_stage(place: Place, on_exit: Callable[[Callable[[], object]], object]) -> Stage:
    """Start the gateway and make the app; what has to be ended later is given to `on_exit`."""
    if not Path("/proc/self/stat").exists():
        msg = "the demo finds pool children through /proc, which this system does not have: use Linux"
        raise DemoError(msg)
    place.logs.mkdir()
    gateway = Gateway(place.folder, place.state)
    on_exit(gateway.stop)
    env = environment(place, gateway.url)
    os.environ.clear()
    os.environ.update(env)
    app = importlib.import_module("app")  # only now: it reads its configuration from the environment
    stage = Stage(place, gateway, env, app.app, app.charge)
    if place.ledger and not place.ledger.startswith("sqlite"):
        stage.migrate()
    return stage


def environment(place: Place, gateway: str) -> dict[str, str]:
    """Make the environment for the app, here and in the workers."""
    # CELERY_BROKER_URL and its like would win over what the app says.
    env = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    env |= {"QUICKSTART_GATEWAY": gateway, "QUICKSTART_STATE": str(place.state)}
    env |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    for name, url in ("QUICKSTART_BROKER", place.broker), ("QUICKSTART_LEDGER", place.ledger):
        env.pop(name, None)
        if url:
            env[name] = url
    return env
