"""prune: what is long over keeps its key and loses the rest; what is live, owed or followed keeps everything."""

from __future__ import annotations

import itertools

import pytest
import sqlalchemy as sa

from celery_durable import failpoints, states
from celery_durable.errors import BadRequest, KeyConflict
from celery_durable.ledger import Aged, Casualties
from celery_durable.ledger.results import TASK, Stored
from celery_durable.steps import Content
from tests.ledger.kit import (
    Background,
    cancelled,
    captured,
    change,
    claimed,
    dead,
    lock,
    opened,
    queued,
    row_of,
    rows,
    running,
    seconds_ahead,
    submission,
    succeed,
    succeeded,
    transaction,
    verbs,
    waiting,
)
from tests.ledger.stock import full_scans

NOW = states.After(60)  # everything that is over has been for longer
ALL = tuple(sorted(states.TERMINAL))


def prune(ledger, *, chosen=ALL, batch=100, before=NOW, **which):
    return sum(ledger.prune(Aged(before=before, states=chosen, **which), batch=batch))


def left_of(ledger, row_id):
    """How many rows of other tables a task still has."""
    tables = (ledger.t.event, ledger.t.failure, ledger.t.step, ledger.t.signal)
    counts = [sa.select(sa.func.count()).select_from(t).where(t.c.task_row == row_id).scalar_subquery() for t in tables]
    return tuple(ledger.db.run(lambda c: c.execute(sa.select(*counts)).one(), read_only=True))


def full(ledger, key=None):
    """A success that has left something in every table."""
    claim = running(ledger, key)
    ledger.record_step(claim, "a", Content(b"1", "application/json"), seconds=0.1, actor="w")
    ledger.send_event(claim.row_id, "go", "{}", actor="ann")
    succeed(ledger, claim, b"x" * 100)
    ledger.keep_result(TASK, claim.task_id, Stored("SUCCESS", b"1", "application/json"))
    return claim


def test_what_is_over_keeps_its_id_key_and_outcome_and_nothing_else(ledger):
    claim = full(ledger, "order-1")
    before = row_of(ledger, claim.row_id)

    assert prune(ledger) == 1

    row = row_of(ledger, claim.row_id)
    kept = ("task_id", "task", "key_digest", "idempotency_key", "state", "claims", "finished_at")
    assert [getattr(row, n) for n in kept] == [getattr(before, n) for n in kept]
    assert (row.envelope, bytes(row.body), row.result, row.result_type) == ("", b"", None, None)
    assert left_of(ledger, claim.row_id) == (0, 0, 0, 0)
    assert ledger.seen([claim.task_id])[claim.task_id].stored is None
    assert ledger.message(row.id) is None
    assert not ledger.verify()


def test_a_pruned_key_that_is_done_never_runs_again(ledger):
    claim = succeeded(ledger, "order-1")
    prune(ledger)

    again = ledger.submit(submission("order-1"))
    late = ledger.claim(claim.task_id, "t", owner="w", pid=1, lease=30)

    assert (again.outcome, again.task_id, again.publish) == ("existing", claim.task_id, False)
    assert (late.claim, late.why) == (None, "done")
    with pytest.raises(KeyConflict):
        ledger.submit(submission("order-1"), on_conflict="raise")
    with pytest.raises(KeyConflict):
        ledger.submit(submission("order-1", awaited=True), on_conflict="raise")


def test_whoever_awaits_a_pruned_key_follows_it(ledger):
    claim = succeeded(ledger, "order-1")
    prune(ledger)

    alias = ledger.submit(submission("order-1", awaited=True))
    ledger.follow(10, actor="s")

    assert (alias.outcome, row_of(ledger, alias.row_id).state) == ("alias", "succeeded")
    assert row_of(ledger, claim.row_id).pruned_at is not None


@pytest.mark.parametrize("make", [queued, waiting, running])
def test_what_is_live_is_not_touched(ledger, make):
    make(ledger)
    before = rows(ledger)

    assert prune(ledger) == 0
    assert rows(ledger) == before


def test_what_owes_an_outcome_is_not_touched(ledger):
    claim = succeeded(ledger, owes=True)

    assert prune(ledger) == 0
    ledger.clear_continuations({claim.task_id: claim.token})
    assert prune(ledger) == 1


def test_what_a_live_alias_follows_is_not_touched(ledger):
    first = succeeded(ledger, "order-1")
    alias = ledger.submit(submission("order-1", awaited=True))

    assert prune(ledger) == 0
    ledger.follow(10, actor="s")
    assert row_of(ledger, alias.row_id).result == row_of(ledger, first.row_id).result == b"42"
    assert prune(ledger) == 2


def test_only_what_is_old_enough_of_the_states_and_the_task_that_were_named(ledger):
    old, young = succeeded(ledger), succeeded(ledger)
    other, died = succeeded(ledger, task="shop.refund"), dead(ledger)
    for claim in (old, other, died):
        change(ledger, claim.row_id, finished_at=ledger.dialect.clock_sql - 3600 * 1_000_000)
    hour = states.After(-1800)

    assert ledger.count_prunable(Aged(before=hour)) == 2
    assert prune(ledger, before=hour, chosen=("succeeded",), task="shop.charge") == 1
    assert row_of(ledger, old.row_id).pruned_at is not None
    assert prune(ledger, before=hour, chosen=("succeeded", "cancelled")) == 1
    assert prune(ledger, before=hour, chosen=("dead",)) == 1
    assert row_of(ledger, young.row_id).pruned_at is None
    at = states.At(row_of(ledger, young.row_id).finished_at)
    assert prune(ledger, before=at) == 0
    assert prune(ledger, before=states.At(at.micros + 1)) == 1


def test_what_was_only_observed_goes_altogether(ledger):
    claim = succeeded(ledger)
    change(ledger, claim.row_id, observed=1, claim_token=None)

    assert prune(ledger) == 1
    assert not rows(ledger)
    assert left_of(ledger, claim.row_id) == (0, 0, 0, 0)


def test_the_dead_keep_their_last_failure_and_are_not_replayed(ledger):
    claim = dead(ledger, "order-1")
    prune(ledger)

    assert left_of(ledger, claim.row_id) == (0, 1, 0, 0)
    with pytest.raises(BadRequest, match="pruned"):
        ledger.replay_row(claim.row_id, "why not", actor="ann")
    which = Casualties(task="shop.charge")
    assert ledger.count_dead(which) == 0
    assert not list(ledger.replay_all(which, "all", actor="ann"))
    assert not ledger.verify()


@pytest.mark.parametrize("make", [dead, cancelled])
def test_submitting_a_pruned_key_that_is_not_done_brings_it_back_with_the_new_message(ledger, make):
    make(ledger, "order-1")
    prune(ledger)

    again = ledger.submit(submission("order-1", body=b"[[7],{},{}]"))

    assert (again.outcome, again.publish) == ("replayed", True)
    row = row_of(ledger, again.row_id)
    assert (row.state, row.pruned_at, bytes(row.body)) == ("queued", None, b"[[7],{},{}]")
    succeed(ledger, claimed(ledger, row.task_id))
    assert verbs(ledger, row.id) == ["prune", "replay", "claim", "succeed"]
    assert not ledger.verify()
    assert prune(ledger) == 1


def test_batches_are_small_and_a_second_run_finds_nothing(ledger):
    for _ in range(7):
        succeeded(ledger)
    dead(ledger)

    which = Aged(before=NOW)
    assert list(ledger.prune(which, batch=3)) == [3, 3, 1]
    assert list(ledger.prune(which, batch=3)) == []
    assert prune(ledger) == 1


def test_ends_at_the_same_instant_are_all_found(ledger):
    claims = [succeeded(ledger) for _ in range(5)]
    for claim in claims:
        change(ledger, claim.row_id, finished_at=1)

    assert list(ledger.prune(Aged(before=NOW), batch=2)) == [2, 2, 1]


@pytest.mark.parametrize("point", ["statement", "commit"])
@pytest.mark.parametrize("after", ["", "execute-then-"])
def test_a_crash_leaves_each_row_whole_or_pruned(ledger, point, after, monkeypatch):
    claims = [full(ledger) for _ in range(4)]
    strike = failpoints.strike
    count = itertools.count()
    died = []

    def dies(name, **how):
        if name == f"prune_batch.{point}" and how.get("after", False) == bool(after) and next(count) == 3:
            died.append(name)
            raise ZeroDivisionError
        strike(name, **how)

    monkeypatch.setattr(failpoints, "strike", dies)
    monkeypatch.setattr(failpoints, "armed", lambda: True)
    other = opened(ledger.db.url.render_as_string(hide_password=False))
    try:
        with pytest.raises(ZeroDivisionError):
            list(other.prune(Aged(before=NOW), batch=1))
    finally:
        other.db.dispose()
    assert died
    monkeypatch.undo()

    for claim in claims:
        pruned = row_of(ledger, claim.row_id).pruned_at is not None
        assert left_of(ledger, claim.row_id) == ((0, 0, 0, 0) if pruned else (4, 0, 1, 1))
    prune(ledger)
    assert all(left_of(ledger, claim.row_id) == (0, 0, 0, 0) for claim in claims)


def test_a_row_in_somebody_elses_hands_is_passed_by(ledger):
    if not ledger.dialect.skip_locked:
        pytest.skip("one writer at a time")
    held, free = succeeded(ledger), succeeded(ledger)
    with transaction(ledger) as connection:
        lock(ledger, connection, held.row_id)
        assert Background(lambda: prune(ledger)).answer(20) == 1
    assert row_of(ledger, free.row_id).pruned_at is not None
    assert prune(ledger) == 1


def test_keys_go_only_after_their_retention(ledger):
    old, young, whole = succeeded(ledger, "old"), succeeded(ledger, "young"), succeeded(ledger, "whole")
    died = dead(ledger, "dead")
    for claim in (old, died, whole):
        change(ledger, claim.row_id, finished_at=ledger.dialect.clock_sql - 3600 * 1_000_000)
    change(ledger, whole.row_id, task="shop.refund")
    prune(ledger, task="shop.charge")

    assert sum(ledger.forget_keys(1800)) == 2

    assert [r.task_id for r in rows(ledger)] == [young.task_id, whole.task_id]
    assert left_of(ledger, died.row_id) == (0, 0, 0, 0)
    assert ledger.submit(submission("old")).outcome == "new"
    assert ledger.submit(submission("young")).outcome == "existing"
    assert not ledger.verify()


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb", "sqlite"])
def test_the_next_page_is_found_by_an_index(stocked, dialect):
    ledger = stocked(dialect, 50_000)
    place = (0, 0)
    c = ledger.t.task.c
    page = ledger._page(Aged(before=NOW), 2 * 10**15, place, 100, (c.id, c.finished_at))
    with captured(ledger) as sent:
        assert len(ledger._ask(page)) == 100
        ledger._ask(sa.select(c.id).where(c.pruned_at.is_not(None), c.finished_at < 5).order_by(c.finished_at).limit(9))
    with ledger.db.connection() as connection:
        assert [scan for s, p in sent for scan in full_scans(connection, s, p)] == []


def test_it_says_so(ledger):
    claim = succeeded(ledger)
    prune(ledger)

    record = ledger.get(claim.task_id)
    assert record.pruned_at is not None
    assert abs(seconds_ahead(ledger, record.pruned_at)) < 60
    assert record.decoded_result() is None
