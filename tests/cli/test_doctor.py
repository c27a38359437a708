"""``durable doctor`` on real apps, ledgers and brokers: what it sees, what it prints, and that it changes nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sqlalchemy as sa
from celery import Celery
from celery.beat import BeatLazyFunc

from celery_durable import DurableTask
from celery_durable.doctor import examine, looking, of_configuration
from celery_durable.ledger import Held, Presence
from tests.cli.kit import enter
from tests.ledger import kit
from tests.worker.kit import closed

DURABLE = """
from celery_durable import DurableTask
from shop import app

print("noise from the tasks")

@app.task(name="shop.charge", base=DurableTask)
def charge():
    pass
"""


@pytest.fixture
def well(shop, ledger):
    """A deployment with a durable task, an absolute path, a broker that answers and a live worker."""
    (shop.folder / "orders.py").write_text(DURABLE)
    folders = {"data_folder_in": "m", "data_folder_out": "m", "control_folder": "c"}
    options = {name: str(shop.folder / folder) for name, folder in folders.items()}
    shop.write(broker_url="filesystem://", broker_transport_options=options, worker_prefetch_multiplier=1)
    present(ledger, f"filesystem:{shop.folder / 'm'}")
    return shop


def present(ledger, broker, worker="w1@here/x"):
    presence = Presence(
        worker, worker.partition("/")[0], 11, ["celery"], ["shop.charge"], broker, 30, "prefork", Held(7, "here")
    )
    ledger.enter(presence)


def test_a_deployment_that_is_well(well):
    answer = well.durable("doctor")
    assert (answer.code, answer.out) == (0, "Nothing is wrong.\n")
    assert well.durable("doctor", "--json").json == {"ok": True, "findings": []}


def test_warnings_are_told_and_exit_with_0(well, ledger):
    ledger.pause("queue", "celery", "provider is down", until=None, actor="ann")
    with ledger.db.engine.begin() as connection:
        connection.execute(sa.update(ledger.t.pause).values(since=ledger.t.pause.c.since - 3 * 86_400_000_000))
    well.write(broker_url="memory://", task_always_eager=True)
    document = well.durable("doctor", "--json")
    assert document.code == 0
    assert document.json["ok"] is True
    told = {f["id"]: f for f in document.json["findings"]}
    assert set(told) == {"always-eager", "broker-memory", "prefetch", "no-worker-idle", "pause-forgotten"}
    assert told["pause-forgotten"].keys() == {"id", "level", "message", "fix"}
    assert [f["level"] for f in document.json["findings"]] == ["warning"] * 3 + ["info"] * 2
    answer = well.durable("doctor")
    assert answer.code == 0
    assert "warning  pause-forgotten\n  queue 'celery' is paused by ann: provider is down" in answer.out
    assert "Fix: 'durable resume queue:celery'" in answer.out
    assert answer.out.endswith("3 warnings, 2 notes.\n")
    assert max(map(len, answer.out.splitlines())) <= 100


def test_an_error_exits_with_1(well, ledger):
    kit.queued(ledger, "order-1", broker=f"filesystem:{well.folder / 'm'}")
    enter(ledger, "w1@here/x", queues=["celery"], gone=True)
    with ledger.db.engine.begin() as connection:
        connection.execute(sa.update(ledger.t.task).values(publish_at=ledger.t.task.c.publish_at - 600_000_000))
    answer = well.durable("doctor", "--json")
    assert answer.code == 1
    assert answer.json["ok"] is False
    assert [f["id"] for f in answer.json["findings"]] == ["no-worker"]
    assert "1 row is due for 10 min" in answer.json["findings"][0]["message"]
    human = well.durable("doctor")
    assert human.code == 1
    assert human.out.endswith("1 error.\n")


@pytest.mark.parametrize(
    ("conf", "tasks", "name"),
    [
        ({"durable_lese": 3}, None, "settings"),
        ({"url": "oracle://db/shop"}, None, "settings"),
        ({}, "import no_such_module", "tasks-unimportable"),
    ],
)
def test_what_keeps_other_commands_from_starting_is_a_finding(well, conf, tasks, name):
    well.write(**conf)
    if tasks:
        (well.folder / "orders.py").write_text(tasks)
    answer = well.durable("doctor", "--json")
    assert answer.code == 1
    assert answer.json["findings"][0]["id"] == name


def test_a_ledger_that_is_not_there_is_not_made(well):
    url = f"sqlite:///{well.folder / 'other.db'}"
    well.write(url=url)
    answer = well.durable("doctor", "--json")
    assert "ledger-to-come" in [f["id"] for f in answer.json["findings"]]
    assert not (well.folder / "other.db").exists()


def test_a_file_that_is_no_ledger(well):
    well.write(url=f"sqlite:///{well.folder / 'other.db'}")
    (well.folder / "other.db").write_text("not a database, and long enough to be looked at as if it were one" * 20)
    answer = well.durable("doctor", "--json")
    assert answer.code == 1
    assert [f["id"] for f in answer.json["findings"] if f["level"] == "error"] == ["ledger-unreachable"]


def test_without_an_app(shop):
    assert shop.celery("durable", "doctor").code == 2


@pytest.fixture
def app(redis_server, tmp_path):
    made = Celery("shop", broker=redis_server.db(), set_as_current=False)
    made.conf.update(durable_ledger_url=f"sqlite:///{tmp_path / 'ledger.db'}", worker_prefetch_multiplier=1)

    @made.task(base=DurableTask, name="shop.charge")
    def charge():
        pass

    yield made
    closed(made)


def ids(app):
    return {f.id: f.level for f in examine(app)}


def test_a_redis_that_evicts(app, redis_server):
    app.conf.result_backend = redis_server.db()
    assert ids(app) == {"ledger-to-come": "info"}
    try:
        redis_server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert ids(app)["redis-eviction"] == "info"
        redis_server.ask("CONFIG", "SET", "maxmemory", "1gb")
        assert ids(app) == {"ledger-to-come": "info", "redis-eviction": "error", "redis-eviction-results": "warning"}
    finally:
        redis_server.ask("CONFIG", "SET", "maxmemory", "0")
        redis_server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


def test_a_broker_that_is_down(app, redis_server):
    redis_server.kill()
    found = looking.broker(app)
    assert "Connection" in found.problem
    assert found.url == app.conf.broker_url


def test_a_broker_on_rabbitmq(rabbitmq_server, app):
    app.conf.broker_url = rabbitmq_server.vhost()
    found = looking.broker(app)
    assert (found.problem, found.memory) == ("", None)
    assert "guest:" not in found.url.replace("guest:**", "")


def test_a_database_that_is_down(app):
    app.conf.durable_ledger_url = "postgresql://shop:secret@127.0.0.1:1/shop"
    found = {f.id: f for f in examine(app)}
    assert (
        "Connection refused" in found["ledger-unreachable"].message or "failed" in found["ledger-unreachable"].message
    )
    assert "secret" not in found["ledger-unreachable"].message


@pytest.mark.parametrize(
    ("backend", "found"),
    [
        ("durable://", None), ("redis://localhost", None),
        ("file:///tmp", "chord-polling"), ("db+sqlite://", "chord-polling"), ("rpc://", "results-rpc"), (None, None),
        ("nonsense://", None),
    ],
)  # fmt: skip
def test_how_chords_are_counted(app, backend, found):
    app.conf.result_backend = backend
    told = {f.id for f in of_configuration(app)[1]}
    assert told == ({found} if found else set())


def test_beat_with_one_key_for_all_ticks(app):
    @app.task(base=DurableTask, name="shop.report", idempotency_key="{day}")
    def report(day):
        pass

    every = {"schedule": 60.0}
    app.conf.beat_schedule = {
        "keyed": {"task": "shop.report", "args": ("today",)} | every,
        "option": {"task": "shop.charge", "options": {"idempotency_key": "nightly"}} | every,
        "lazy": {"task": "shop.report", "kwargs": {"day": BeatLazyFunc(str)}} | every,
        "without": {"task": "shop.charge"} | every,
        "stock": {"task": "shop.mail", "options": {"idempotency_key": "x"}} | every,
    }
    assert looking.configuration(app).once == ("keyed", "option")


@pytest.mark.parametrize("driver", ["redis", "psycopg", "pymysql", "django"])
def test_it_asks_for_no_driver_that_is_not_needed(driver):
    script = f"import sys; sys.modules[{driver!r}] = None; import celery_durable.cli, celery_durable.doctor"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
