"""What it costs: an idle worker's statements per interval, a task's statements on PostgreSQL."""

from __future__ import annotations

import re
import time
from collections import Counter

from kombu.transport.redis import Channel

from celery_durable import DurableTask
from tests.services import Redis
from tests.waiting import wait_until
from tests.worker.kit import migrated, redis_of, rows, settled, statements, the_ledger, working

INTERVAL = 0.2


def test_an_idle_worker_asks_little(make):
    app = make(durable_sweep_interval=INTERVAL, durable_lease=6)

    @app.task(base=DurableTask)
    def work(): ...

    with working(app):
        settled(app, work.delay())
        with statements(app) as sent:
            begun = time.monotonic()
            wait_until(lambda: len(sent) >= 10, timeout=30)
            wait_until(lambda: time.monotonic() - begun > 10 * INTERVAL, timeout=30)
            intervals = (time.monotonic() - begun) / INTERVAL

    asked = [s for s in sent if not s.startswith(("BEGIN", "PRAGMA"))]
    assert len(asked) / intervals <= 3


def test_a_task_costs_three_statements_on_postgresql(make, postgres_server):
    """Submit, claim and succeed: one each, history row included, as the server itself saw them."""
    url = postgres_server.database()
    app = migrated(make(ledger_url=url, durable_sweep_interval=6, durable_lease=60))
    name = url.rpartition("/")[2]

    @app.task(base=DurableTask, bind=True)
    def work(self):
        return self.fence

    with working(app):
        settled(app, work.delay())
        postgres_server.sql(f"ALTER DATABASE {name} SET log_statement = 'all'")
        the_ledger(app).db.dispose()
        before = len(postgres_server.log)
        for _ in range(10):
            work.delay()
        wait_until(lambda: all(r.state == "succeeded" for r in rows(app)), timeout=30)
        logged = postgres_server.log[before:]

    seen = re.findall(r"LOG:  (?:statement|execute [^:]+): (\w+)([^\n]*)", logged)
    writes = [rest for verb, rest in seen if verb == "WITH"]
    assert len(writes) == 30, writes
    assert not [verb for verb, _ in seen if verb in {"INSERT", "UPDATE", "DELETE"}]
    assert logged.count("INSERT INTO durable_task ") == 10


def test_a_task_costs_redis_a_push_and_a_pop(make):
    """No transaction that keeps a copy of its message while a worker has it, and none that forgets it."""
    with Redis() as server:  # that no other test has anything to do with
        _counts(make(broker=server.db()), redis_of(server.db()))


def _counts(app, client):

    @app.task(base=DurableTask)
    def work(): ...

    def calls() -> Counter[str]:
        return Counter({name.removeprefix("cmdstat_"): s["calls"] for name, s in client.info("commandstats").items()})

    with working(app):
        settled(app, work.delay())
        before = calls()
        for _ in range(10):
            work.delay()
        wait_until(lambda: all(r.state == "succeeded" for r in rows(app)), timeout=30)
        spent = calls() - before

    assert {name: spent[name] for name in ("lpush", "zadd", "hset", "zrem", "hdel", "sadd", "exec")} == {
        "lpush": 10, "zadd": 0, "hset": 0, "zrem": 0, "hdel": 0, "sadd": 0, "exec": 0,
    }  # fmt: skip


def test_a_publisher_of_ours_makes_one_client_of_redis(make, monkeypatch):
    app, made = make(), []
    original = Channel._create_client
    monkeypatch.setattr(Channel, "_create_client", lambda self, **o: (made.append(1), original(self, **o))[1])

    @app.task(base=DurableTask)
    def work(): ...

    work.delay()
    first = len(made)
    for _ in range(5):
        work.delay()

    assert len(made) == first
