"""The registry: who is there, what it consumes, when it last said so."""

from __future__ import annotations

import sqlalchemy as sa

from celery_durable.ledger import Presence
from celery_durable.ledger.registry import FORGET_AFTER
from tests.ledger.kit import SECOND


def presence(name="w1", **other):
    given = {
        "hostname": "celery@w1",
        "pid": 7,
        "queues": ["celery", "slow"],
        "tasks": ["t"],
        "broker": "b",
        "lease": 30.0,
    }
    return Presence(id=name, **(given | other))


def age(ledger, name, seconds):
    w = ledger.t.worker
    silent = sa.update(w).where(w.c.id == name).values(heartbeat_at=w.c.heartbeat_at - round(seconds * SECOND))
    ledger.db.run(lambda c: c.execute(silent))


def test_a_worker_enters_and_is_listed(ledger):
    ledger.enter(presence())

    (worker,) = ledger.workers()
    assert (worker.id, worker.hostname, worker.pid, worker.queues, worker.tasks) == (
        "w1", "celery@w1", 7, ("celery", "slow"), ("t",),
    )  # fmt: skip
    assert (worker.broker, worker.phase, worker.running, worker.lease) == ("b", "starting", 0, 30.0)
    assert worker.started_at <= worker.heartbeat_at <= worker.now
    assert worker.live


def test_a_beat_tells_phase_and_load(ledger):
    ledger.enter(presence())
    age(ledger, "w1", 50)

    assert ledger.beat("w1", phase="running", running=3)

    (worker,) = ledger.workers()
    assert (worker.phase, worker.running) == ("running", 3)
    assert worker.now - worker.heartbeat_at < 10 * SECOND


def test_a_beat_tells_what_is_consumed_by_now(ledger):
    ledger.enter(presence())

    ledger.beat("w1", phase="running", running=0, queues=["mail"])
    assert [w.queues for w in ledger.workers()] == [("mail",)]
    ledger.beat("w1", phase="stopped", running=0)
    assert [w.queues for w in ledger.workers()] == [("mail",)]


def test_a_beat_of_a_worker_without_a_row_says_so(ledger):
    assert not ledger.beat("w1", phase="running", running=3)
    assert ledger.workers() == []


def test_the_same_beat_twice_is_still_heard(ledger):
    """A database that counts changed rows instead of matched ones would call the second one unheard."""
    ledger.enter(presence())

    assert ledger.beat("w1", phase="running", running=0)
    assert ledger.beat("w1", phase="running", running=0)


def test_entering_again_replaces_the_row(ledger):
    ledger.enter(presence(pid=7))
    ledger.enter(presence(pid=8))

    assert [w.pid for w in ledger.workers()] == [8]


def test_a_silent_worker_is_gone_and_after_a_day_forgotten(ledger):
    ledger.enter(presence("silent"))
    age(ledger, "silent", 61)
    assert not ledger.workers()[0].live
    assert ledger.workers()[0].as_json()["phase"] == "gone"

    age(ledger, "silent", FORGET_AFTER)
    ledger.enter(presence("fresh"))

    assert [w.id for w in ledger.workers()] == ["fresh"]


def test_the_last_heard_of_comes_first(ledger):
    for name, silence in (("a", 20), ("b", 0), ("c", 10)):
        ledger.enter(presence(name))
        age(ledger, name, silence)

    assert [w.id for w in ledger.workers()] == ["b", "c", "a"]


def test_the_json_of_a_worker_is_the_contract(ledger):
    ledger.enter(presence())

    told = ledger.workers()[0].as_json()

    assert list(told) == ["id", "hostname", "pid", "queues", "started_at", "heartbeat_at", "phase", "running", "pool"]
    assert told["queues"] == ["celery", "slow"]
