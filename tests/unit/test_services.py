"""The private servers: they start, answer, keep their data through a SIGKILL, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import psycopg
import pymysql
import pytest
from kombu import Connection, Consumer, Exchange, Queue
from sqlalchemy import create_engine, inspect, text

from tests.services import MariaDB, Postgres, RabbitMQ, Redis
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
KINDS = [Redis, RabbitMQ, Postgres, MariaDB]
FIXTURES = ["redis_server", "rabbitmq_server", "postgres_server", "mariadb_server"]
DURABLE = Queue("kept", Exchange("kept", type="direct"), routing_key="kept", durable=True)


def send(url, body):
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        connection.Producer().publish(body, exchange=DURABLE.exchange, routing_key="kept", declare=[DURABLE])


def receive(url, options=None):
    got = []

    def on_message(body, message):
        message.ack()
        got.append(body)

    with (
        Connection(url, transport_options=options or {}) as connection,
        Consumer(connection, [DURABLE], callbacks=[on_message]),
    ):
        connection.drain_events(timeout=10)
    return got


@pytest.fixture(params=FIXTURES)
def server(request):
    return request.getfixturevalue(request.param)


def test_server_runs_in_a_directory_of_its_own(server):
    assert server.running
    assert server.processes
    assert server.directory.is_dir()


def test_start_while_it_runs_changes_nothing(server):
    before = server.processes[0].pid
    server.start()
    assert server.processes[0].pid == before


def test_redis_keeps_its_data_through_a_kill_and_forgets_by_flush(redis_server):
    url = redis_server.db()
    send(url, {"n": 1})
    redis_server.kill()
    assert not redis_server.running
    redis_server.start()
    assert receive(url) == [{"n": 1}]
    send(url, {"n": 2})
    redis_server.flush()
    assert redis_server.ask("DBSIZE") == ":0"


def test_redis_gives_a_fresh_database_each_time(redis_server):
    assert len({redis_server.db() for _ in range(10)}) == 10


def test_rabbitmq_keeps_confirmed_messages_through_a_kill(rabbitmq_server):
    url = rabbitmq_server.vhost()
    send(url, {"n": 1})
    rabbitmq_server.kill()
    assert not rabbitmq_server.running
    rabbitmq_server.start()
    assert receive(url) == [{"n": 1}]


def test_rabbitmq_gives_a_fresh_virtual_host_each_time(rabbitmq_server):
    urls = {rabbitmq_server.vhost() for _ in range(10)}
    assert len(urls) == 10
    for url in urls:
        with Connection(url) as connection:
            connection.ensure_connection(max_retries=1)


@pytest.mark.parametrize("fixture", ["postgres_server", "mariadb_server"])
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_sql_server_keeps_commits_through_kill_and_stop(request, fixture, end):
    server = request.getfixturevalue(fixture)
    engine = create_engine(server.database(), pool_pre_ping=True)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept (n INTEGER)"))
        connection.execute(text("INSERT INTO kept VALUES (7)"))
    getattr(server, end)()
    assert not server.running
    server.start()
    with engine.begin() as connection:
        assert connection.execute(text("SELECT n FROM kept")).scalar_one() == 7
    engine.dispose()


@pytest.mark.parametrize("fixture", ["postgres_server", "mariadb_server"])
def test_a_database_is_dropped_whoever_is_inside(request, fixture):
    server = request.getfixturevalue(fixture)
    url = server.database()
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE held (n INTEGER)"))
        connection.commit()
        connection.execute(text("SELECT * FROM held"))  # the transaction stays open
        server.drop(url)
        connection.invalidate()
    engine.dispose()


def test_postgres_is_durable(postgres_server):
    with psycopg.connect(postgres_server.url.replace("+psycopg", "")) as connection:
        for name in ["fsync", "synchronous_commit", "full_page_writes"]:
            assert connection.execute(f"SHOW {name}").fetchone() == ("on",)


def test_mariadb_is_durable_and_innodb(mariadb_server):
    with (
        pymysql.connect(host="127.0.0.1", port=mariadb_server.port, user="durable") as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT @@innodb_flush_log_at_trx_commit, @@default_storage_engine")
        assert cursor.fetchone() == (1, "InnoDB")


def test_paused_server_accepts_and_stays_silent_until_resumed(redis_server):
    redis_server.pause()
    with pytest.raises(TimeoutError):
        redis_server.ask("PING", timeout=0.5)
    redis_server.resume()
    assert redis_server.ask("PING") == "+PONG"


@pytest.mark.parametrize("kind", [Redis, Postgres, MariaDB, RabbitMQ])
def test_close_leaves_nothing(request, kind):
    request.getfixturevalue(FIXTURES[KINDS.index(kind)])  # skips or fails where the program is missing
    server = kind().start()
    processes = server.processes
    server.close()
    assert not any(process.is_running() for process in processes)
    assert not server.directory.exists()


OWNER = """
    import time
    from tests.services import {kind}
    server = {kind}().start()
    print(server.directory, *[process.pid for process in server.processes], flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize("kind", [Redis, Postgres, RabbitMQ])
def test_nothing_survives_a_killed_owner(request, kind):
    request.getfixturevalue(FIXTURES[KINDS.index(kind)])
    script = textwrap.dedent(OWNER.format(kind=kind.__name__))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        directory, *pids = owner.stdout.readline().split()
        assert pids
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids), 30, f"{kind.name} outlived its owner")
    wait_until(lambda: not Path(directory).exists(), 10, "the directory outlived its owner")


def test_ledger_url_is_an_empty_database(ledger_url):
    engine = create_engine(ledger_url)
    assert inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE mine (n INTEGER)"))
    engine.dispose()


@pytest.mark.parametrize("again", [1, 2])
def test_broker_is_empty_and_carries_a_message(broker, again):
    options = broker.conf.get("broker_transport_options", {})
    with Connection(broker.url, transport_options=options) as connection:
        producer = connection.Producer()
        producer.publish({"again": again}, exchange=DURABLE.exchange, routing_key="kept", declare=[DURABLE])
    assert receive(broker.url, options) == [{"again": again}]


def test_seed_is_a_number(seed):
    assert seed >= 0


def test_wait_until_returns_what_came_true():
    answers = iter([None, 0, "yes"])
    assert wait_until(lambda: next(answers), 5) == "yes"


def test_wait_until_says_what_did_not_come():
    began = time.monotonic()
    with pytest.raises(AssertionError, match="the moon did not fall"):
        wait_until(lambda: False, 0.1, "the moon did not fall")
    assert time.monotonic() - began < 5
