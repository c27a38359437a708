"""The stage of a crash test: an app, its ledger, its broker, its workers, and the witness."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import redis
import sqlalchemy as sa
from kombu.exceptions import ChannelError

from celery_durable.ledger import Ledger
from celery_durable.wiring import plugin
from tests.crash.fleet import PATIENCE, ROOT, Fleet, Worker
from tests.crash.tasks import build
from tests.crash.witness import STARTED, Sight, Witness
from tests.forked import Forked
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from celery import Celery
    from celery.result import AsyncResult

    from celery_durable.records import Record
    from tests.conftest import Broker

QUEUE = "crash"
#: Impatient, so that recoveries are seen soon; the defaults suit production.
FAST = {
    "task_default_queue": QUEUE,
    "durable_lease": 3.0,
    "durable_sweep_interval": 0.25,
    "durable_republish_after": 1.5,
    "worker_prefetch_multiplier": 2,
    "worker_hijack_root_logger": True,
    "broker_connection_retry_on_startup": True,
}


def environment(conf: dict[str, Any], folder: Path) -> dict[str, str]:
    """What `tests.crash.app` reads."""
    return {
        "CRASH_CONF": json.dumps(conf),
        "CRASH_FOLDER": str(folder),
        "PYTHONWARNINGS": "ignore",  # Celery's about running as root
        "PYTHONUNBUFFERED": "1",
    }


class Stage:
    """Everything one test plays with; `close` ends all of it."""

    #: What makes the app, and the module in which workers find it.
    build: Callable[..., Celery] = staticmethod(build)
    module = "tests.crash.app"

    def __init__(self, folder: Path, broker: dict[str, Any], ledger_url: str, **conf: Any) -> None:
        options = {"polling_interval": 0.1} | broker.get("broker_transport_options", {})
        if not broker["broker_url"].startswith("amqp"):
            broker = broker | {"broker_transport_options": options}
        self.folder = folder
        self.conf = FAST | broker | {"durable_ledger_url": ledger_url} | conf
        self.env = environment(self.conf, folder)
        self.app = self.build(self.conf, folder)
        self.side = plugin(self.app)
        self.witness = Witness(folder / "witness")
        self.fleet = Fleet(folder, self.env, self.module)
        Ledger.open(self.side.settings).migrate()

    @property
    def ledger(self) -> Ledger:
        return self.side.ledger

    @property
    def lease(self) -> float:
        return self.side.settings.lease

    def close(self) -> None:
        self.fleet.stop()
        self.side.ledger.db.dispose()
        self.side.publisher.close()
        self.app.close()

    # Acting --------------------------------------------------------------------------------------

    def worker(self, *options: str, **how: Any) -> Worker:
        return self.fleet.start(*options, **how)

    def submit(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        return self.app.tasks[task].apply_async(args, **options)

    def submit_many(self, count: int, *, seconds: float = 0.0) -> list[str]:
        return [self.submit("work", n, seconds).id for n in range(count)]

    def writable(self) -> bool:
        """Whether nobody holds the ledger's write lock; only SQLite has one."""
        if self.ledger.dialect.name != "sqlite":
            return True
        path = self.ledger.db.url.database
        with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE").execute("ROLLBACK")
            except sqlite3.OperationalError:
                return False
        return True

    def open(self, *gates: str) -> None:
        """Let the bodies that wait at these gates go on."""
        for gate in gates:
            (self.folder / f"gate-{gate}").touch()

    def copies(self, task_id: str, count: int) -> None:
        """Deliver the stored message of a row again and again, mark and all."""
        from celery_durable.records import Envelope

        row = self.row(task_id)
        for _ in range(count):
            self.side.publisher.ring(Envelope.load(row.envelope, row.body), row.task_id, row.envelope_no)

    # Looking -------------------------------------------------------------------------------------

    def get(self, task_id: str) -> Record:
        return self.ledger.get(task_id)

    def row(self, task_id: str) -> sa.Row[Any]:
        return self.rows(self.ledger.t.task.c.task_id == task_id)[0]

    def rows(self, *where: sa.ColumnElement[bool]) -> list[sa.Row[Any]]:
        query = sa.select(self.ledger.t.task).where(*where)
        return self.ledger.db.run(lambda c: list(c.execute(query).all()), read_only=True)

    def sql(self, statement: str) -> None:
        """What an administrator might do to the ledger."""
        self.ledger.db.run(lambda c: c.execute(sa.text(statement)))

    def states(self) -> dict[str, int]:
        """How many rows stand in each state that has any."""
        return {k: v for k, v in self.ledger.stats()["states"].items() if v}

    def verbs(self, task_id: str) -> list[str]:
        return [e.verb for e in self.ledger.events(self.get(task_id).id)]

    def kinds(self, task_id: str) -> list[str]:
        """The kinds of its failures, oldest first."""
        return [f.kind for f in self.ledger.failures(self.get(task_id).id)]

    def depth(self) -> int:
        """How many messages the broker holds, apart from those delivered and not acknowledged."""
        with self.app.connection_for_read() as connection:
            try:
                return int(connection.default_channel.queue_declare(QUEUE, passive=True).message_count)
            except ChannelError:  # Redis has no empty list
                return 0

    def lying(self) -> set[str]:
        """Name the tasks whose messages lie in the queue of a Redis broker, not delivered or given back."""
        with redis.Redis.from_url(self.app.conf.broker_url) as client:
            return {json.loads(message)["headers"]["id"] for message in client.lrange(QUEUE, 0, -1)}

    # Waiting -------------------------------------------------------------------------------------

    def await_(self, condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """Wait for a condition; a worker that ends meanwhile by itself is a failure at once."""

        def asked() -> Any:
            self.fleet.check()
            return condition()

        return wait_until(asked, timeout, what)

    def await_start(self, task_id: str, times: int = 1) -> list[Sight]:
        def begun() -> list[Sight]:
            sights = self.witness.of(task_id, STARTED)
            return sights if len(sights) >= times else []

        return self.await_(begun, f"{task_id} did not start {times} times")

    def await_state(self, task_id: str, state: str, timeout: float = PATIENCE) -> Record:
        def there() -> Record | None:
            record = self.get(task_id)
            return record if record.state == state else None

        return self.await_(there, f"{task_id} is not {state}", timeout)

    def await_all(self, count: int) -> None:
        """Wait until so many rows have succeeded, and check that nothing else is there."""
        self.await_(lambda: self.states().get("succeeded", 0) >= count, f"{count} tasks did not succeed")
        assert self.states() == {"succeeded": count}

    def outlast(self, seconds: float) -> None:
        """Let time itself pass: here it is the condition, a lease that runs out."""
        end = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= end, seconds + 60)

    # Judging -------------------------------------------------------------------------------------

    def audit(self) -> None:
        """`celery durable verify` by its command; it says so by its exit code as well."""
        words = ["-A", self.module, "durable", "verify", "--json"]
        out, err = self.folder / "verify.json", self.folder / "verify.err"
        code = Forked(words, folder=ROOT, env={**os.environ, **self.env}, out=out, err=err).wait(PATIENCE)
        assert code == 0, f"verify exits {code}:\n{out.read_text()}{err.read_text()}"
        assert json.loads(out.read_text()) == {"ok": True, "violations": []}

    def check_history(self, task_ids: Iterable[str]) -> None:
        """Each row ended once, with one history that has no gap and a claim for each number."""
        t = self.ledger.t
        query = sa.select(t.task.c.task_id, t.task.c.state, t.task.c.claims, t.event)
        query = query.join(t.event, t.event.c.task_row == t.task.c.id).order_by(t.event.c.id)
        histories: dict[str, list[Any]] = {}
        for event in self.ledger.db.run(lambda c: c.execute(query).all(), read_only=True):
            histories.setdefault(event.task_id, []).append(event)
        assert set(histories) == set(task_ids)
        for task_id, events in histories.items():
            verbs = [e.verb for e in events]
            assert verbs[0] == "submit", (task_id, verbs)
            assert verbs.count("succeed") == 1, (task_id, verbs)
            moves = [e for e in events if e.verb not in {"fenced", "rerun"}]
            assert moves[-1].verb == "succeed", (task_id, verbs)
            for before, after in pairwise(moves):
                assert before.to_state == after.from_state, (task_id, verbs)
            claims = [e.claim for e in events if e.verb == "claim"]
            assert claims == list(range(1, events[0].claims + 1)), (task_id, claims)


def staged(folder: Path, broker: Broker, ledger_url: str, **conf: Any) -> Stage:
    """A stage on the fixtures' broker and ledger."""
    return Stage(folder, broker.conf, ledger_url, **conf)
