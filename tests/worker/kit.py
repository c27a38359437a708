"""What the tests of tasks and workers share: apps, workers within the test's process, looks into the ledger."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import socket
import sqlite3
import tempfile
import threading
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import redis
import sqlalchemy as sa
from celery import Celery
from celery.app import trace
from celery.contrib.testing.worker import TestWorkController, start_worker
from celery.signals import worker_ready
from celery.worker import state
from kombu import Connection

from celery_durable import ledger
from celery_durable.ledger import Ledger
from celery_durable.settings import Settings
from celery_durable.states import TERMINAL
from celery_durable.wiring import plugin
from celery_durable.worker.sweeper import Sweeper
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.records import Event, Record

DEADLINE = 30.0
_numbers = itertools.count(1)


def make_app(ledger_url: str | Path, broker: str, *, task_cls: Any = None, **conf: Any) -> Celery:
    """An app that sweeps often; a path as ledger means SQLite, with its tables in it."""
    if isinstance(ledger_url, Path) and ledger_url.parent.is_dir() and not ledger_url.exists():
        _fresh_copy(ledger_url)
    url = ledger_url if isinstance(ledger_url, str) else f"sqlite:///{ledger_url}"
    app = Celery(f"shop{next(_numbers)}", set_as_current=False, task_cls=task_cls)
    given = {
        "broker_url": broker,
        "durable_ledger_url": url,
        "durable_lease": 20,
        "durable_sweep_interval": 0.1,
        "broker_connection_retry_on_startup": True,
        "worker_hijack_root_logger": False,
        "broker_heartbeat": 0,
    }
    app.conf.update(given | conf)
    return app


@functools.cache
def _migrated() -> bytes:
    """What an empty SQLite ledger looks like: migrating one takes half a second, and tests make hundreds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.db")
        made = Ledger.open(Settings(ledger_url=f"sqlite:///{path}"))
        made.migrate()
        made.db.dispose()
        return path.read_bytes()


def _fresh_copy(path: Path) -> None:
    path.write_bytes(_migrated())
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE durable_ledger SET uuid = ?", (str(uuid4()),))


class Controller(TestWorkController):
    """A worker that tells its signal receivers, as the real one does, that it is ready."""

    def on_consumer_ready(self, consumer: Any) -> None:
        worker_ready.send(sender=consumer)
        super().on_consumer_ready(consumer)


@contextmanager
def working(app: Celery, **options: Any) -> Iterator[Controller]:
    """A worker of the app in a thread, with what a worker's process patches in Celery."""
    given = {"pool": "threads", "concurrency": 2, "perform_ping_check": False, "shutdown_timeout": DEADLINE}
    hostname = f"w{next(_numbers)}@test"
    try:
        trace.setup_worker_optimizations(app, hostname)
        with start_worker(app, WorkController=Controller, hostname=hostname, **(given | options)) as worker:
            try:
                yield worker
            finally:
                state.should_terminate = 0
                _nudge(app)
    finally:
        state.should_terminate = None
        trace.reset_worker_optimizations(app)


def _nudge(app: Celery) -> None:
    """Wake the worker's event loop: it looks only once a second whether it shall stop."""
    with suppress(Exception):
        app.control.broadcast("ping")


def closed(app: Celery) -> None:
    """Let go of what an app holds open."""
    side = plugin(app)
    if "publisher" in side.__dict__:
        side.publisher.close()
    if "ledger" in side.__dict__:
        side.ledger.db.dispose()
    app.close()


def sweep(app: Celery) -> None:
    """One turn of a sweep, as a worker makes it."""
    sweeper = Sweeper(plugin(app), "test", reserved=tuple)
    sweeper.sweep()
    sweeper.close()


def revoke(app: Celery, task_id: str, **options: Any) -> None:
    """Celery's own revoke; returns once the worker knows of it."""
    assert app.control.revoke(task_id, reply=True, limit=1, timeout=DEADLINE, **options)


# Looking.


def the_ledger(app: Celery) -> Ledger:
    return plugin(app).ledger


def migrated(app: Celery) -> Celery:
    """Give a ledger on a server its tables, as `celery durable migrate` does."""
    made = Ledger.open(plugin(app).settings)
    made.migrate()
    made.db.dispose()
    return app


def record(app: Celery, ref: Any) -> Record:
    return ledger(app).get(getattr(ref, "id", ref))


def over(app: Celery, ref: Any, timeout: float = DEADLINE) -> Record:
    """The record once the task has ended."""
    return reached(app, ref, *TERMINAL, timeout=timeout)


def reached(app: Celery, ref: Any, *states: str, timeout: float = DEADLINE) -> Record:
    def look() -> Record | None:
        found = record(app, ref)
        return found if found.state in states else None

    try:
        return wait_until(look, timeout=timeout)
    except AssertionError:
        raise AssertionError(f"not {states}: {record(app, ref)} {events(app, ref)}") from None


def settled(app: Celery, ref: Any) -> Record:
    """The record once the task has ended and everybody was told."""

    def look() -> Record | None:
        found = record(app, ref)
        return found if found.state in TERMINAL and found.continuation_pending is None else None

    return wait_until(look, timeout=DEADLINE, message=f"{ref} is owed to somebody")


def events(app: Celery, ref: Any) -> list[Event]:
    return the_ledger(app).events(record(app, ref).id)


def verbs(app: Celery, ref: Any) -> list[str]:
    return [e.verb for e in events(app, ref)]


def count(app: Celery) -> int:
    """How many rows there are."""
    t = the_ledger(app).t.task
    query = sa.select(sa.func.count()).select_from(t)
    return int(the_ledger(app).db.run(lambda c: c.execute(query).scalar_one(), read_only=True))


def rows(app: Celery) -> list[Record]:
    """Every record, oldest first."""
    return ledger(app).find(limit=1000)[::-1]


def column(app: Celery, ref: Any, name: str) -> Any:
    t = the_ledger(app).t.task
    query = sa.select(t.c[name]).where(t.c.id == record(app, ref).id)
    return the_ledger(app).db.run(lambda c: c.execute(query).scalar_one(), read_only=True)


def alter(app: Celery, ref: Any, **values: Any) -> None:
    """Change a row behind everybody's back."""
    t = the_ledger(app).t.task
    update = sa.update(t).where(t.c.id == record(app, ref).id).values(values)
    the_ledger(app).db.run(lambda c: c.execute(update))


def forget(app: Celery, ref: Any) -> None:
    """Delete a row with its history, as a ledger that lost its commits."""
    kept = the_ledger(app)
    row_id = record(app, ref).id
    kept.db.run(
        lambda c: [
            c.execute(sa.delete(kept.t.event).where(kept.t.event.c.task_row == row_id)),
            c.execute(sa.delete(kept.t.failure).where(kept.t.failure.c.task_row == row_id)),
            c.execute(sa.delete(kept.t.task).where(kept.t.task.c.id == row_id)),
        ]
    )


def clock(app: Celery) -> int:
    """The database's clock."""
    kept = the_ledger(app)
    query = sa.select(kept.dialect.clock_sql)
    return int(kept.db.run(lambda c: c.execute(query).scalar_one(), read_only=True))


@contextmanager
def statements(app: Celery, *, mine: bool = False) -> Iterator[list[str]]:
    """The statements that this process sends to the ledger in the block; `mine`: only those of this thread."""
    sent: list[str] = []
    thread = threading.get_ident()

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not mine or threading.get_ident() == thread:
            sent.append(statement)

    engine = the_ledger(app).db.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


# Brokers.


def redis_of(url: str) -> redis.Redis:
    return redis.Redis.from_url(url)


def on_redis(url: str, queue: str = "celery") -> list[dict[str, Any]]:
    """The messages that lie in a Redis queue, first the one that is delivered first."""
    return [json.loads(m) for m in reversed(redis_of(url).lrange(queue, 0, -1))]


def payload(message: dict[str, Any]) -> list[Any]:
    """Arguments, keyword arguments and embedded signatures of a JSON message on Redis."""
    return json.loads(base64.b64decode(message["body"]))


def waits_in(url: str, queue: str) -> bool:
    """Whether a queue holds messages."""
    with Connection(url) as connection:
        return bool(connection.default_channel.queue_declare(queue=queue, passive=True).message_count)


def taken(url: str, queue: str = "celery") -> dict[str, Any]:
    """Take one message off a queue and show what a consumer sees of it."""
    with Connection(url) as connection:
        channel = connection.default_channel

        def get() -> Any:
            return channel.basic_get(queue)

        message = wait_until(get, timeout=DEADLINE, message=f"nothing in {queue}")
        channel.basic_ack(message.delivery_tag)
        wire = message.body if isinstance(message.body, bytes) else message.body.encode()
        properties = {k: v for k, v in message.properties.items() if k not in _PER_DELIVERY}
        info = {k: v for k, v in message.delivery_info.items() if k in {"exchange", "routing_key", "priority"}}
        return {
            "body": wire, "headers": dict(message.headers), "properties": properties, "info": info,
            "content_type": message.content_type, "content_encoding": message.content_encoding,
        }  # fmt: skip


_PER_DELIVERY = {"delivery_tag", "delivery_info"}


@contextmanager
def silent_listener() -> Iterator[int]:
    """The port of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@contextmanager
def closed_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


class Gate:
    """Holds bodies until the test lets them go."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def hold(self) -> None:
        """Called by a body: tell the test, then wait for it."""
        self.entered.set()
        assert self.opened.wait(DEADLINE)

    def await_body(self) -> None:
        assert self.entered.wait(DEADLINE), "no body came"

    def let_go(self) -> None:
        self.opened.set()
