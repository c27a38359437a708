"""Every finding of the doctor: what brings it about, what does not, and that it is documented."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import celery_durable
from celery_durable.doctor import broker, configuration, database, healthy, in_order, summary, work
from celery_durable.doctor.facts import BrokerSeen, Configuration, LedgerSeen, Memory, TaskSeen
from celery_durable.doctor.findings import Finding
from celery_durable.doctor.looking import filesystem
from celery_durable.overview import Count, Setup, Standing
from celery_durable.records import Pause, Worker
from celery_durable.settings import Settings

ROOT = Path(celery_durable.__file__).parent
SECOND, DAY = 1_000_000, 86_400_000_000
NOW = 30_000 * DAY
URL = "postgresql+psycopg://db/shop"

WELL = Configuration(
    settings=Settings(ledger_url=URL), resolved_url=URL, tasks=(TaskSeen(name="shop.pay"),), prefetch=1,
    backend="durable"
)  # fmt: skip
W1 = Worker(
    id="w1@a/x", hostname="w1@a", pid=1, queues=("celery",), tasks=(), broker="redis:0", started_at=NOW,
    phase="running",
    heartbeat_at=NOW, running=0, lease=30.0, now=NOW, pool="prefork", lock=7,
)  # fmt: skip
LATE = Standing(Count(3), 90.0, [], Count(0))
IDLE = Standing(Count(0), 0.0, [("celery", 2)], Count(0))
POSTGRESQL = Setup(
    "PostgreSQL", variables={"fsync": "on", "synchronous_commit": "on", "transaction_read_only": "off",
                             "default_transaction_isolation": "read committed"},
)  # fmt: skip
MARIADB = Setup(
    "MariaDB", (10, 11, 6), {"innodb_flush_log_at_trx_commit": "1", "sql_mode": "STRICT_TRANS_TABLES,X",
    "read_only": "0",
                             "max_allowed_packet": "16777216"},
)  # fmt: skip
SQLITE = Setup("SQLite", variables={"journal_mode": "wal"})
LEDGER = LedgerSeen(
    name=URL, migrate="durable migrate", known=("0001", "0002"), revision="0002", max_message_bytes=2**20,
    setup=POSTGRESQL,
    broker="redis:0", workers=(W1,), standing=IDLE, dead=Count(0),
)  # fmt: skip
BROKER = BrokerSeen(url="redis://db/0", memory=Memory(policy="noeviction", limit=10), results=None)
PAUSE = Pause("queue", "mail", "provider is down", "ann", NOW - 3 * DAY, None, NOW)


def seen(**changes):
    return replace(WELL, **changes)


def settings(**changes):
    return Settings(**({"ledger_url": URL} | changes))


def task(**options):
    return seen(tasks=(TaskSeen(**({"name": "shop.pay"} | options)),))


def set_up(setup, **variables):
    return replace(LEDGER, setup=replace(setup, variables={**setup.variables, **variables}))


def judged(facts):
    if isinstance(facts, Configuration):
        return list(configuration.judge(facts))
    if isinstance(facts, BrokerSeen):
        return list(broker.judge(facts))
    return [*database.judge(facts), *work.judge(facts)]


def test_nothing_is_wrong():
    for facts in (WELL, LEDGER, BROKER, replace(LEDGER, setup=MARIADB), replace(LEDGER, setup=SQLITE)):
        assert judged(facts) == []


CASES = [
    # The configuration
    ("settings", "error", seen(settings=None, problem="durable_lease is -1: it must be greater than 0."), "-1"),
    ("tasks-unimportable", "error", seen(unimportable="ImportError: no orders", tasks=()), "ImportError: no orders"),
    ("nothing-durable", "warning", task(durable=False, acks_late=False), "(1 stock ones)"),
    ("always-eager", "warning", seen(eager=True), "in the caller"),
    ("serializer", "error", seen(serializer="pickle", accepted=False), "'pickle', which accept_content (json)"),
    ("async-task", "error", task(asynchronous=True), "shop.pay: async def"),
    ("beat-runs-once", "warning", seen(once=["nightly"]), "nightly in beat_schedule"),
    ("acks-early", "warning", task(acks_late=False), "shop.pay: acks_late is False"),
    ("reject-on-worker-lost", "info", task(reject_on_worker_lost=True), "means nothing"),
    ("task-lease", "error", task(lease=2.0), "shop.pay (2 s)"),
    ("sqlite-memory", "error", seen(settings=settings(ledger_url="sqlite://"), resolved_url="sqlite://"), "gone with"),
    ("sqlite-relative",
     "warning", seen(settings=settings(ledger_url="sqlite:///l.db"), resolved_url="sqlite:////s/l.db"),
     "here /s/l.db"),
    ("broker-memory", "warning", seen(transport="memory"), "memory://"),
    ("broker-untested", "warning", seen(transport="sqs"), "'sqs'"),
    ("visibility-timeout", "warning", seen(visibility_timeout=20.0), "20 s, shorter than the longest lease"),
    ("visibility-timeout", "warning", task(time_limit=7200.0), "3600 s, shorter than the longest time limit"),
    ("visibility-timeout-stock", "warning", seen(tasks=(*WELL.tasks, TaskSeen(name="mail", durable=False))), "mail"),
    ("pool-untested", "warning", seen(pool="eventlet"), "'eventlet'"),
    ("prefetch", "info", seen(prefetch=4), "is 4"),
    ("prefetch", "info", seen(prefetch=0), "without limit"),
    ("results-in-memory", "warning", seen(backend="cache+memory"), "cache+memory://"),
    ("results-rpc", "info", seen(backend="rpc"), "rpc://"),
    ("chord-counts-twice", "warning", seen(backend="django-db", chords="counts"), "is django-db, which counts"),
    ("chord-polling", "warning", seen(backend="db+postgresql", chords="polled"), "is db+postgresql,"),
    # The database
    ("ledger-unreachable", "error", replace(LEDGER, problem="The ledger x did not answer.", setup=None),
     "did not answer"),
    ("ledger-unmigrated", "error", replace(LEDGER, revision=None, setup=None), URL),
    ("ledger-older", "error", replace(LEDGER, revision="0001", setup=None), "0001, this celery-durable needs 0002"),
    ("ledger-newer", "error", replace(LEDGER, revision="0003", setup=None), "0003, newer than 0002"),
    ("ledger-to-come", "info", replace(LEDGER, revision=None, setup=None, migrates_itself=True), "not there yet"),
    ("ledger-to-come", "info", replace(LEDGER, revision="0001", setup=None, migrates_itself=True), "0001, not 0002"),
    ("clock", "warning", replace(LEDGER, setup=replace(POSTGRESQL, ahead=-7.25)), "7.2 s behind"),
    ("sqlite-not-wal", "warning", set_up(SQLITE, journal_mode="delete"), "journal_mode delete"),
    ("sqlite-network", "error", replace(LEDGER, setup=SQLITE, filesystem="nfs4"), "(nfs4)"),
    ("sqlite-several-hosts", "error", replace(LEDGER, setup=SQLITE, workers=(W1, replace(W1, hostname="w@b"))),
     "(a, b)"),
    ("postgresql-fsync", "error", set_up(POSTGRESQL, fsync="off"), "fsync = off"),
    ("postgresql-synchronous-commit", "error", set_up(POSTGRESQL, synchronous_commit="off"),
     "synchronous_commit = off"),
    ("ledger-read-only", "error", set_up(POSTGRESQL, transaction_read_only="on"), "no writes"),
    ("ledger-read-only", "error", set_up(MARIADB, read_only="1"), "no writes"),
    ("isolation", "warning", set_up(POSTGRESQL, default_transaction_isolation="serializable"), "serializable"),
    ("mysql-version", "error", replace(LEDGER, setup=replace(MARIADB, version=(10, 5, 9))), "version 10.5.9"),
    ("mysql-engine", "error", replace(LEDGER, setup=replace(MARIADB, not_transactional=["durable_task"])),
     "durable_task"),
    ("mysql-flush", "error", set_up(MARIADB, innodb_flush_log_at_trx_commit="2"), "is 2"),
    ("mysql-strict", "warning", set_up(MARIADB, sql_mode=""), "STRICT_TRANS_TABLES"),
    ("mysql-packet", "warning", set_up(MARIADB, max_allowed_packet="1048576"), "1048576 bytes"),
    # The work
    ("no-worker", "error", replace(LEDGER, standing=LATE, workers=()), "3 rows are due for 90 s"),
    ("no-worker", "error", replace(LEDGER, standing=LATE, workers=(replace(W1, broker="amqp:/"),)),
     "1 worker of other"),
    ("no-worker-idle", "info", replace(LEDGER, workers=(replace(W1, phase="stopped"),)), "No worker"),
    ("sweeps-late", "warning", replace(LEDGER, standing=LATE), "and 1 worker"),
    ("queue-unconsumed", "warning", replace(LEDGER, standing=replace(IDLE, queues=[("mail", 2)])),
     "2 tasks in queue 'mail'"),
    ("tasks-unregistered", "warning", replace(LEDGER, standing=replace(IDLE, unregistered=Count(1))), "1 task waits"),
    ("lease-differs", "warning", replace(LEDGER, lease=60.0), "60 s here, and another one for w1@a (30 s)"),
    ("worker-pool", "warning", replace(LEDGER, workers=(replace(W1, pool="eventlet"),)), "eventlet"),
    ("worker-without-lock", "info", replace(LEDGER, workers=(replace(W1, lock=None),)), "w1@a: holds no lock"),
    ("pause-forgotten", "warning", replace(LEDGER, pauses=(PAUSE,)),
     "paused by ann: provider is down; that was 3 d ago"),
    ("dead-tasks", "warning", replace(LEDGER, dead=Count(1)), "1 task is dead"),
    ("dead-tasks", "warning", replace(LEDGER, dead=Count(10_000, more=True)), "10,000+ tasks are dead"),
    # The broker
    ("broker-unreachable", "error", replace(BROKER, problem="ConnectionError: refused", memory=None),
     "ConnectionError"),
    ("redis-eviction", "error", replace(BROKER, memory=Memory(policy="allkeys-lru", limit=10)), "allkeys-lru"),
    ("redis-eviction", "warning", replace(BROKER, memory=Memory(policy="volatile-ttl", limit=10)), "volatile-ttl"),
    ("redis-eviction", "info", replace(BROKER, memory=Memory(policy="allkeys-lru", limit=0)), "no memory limit"),
    ("redis-eviction-results", "warning", replace(BROKER, results=Memory(policy="allkeys-lfu", limit=10)),
     "allkeys-lfu"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "level", "facts", "told"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_a_finding(name, level, facts, told):
    found = judged(facts)
    assert [(f.id, f.level) for f in found] == [(name, level)]
    assert told in found[0].message
    assert found[0].message.endswith(".")
    assert found[0].fix.endswith(".")


@pytest.mark.parametrize(
    "facts",
    [
        seen(hosted=True, settings=settings(ledger_url="sqlite:////s/shop.db"), resolved_url="sqlite:////s/shop.db"),
        seen(settings=settings(observe=("*",)), tasks=(TaskSeen(name="mail", durable=False, acks_late=False),)),
        seen(tasks=(*WELL.tasks, TaskSeen(name="mail", durable=False, time_limit=60.0))),  # it ends before Redis minds
        seen(tasks=(*WELL.tasks, TaskSeen(name="celery.chord_unlock")), backend="db+sqlite", chords="polled"),
        seen(backend=""),
        seen(pool="my.pools:Pool"),
        seen(transport="amqp", visibility_timeout=1.0),
        task(lease=3.0),
        replace(LEDGER, pauses=(replace(PAUSE, until=NOW + DAY), replace(PAUSE, since=NOW - DAY // 2))),
        replace(LEDGER, setup=SQLITE, workers=(W1, replace(W1, hostname="w2@a"), replace(W1, hostname="w@b",
            phase="stopped"))),
        replace(LEDGER, setup=replace(POSTGRESQL, ahead=1.9)),
        set_up(POSTGRESQL, synchronous_commit="local"),
        replace(BROKER, results=Memory(policy="allkeys-lru", limit=0)),
    ],
)  # fmt: skip
def test_what_is_no_finding(facts):
    assert judged(facts) == []


def test_the_worst_comes_first():
    found = [Finding("a", "info", "", ""), Finding("b", "error", "", ""), Finding("c", "warning", "", "")] * 2
    assert [f.id for f in in_order(found)] == ["b", "b", "c", "c", "a", "a"]
    assert summary(found) == "2 errors, 2 warnings, 2 notes"
    assert not healthy(found)
    assert healthy([f for f in found if f.level != "error"])


MOUNTS = "/dev/sda / ext4 rw 0 0\nnas:/x /srv/my\\040data nfs4 rw 0 0\ntmpfs /srv/my\\040data/tmp tmpfs rw 0 0\n\n"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/my data/l.db", "nfs4"), ("/srv/my data/tmp/l.db", "tmpfs"), ("/srv/my datas/l.db", "ext4"), ("/l.db",
        "ext4"),
    ],
)  # fmt: skip
def test_the_file_system_of_a_path(path, kind):
    assert filesystem(path, MOUNTS) == kind
    assert filesystem(path, "") == ""


def ids(*files):
    made = r"(?<!\.)(?:error|warning|info)\(\s*\"([a-z-]+)\""
    return {name for file in files for name in re.findall(made, file.read_text())} | {"redis-eviction"}


def test_every_finding_has_a_case():
    assert {case[0] for case in CASES} == ids(*(ROOT / "doctor").glob("*.py"))


def test_every_finding_is_documented():
    repository = ROOT.parent.parent
    known = ids(*(ROOT / "doctor").glob("*.py"), *(ROOT / "contrib/django").glob("*.py")) | {"django-other-database"}
    told = re.findall(r"^\| `([a-z-]+)` \| (\w+)", (repository / "docs/doctor.md").read_text(), re.MULTILINE)
    assert {name for name, _ in told} == known
    assert {(case[0], case[1]) for case in CASES} - set(told) == {
        ("redis-eviction", "warning"),
        ("redis-eviction", "info"),
    }
