"""Two sides of one pain: the same tasks, brokers, workers and kills, with and without the ledger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import redis

from celery_durable.api import LedgerView
from celery_durable.explain import explain, look_up
from celery_durable.ledger import Ledger
from celery_durable.wiring import plugin
from tests.crash.fleet import PATIENCE, ROOT, Fleet, Worker
from tests.crash.kit import FAST, QUEUE, environment
from tests.crash.witness import FINISHED, STARTED, Witness
from tests.pains.tasks import build
from tests.services import RabbitMQ, Redis, Server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from celery.result import AsyncResult


S = TypeVar("S", bound=Server)
STOCK, DURABLE = "stock", "durable"
APP = "tests.pains.app"
#: Celery's states of a task that is not over.
OPEN = frozenset({"PENDING", "RECEIVED", "STARTED", "RETRY", "REJECTED"})


@dataclass(frozen=True)
class Seen:
    """What one side showed, by part: whether that hurt, and in words with figures."""

    parts: tuple[tuple[bool, str], ...]

    @property
    def text(self) -> str:
        return "; ".join(text for _, text in self.parts)


def seen(*parts: tuple[bool, str]) -> Seen:
    return Seen(parts)


@dataclass(frozen=True)
class Pain:
    """A row: what users report, the fair configuration it is shown with, and what else Celery offers against it."""

    number: int
    title: str
    reports: tuple[str, ...]
    setting: str
    cure: str
    broker: str
    conf: dict[str, Any]
    run: Callable[[Side], Seen]


PAINS: dict[int, Pain] = {}


def pain(
    number: int, title: str, *reports: str, setting: str, cure: str, broker: str = "redis", **conf: Any
) -> Callable[[Callable[[Side], Seen]], Callable[[Side], Seen]]:
    """Register a scenario; it is run once for each side. `conf` is Celery's, the same for both."""

    def register(run: Callable[[Side], Seen]) -> Callable[[Side], Seen]:
        PAINS[number] = Pain(number, title, reports, setting, cure, broker, conf, run)
        return run

    return register


class Servers:
    """Real servers, started when somebody first asks, shared by all scenarios; `close` ends those it started."""

    def __init__(self, *given: Server) -> None:
        self._servers: dict[type[Server], Server] = {type(s): s for s in given}
        self._closing, self._lock = ExitStack(), threading.Lock()

    def shared(self, kind: type[S]) -> S:
        with self._lock:
            if kind not in self._servers:
                self._servers[kind] = self._closing.enter_context(kind())
            return self._servers[kind]  # type: ignore[return-value]

    def close(self) -> None:
        self._closing.close()


class Side:
    """One side of one scenario; `close` ends all of it.

    What it is asked is what a user of that side can ask: Celery's result and remote control, and where there is a
    ledger that. Whether something really ran, only the witness says.
    """

    def __init__(self, servers: Servers, folder: Path, pain: Pain, name: str) -> None:
        self.name, self.folder, self.servers, self.pain = name, folder, servers, pain
        self._closing = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        self.conf: dict[str, Any] = {}
        self.env: dict[str, str] = {}
        self.programs: list[subprocess.Popen[bytes]] = []
        self.fleet: Fleet = Fleet(folder, {}, APP)
        self.witness = Witness(folder / "witness")

    # Setting up ----------------------------------------------------------------------------------

    def set_up(self, broker_url: str, *, ledger_url: str = "", results: bool = True, **conf: Any) -> None:
        """Make the app; a scenario that needs a broker or a database of its own calls this by itself."""
        common = {k: v for k, v in FAST.items() if not k.startswith("durable")}
        common |= {"broker_url": broker_url, "task_track_started": True}
        if results:
            common["result_backend"] = self.servers.shared(Redis).db()
        if broker_url.startswith("redis"):
            options = {"polling_interval": 0.1} | self.pain.conf.get("broker_transport_options", {})
            common["broker_transport_options"] = options
        own = {k: v for k, v in self.pain.conf.items() if k != "broker_transport_options"}
        self.conf = common | own | conf
        if self.durable:
            url = ledger_url or f"sqlite:///{self.folder / 'ledger.db'}"
            self.conf |= {k: v for k, v in FAST.items() if k.startswith("durable")} | {"durable_ledger_url": url}
        self.env = environment(self.conf, self.folder)
        self.app = build(self.conf, self.folder)
        self.fleet = Fleet(self.folder, self.env, APP)
        self._closing.callback(self.app.close)
        if self.durable:
            side = plugin(self.app)
            Ledger.open(side.settings).migrate()
            self._closing.callback(side.ledger.db.dispose)
            self._closing.callback(side.publisher.close)
        self._closing.callback(self.fleet.stop)

    def own(self, kind: type[S], *options: str) -> S:
        """A server of this side's own, that it may kill."""
        return self._closing.enter_context(kind(*options))

    def close(self) -> None:
        self._closing.close()

    @property
    def durable(self) -> bool:
        return self.name == DURABLE

    @property
    def ledger(self) -> LedgerView:
        return LedgerView(self.app)

    # Acting --------------------------------------------------------------------------------------

    def worker(self, *options: str, concurrency: int = 1) -> Worker:
        return self.fleet.start(*options, concurrency=concurrency)

    def submit(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        return self.app.tasks[task].apply_async(args, **options)

    def program(self, name: str, *command: str) -> Path:
        """Start a Python program that reads the same environment, ended with this side; its log."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

        def end() -> None:
            process.kill()
            process.wait()

        self._closing.callback(end)
        self.programs.append(process)
        return log

    def open(self, gate: str) -> None:
        (self.folder / f"gate-{gate}").touch()

    # Looking -------------------------------------------------------------------------------------

    def runs(self, task_id: str) -> int:
        return len(self.witness.of(task_id, STARTED))

    def ends(self, task_id: str) -> int:
        return len(self.witness.of(task_id, FINISHED))

    def state(self, task_id: str) -> str:
        """What a user is told of a task: Celery's state, or the ledger's."""
        return self.ledger.get(task_id).state if self.durable else self.app.AsyncResult(task_id).state

    def why(self, task_id: str) -> str:
        """What `celery durable why` says."""
        record = self.ledger.get(task_id)
        return explain(record, look_up(plugin(self.app).ledger, record)).reason

    def in_redis(self) -> tuple[set[str], set[str]]:
        """The ids that a Redis broker holds: those in the queue, and those delivered and not acknowledged."""
        with redis.Redis.from_url(self.conf["broker_url"]) as client:
            queued = [json.loads(m) for m in client.lrange(QUEUE, 0, -1)]
            unacked = [json.loads(m)[0] for m in client.hvals("unacked")]
        return {m["headers"]["id"] for m in queued}, {m["headers"]["id"] for m in unacked}

    # Waiting -------------------------------------------------------------------------------------

    def await_(self, condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        return wait_until(condition, timeout, f"{self.name}: {what}")

    def await_run(self, task_id: str, times: int = 1) -> None:
        self.await_(lambda: self.runs(task_id) >= times, f"{task_id} does not start {times} times")

    def await_end(self, task_id: str, times: int = 1) -> None:
        self.await_(lambda: self.ends(task_id) >= times, f"{task_id} does not finish {times} times")

    def hurts(self, condition: Callable[[], Any], watch: float) -> bool:
        """Whether a pain comes: stock is waited for, ours is watched for so many seconds."""
        try:
            wait_until(condition, PATIENCE if not self.durable else watch)
        except AssertionError:
            return False
        return True

    def settle(self, *ids: str, workers: int = 1) -> None:
        """Wait until nothing more can come of these tasks by itself.

        Durable: their rows are over. Stock: they have finished, or tasks sent after them have run on every idle
        worker process and the broker's queue is empty.
        """
        if self.durable:
            over = {"succeeded", "dead", "cancelled"}
            self.await_(lambda: all(self.state(i) in over for i in ids), "rows are not over")
            return
        for n in range(2 * workers):
            self.await_end(self.submit("work", f"probe {n}").id)

    def outlast(self, seconds: float) -> None:
        """Let time itself pass: here it is the condition."""
        end = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= end, seconds + 60)


@contextmanager
def side(servers: Servers, folder: Path, pain: Pain, name: str) -> Iterator[Side]:
    """One side of a pain, set up unless its scenario does that by itself (broker "")."""
    made = Side(servers, folder, pain, name)
    try:
        if pain.broker:
            made.set_up(broker_url(servers, pain.broker))
        yield made
    finally:
        made.close()


def broker_url(servers: Servers, kind: str) -> str:
    if kind == "redis":
        return servers.shared(Redis).db()
    return servers.shared(RabbitMQ).vhost()
