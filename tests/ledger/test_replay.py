"""replay of many: each once, whoever does it how often, and only what died of the same."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from celery_durable import states
from celery_durable.errors import BadRequest
from celery_durable.ledger import Casualties, replaying
from tests.conftest import DIALECTS
from tests.ledger.failing import RARE
from tests.ledger.kit import (
    Background,
    boom,
    cancelled,
    captured,
    change,
    claimed,
    dead,
    gone,
    history,
    lock,
    make_due,
    queued,
    race,
    retry,
    row_of,
    running,
    submission,
    succeeded,
    transaction,
    verbs,
)
from tests.ledger.stock import full_scans

FINGERPRINT = boom().fingerprint


def die(ledger, key=None, *, message="card refused", kind="permanent", fingerprint=None, **options):
    """A row that died of a failure; several failures when it was retried before."""
    claim = running(ledger, key, **options)
    settle(ledger, claim, message, kind, fingerprint)
    return claim


def settle(ledger, claim, message="card refused", kind="permanent", fingerprint=None, again=None):
    failure = boom(message, kind)
    if fingerprint is not None:
        failure = replace(failure, fingerprint=fingerprint)
    ledger.settle(claim, lambda r: states.fail(r, failure, "o", owes=False, ring=30, retry=again), actor="w")


def replay(ledger, *, limit=None, fresh=False, reason="fixed", batch=replaying.BATCH, **which):
    done = ledger.replay_all(Casualties(**which), reason, actor="ann", limit=limit, fresh=fresh, batch=batch)
    return sum(b.replayed for b in done)


def state_of(ledger, row):
    return row_of(ledger, row.row_id).state


# --- which ------------------------------------------------------------------------------------------


def test_what_died_of_a_fingerprint_is_replayed_and_nothing_else(ledger):
    made = [die(ledger, fingerprint="f1", owes=True) for _ in range(5)]
    others = [die(ledger, fingerprint="f2"), succeeded(ledger), queued(ledger), cancelled(ledger)]
    before = [row_of(ledger, r.row_id) for r in others]

    assert replay(ledger, fingerprint="f1") == 5

    for row in made:
        stored = row_of(ledger, row.row_id)
        assert (stored.state, stored.retries, stored.losses, stored.claims, stored.failure_kind) == (
            "queued", 0, 0, 1, None,
        )  # fmt: skip
        assert history(ledger, row.row_id)[-1] == ("replay", "dead", "queued", "ann")
        assert ledger.events(row.row_id)[-1].reason == "fixed"
    assert [row_of(ledger, r.row_id) for r in others] == before


def test_a_kind_is_what_the_task_died_of(ledger):
    poison = running(ledger, max_losses=1)
    ledger.lose(poison.task_id, poison.token, gone(), owed_token="o", actor="keeper")
    other = die(ledger)

    assert replay(ledger, kind="worker_lost") == 0
    assert replay(ledger, kind="poison") == 1
    assert state_of(ledger, other) == "dead"


def test_a_task_name_covers_every_kind(ledger):
    made = [die(ledger, task="shop.mail", kind=k) for k in ("permanent", "transient", "permanent")]
    other = die(ledger)

    assert replay(ledger, task="shop.mail") == 3

    assert {state_of(ledger, r) for r in made} == {"queued"}
    assert state_of(ledger, other) == "dead"


def test_filters_narrow_one_another(ledger):
    die(ledger, fingerprint="f1"), die(ledger, fingerprint="f1", kind="transient")
    die(ledger, fingerprint="f1", kind="transient", task="shop.mail")

    assert replay(ledger, fingerprint="f1", kind="transient", task="shop.mail") == 1
    assert replay(ledger, kind="transient", task="shop.mail") == 0
    assert replay(ledger, fingerprint="f1", kind="transient") == 1
    assert replay(ledger, fingerprint="f1") == 1


def test_it_counts_what_the_task_died_of_not_what_it_survived(ledger):
    claim = running(ledger)
    settle(ledger, claim, fingerprint="survived", again=retry())
    make_due(ledger, claim.row_id, "wake_at")
    ledger.release(10, actor="s")
    settle(ledger, claimed(ledger, claim.task_id), fingerprint="died")

    assert replay(ledger, fingerprint="survived") == 0
    assert ledger.count_dead(Casualties(fingerprint="survived")) == 0
    assert replay(ledger, fingerprint="died") == 1


def test_everything_is_no_filter():
    with pytest.raises(BadRequest, match="fingerprint, a failure kind or a task name"):
        Casualties()


def test_what_was_only_observed_is_not_replayed(ledger):
    row = die(ledger, fingerprint="f1")
    change(ledger, row.row_id, observed=1, claim_token=None)

    assert ledger.count_dead(Casualties(fingerprint="f1")) == 0
    assert replay(ledger, fingerprint="f1") == 0
    with pytest.raises(BadRequest, match="only observed"):
        ledger.replay_row(row.row_id, "again", actor="ann")
    assert state_of(ledger, row) == "dead"


def test_count_and_sample_tell_what_would_be_replayed_and_change_nothing(ledger):
    made = [die(ledger, fingerprint="f1") for _ in range(4)]
    which = Casualties(fingerprint="f1")

    assert ledger.count_dead(which) == 4
    assert ledger.sample_dead(which, 2) == [r.row_id for r in made[:2]]
    assert ledger.sample_dead(which, 9) == [r.row_id for r in made]
    assert ledger.count_dead(Casualties(kind="permanent")) == 4
    assert ledger.sample_dead(Casualties(kind="transient"), 9) == []
    assert {state_of(ledger, r) for r in made} == {"dead"}


# --- how --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [{"fingerprint": "f1"}, {"kind": "permanent"}, {"task": "shop.charge"}])
def test_pages_and_batches_of_any_size_replay_each_once(ledger, monkeypatch, which):
    monkeypatch.setattr(replaying, "PAGE", 5)
    made = [die(ledger, fingerprint="f1") for _ in range(12)]

    done = [b.replayed for b in ledger.replay_all(Casualties(**which), "", actor="ann", batch=2)]

    assert sum(done) == 12
    assert max(done) == 2
    assert all(verbs(ledger, r.row_id).count("replay") == 1 for r in made)
    assert replay(ledger, **which) == 0


def test_a_limit_is_kept_and_the_oldest_come_first(ledger):
    made = [die(ledger, fingerprint="f1") for _ in range(7)]

    assert replay(ledger, fingerprint="f1", limit=5, batch=3) == 5

    assert [state_of(ledger, r) for r in made] == ["queued"] * 5 + ["dead"] * 2
    assert replay(ledger, fingerprint="f1", limit=5) == 2


def test_nothing_more_is_done_when_nobody_asks_for_more(ledger):
    """What the next batch waits for is the caller: that is how a rate is kept, and where an interrupt leaves things."""
    made = [die(ledger, fingerprint="f1") for _ in range(6)]

    batches = ledger.replay_all(Casualties(fingerprint="f1"), "", actor="ann", batch=2)
    assert [b.replayed for b in itertools.islice(batches, 2)] == [2, 2]

    assert [state_of(ledger, r) for r in made] == ["queued"] * 4 + ["dead"] * 2
    assert replay(ledger, fingerprint="f1") == 2


@pytest.mark.parametrize("which", [{"fingerprint": "f1"}, {"task": "shop.charge"}])
def test_what_dies_again_meanwhile_is_left_alone(ledger, monkeypatch, which):
    """Else a replay of something that is not fixed would never end."""
    monkeypatch.setattr(replaying, "PAGE", 2)
    made = [die(ledger, fingerprint="f1") for _ in range(6)]
    done = 0
    for batch in ledger.replay_all(Casualties(**which), "", actor="ann", batch=2):
        done += batch.replayed
        for row in made:
            if state_of(ledger, row) == "queued":
                settle(ledger, claimed(ledger, row.task_id), fingerprint="f1", kind="zzz")
        assert done <= 6

    assert done == 6
    assert all(verbs(ledger, r.row_id).count("replay") == 1 for r in made)


def test_what_another_replayed_and_died_since_it_was_looked_up_is_left_alone(ledger):
    made = [die(ledger, fingerprint="f1") for _ in range(4)]
    batches = ledger.replay_all(Casualties(fingerprint="f1"), "", actor="ann", batch=2)
    next(batches)
    ledger.replay_row(made[3].row_id, "by hand", actor="bob")
    settle(ledger, claimed(ledger, made[3].task_id), fingerprint="f1")

    assert [(b.replayed, b.passed_over) for b in batches] == [(1, 0)]
    assert [e[3] for e in history(ledger, made[3].row_id) if e[0] == "replay"] == ["bob"]


def test_several_at_once_replay_each_row_once(ledger):
    made = [die(ledger, fingerprint="f1") for _ in range(40)]

    answers = race(4, lambda _: replay(ledger, fingerprint="f1", batch=7))
    rest = replay(ledger, fingerprint="f1")

    assert sum(answers) + rest == 40, answers
    assert all(verbs(ledger, r.row_id).count("replay") == 1 for r in made)


def test_a_row_in_somebody_elses_hands_is_passed_over_and_told(ledger):
    if ledger.dialect.name == "sqlite":
        pytest.skip("sqlite locks the whole database, so no row alone can be held")
    busy, free = die(ledger, fingerprint="f1"), die(ledger, fingerprint="f1")

    with transaction(ledger) as connection:
        lock(ledger, connection, busy.row_id)
        batches = Background(lambda: list(ledger.replay_all(Casualties(fingerprint="f1"), "", actor="a"))).answer()

    assert [(b.replayed, b.passed_over) for b in batches] == [(1, 1)]
    assert (state_of(ledger, busy), state_of(ledger, free)) == ("dead", "queued")
    assert replay(ledger, fingerprint="f1") == 1


def test_an_alias_looks_at_its_first_again(ledger):
    first = running(ledger, "k")
    alias = ledger.submit(submission("k", awaited=True))
    settle(ledger, first, fingerprint="f1")
    make_due(ledger, alias.row_id, "wake_at")
    ledger.follow(10, actor="s")
    assert row_of(ledger, alias.row_id).state == "dead"

    assert replay(ledger, fingerprint="f1") == 2

    stored = row_of(ledger, alias.row_id)
    assert (stored.state, stored.wait_kind) == ("waiting", "duplicate")
    assert state_of(ledger, first) == "queued"


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_only_a_fresh_replay_forgets_steps_sleeps_and_events(ledger, fresh, many):
    claim = running(ledger)
    ledger.send_event(claim.row_id, "paid", "1", actor="shop")
    asked = states.Wait("sleep", "night", states.After(60), sleep="sleep:1")
    ledger.settle(claim, lambda r: states.wait(r, asked, None, token="o", owes=False, ring=1), actor="w")
    make_due(ledger, claim.row_id, "wake_at")
    ledger.release(10, actor="s")
    settle(ledger, claimed(ledger, claim.task_id), fingerprint="f1")

    if many:
        assert replay(ledger, fingerprint="f1", fresh=fresh) == 1
    else:
        assert ledger.replay_row(claim.row_id, "again", actor="ann", fresh=fresh)

    again = claimed(ledger, claim.task_id)
    assert (ledger.event(again, "paid") is None) is fresh
    assert (ledger.slept(again, "sleep:1") is None) is fresh


def test_patience_begins_anew_with_a_replay(ledger):
    row = dead(ledger)
    change(ledger, row.row_id, waits=4, waiting_from=1, give_up_at=2, wait_event="paid")

    assert replay(ledger, fingerprint=FINGERPRINT) == 1

    stored = row_of(ledger, row.row_id)
    assert (stored.waits, stored.waiting_from, stored.give_up_at, stored.wait_event) == (0, None, None, None)


# --- what it costs ----------------------------------------------------------------------------------


def test_a_batch_is_a_few_statements_whatever_its_size(ledger):
    for _ in range(20):
        die(ledger, fingerprint="f1")
    with captured(ledger) as sent:
        replay(ledger, fingerprint="f1")

    writes = [s for s, _ in sent if s.lstrip().upper().startswith(("UPDATE", "INSERT", "DELETE"))]
    assert len(writes) == 2


@pytest.mark.parametrize("which", [{"fingerprint": RARE}, {"kind": "permanent"}, {"task": "shop.charge"}])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_statement_of_a_replay_reads_a_table_from_end_to_end(failing, dialect, which):
    ledger = failing(dialect)
    with captured(ledger) as sent:
        assert ledger.count_dead(Casualties(**which)) >= 40
        assert replay(ledger, limit=2, **which) == 2

    reads = [(s, p) for s, p in sent if s.lstrip().upper().startswith(("SELECT", "UPDATE"))]
    with ledger.db.engine.connect() as connection:
        scans = {s: found for s, p in reads if (found := full_scans(connection, s, p))}
        connection.rollback()
    # PostgreSQL may walk the index that holds what is dead and nothing else: that is what is asked for.
    dead_only = "whole index durable_task_failure_kind"
    assert not [found for told in scans.values() for found in told if found != dead_only]
