"""What failed, across tasks: listed newest first, grouped by what failures have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger import Which
from tests.conftest import DIALECTS
from tests.ledger.failing import RARE
from tests.ledger.kit import (
    SECOND,
    boom,
    captured,
    claimed,
    gone,
    make_due,
    now,
    retry,
    running,
    succeed,
)
from tests.ledger.stock import full_scans


def fail(ledger, claim, message="card refused", *, kind="permanent", fingerprint="f1", again=None):
    failure = replace(boom(message, kind), fingerprint=fingerprint)
    ledger.settle(claim, lambda r: states.fail(r, failure, "o", owes=False, ring=30, retry=again), actor="w")


def die(ledger, message="card refused", *, kind="permanent", fingerprint="f1", **options):
    claim = running(ledger, **options)
    fail(ledger, claim, message, kind=kind, fingerprint=fingerprint)
    return claim


def again(ledger, claim):
    """The next attempt of a task that is to be retried."""
    make_due(ledger, claim.row_id, "wake_at")
    ledger.release(10, actor="s")
    return claimed(ledger, claim.task_id)


def age(ledger, message, seconds):
    """Let the failures with this message have happened so long ago."""
    f = ledger.t.failure
    earlier = f.c.occurred_at - seconds * SECOND
    ledger.db.run(lambda c: c.execute(sa.update(f).where(f.c.message == message).values(occurred_at=earlier)))


def messages(ledger, limit=50, **which):
    return [f.failure.message for f in ledger.failed(Which(**which), limit)]


def test_failures_are_told_newest_first_with_their_task(ledger):
    first, second = die(ledger, "one"), running(ledger, "order-2", task="shop.mail")
    fail(ledger, second, "two", again=retry(), kind="transient")

    newest, oldest = ledger.failed(Which(), 50)

    assert (newest.task_id, newest.task, newest.key, newest.state) == (
        second.task_id,
        "shop.mail",
        "order-2",
        "waiting",
    )
    assert (oldest.task_id, oldest.state, oldest.failure.message) == (first.task_id, "dead", "one")
    assert newest.failure == ledger.failures(second.row_id)[0]
    told = newest.as_json()
    assert (told["task_id"], told["task"], told["state"], told["kind"]) == (
        second.task_id, "shop.mail", "waiting", "transient",
    )  # fmt: skip
    assert told["retry_at"] is not None


def test_filters_and_a_limit(ledger):
    die(ledger, "a", fingerprint="f1"), die(ledger, "b", fingerprint="f2", kind="timeout")
    die(ledger, "c", fingerprint="f2", task="shop.mail"), die(ledger, "d", fingerprint="f2")

    assert messages(ledger) == ["d", "c", "b", "a"]
    assert messages(ledger, limit=2) == ["d", "c"]
    assert messages(ledger, fingerprint="f2") == ["d", "c", "b"]
    assert messages(ledger, fingerprint="f2", limit=1) == ["d"]
    assert messages(ledger, kind="timeout") == ["b"]
    assert messages(ledger, task="shop.mail") == ["c"]
    assert messages(ledger, fingerprint="f2", task="shop.charge", kind="permanent") == ["d"]
    assert messages(ledger, fingerprint="f3") == []


def test_since_is_an_age_or_a_time_on_the_ledgers_clock(ledger):
    die(ledger, "old"), die(ledger, "new")
    age(ledger, "old", 7200)

    assert messages(ledger, since=states.After(-3600)) == ["new"]
    assert messages(ledger, since=states.After(-9000)) == ["new", "old"]
    assert messages(ledger, since=states.At(now(ledger) - 3600 * SECOND)) == ["new"]
    assert messages(ledger, since=states.After(60)) == []


def test_a_kind_finds_also_those_whose_task_died_of_it(ledger):
    poison = running(ledger, max_losses=2)
    ledger.lose(poison.task_id, poison.token, gone(), owed_token="o", actor="keeper")
    second = claimed(ledger, poison.task_id)
    ledger.lose(second.task_id, second.token, gone(), owed_token="o", actor="keeper")

    assert len(ledger.failed(Which(kind="worker_lost"), 50)) == 2
    assert len(ledger.failed(Which(kind="poison"), 50)) == 1  # the last one, of which it died


def test_every_attempt_is_kept_and_found(ledger):
    claim = running(ledger)
    fail(ledger, claim, "one", again=retry())
    claim = again(ledger, claim)
    fail(ledger, claim, "two")

    assert messages(ledger) == ["two", "one"]
    assert [f.failure.claim for f in ledger.failed(Which(), 9)] == [2, 1]


def test_groups_say_how_often_since_when_and_how_many_are_dead_now(ledger):
    die(ledger, "old"), die(ledger, "new")
    age(ledger, "old", 7200)
    survivor = running(ledger)
    fail(ledger, survivor, "newer", again=retry())
    succeed(ledger, again(ledger, survivor))
    die(ledger, "another", fingerprint="f2", kind="timeout", task="shop.mail")

    first, second = ledger.failure_groups(Which(), 50)

    assert (first.fingerprint, first.kind, first.exception, first.task) == (
        "f1", "permanent", "ValueError", "shop.charge",
    )  # fmt: skip
    assert (first.count, first.dead, first.message) == (3, 2, "newer")
    assert first.last_seen - first.first_seen > 7000 * SECOND
    assert (second.count, second.dead, second.task, second.message) == (1, 1, "shop.mail", "another")
    assert first.as_json().keys() == {
        "fingerprint", "kind", "exception", "task", "count", "dead", "first_seen", "last_seen", "message",
    }  # fmt: skip


def test_a_task_is_dead_of_its_last_failure_only(ledger):
    claim = running(ledger)
    fail(ledger, claim, fingerprint="survived", again=retry())
    fail(ledger, again(ledger, claim), fingerprint="died")

    dead = {g.fingerprint: g.dead for g in ledger.failure_groups(Which(), 50)}

    assert dead == {"survived": 0, "died": 1}


def test_a_replayed_task_is_dead_no_more_and_its_failures_stay(ledger):
    claim = die(ledger)
    ledger.replay_row(claim.row_id, "fixed", actor="ann")

    (group,) = ledger.failure_groups(Which(), 50)

    assert (group.count, group.dead) == (1, 0)
    assert ledger.failed(Which(), 9)[0].state == "queued"


def test_groups_take_the_same_filters(ledger):
    die(ledger, "old", fingerprint="f1"), die(ledger, "b", fingerprint="f2"), die(ledger, "c", task="shop.mail")
    age(ledger, "old", 7200)

    def groups(limit=50, **which):
        return sorted((g.fingerprint, g.task) for g in ledger.failure_groups(Which(**which), limit))

    assert groups() == [("f1", "shop.charge"), ("f1", "shop.mail"), ("f2", "shop.charge")]
    assert groups(fingerprint="f2") == [("f2", "shop.charge")]
    assert groups(task="shop.mail") == [("f1", "shop.mail")]
    assert groups(since=states.After(-60)) == [("f1", "shop.mail"), ("f2", "shop.charge")]
    assert len(groups(limit=2)) == 2
    assert groups(kind="timeout") == []


RECENT = states.At(1_700_000_000_000_000 + 19_990 * 60_000_000)
ASKED = {
    "newest": Which(), "since": Which(since=RECENT), "fingerprint": Which(fingerprint=RARE),
    "task": Which(task="shop.charge"), "kind": Which(kind="transient"),
    "all of them": Which(task="shop.charge", kind="permanent", fingerprint=RARE, since=RECENT),
}  # fmt: skip


# The newest of all are read from the end of the index of their time, as many as are asked for.
NEWEST_FIRST = {
    "whole index durable_failure_occurred_at", "index on durable_failure by durable_failure_occurred_at",
    "SCAN durable_failure USING INDEX durable_failure_occurred_at",
}  # fmt: skip


def scanned(ledger, ask):
    with captured(ledger) as sent:
        assert ask(ledger)
    with ledger.db.engine.connect() as connection:
        scans = {x for s, p in sent if s.startswith("SELECT") for x in full_scans(connection, s, p)}
        connection.rollback()
    return scans


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_list_reads_what_it_tells_by_an_index(failing, dialect, asked):
    assert scanned(failing(dialect), lambda ledger: ledger.failed(ASKED[asked], 20)) <= NEWEST_FIRST


@pytest.mark.parametrize("asked", ["since", "fingerprint", "all of them"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_groups_read_what_they_count_by_an_index(failing, dialect, asked):
    scans = scanned(failing(dialect), lambda ledger: ledger.failure_groups(ASKED[asked], 20))
    # How the names of the tasks are found is the planner's choice: it depends on how many failures there are.
    assert not [x for x in scans if "durable_failure" in x]
