"""Looks at the whole ledger that cost no more than what they show."""

from __future__ import annotations

import pytest

from celery_durable import failures, states
from celery_durable.ledger import surveying
from celery_durable.ledger.surveying import Count
from tests.ledger.kit import boom, captured, dead, fails, gone, queued, running, succeeded, waiting
from tests.ledger.stock import full_scans


def test_a_count_tells_what_it_is():
    assert (str(Count(37)), str(Count(10_000, more=True)), str(Count(1_000_000, about=True))) == (
        "37", "10,000+", "about 1,000,000",
    )  # fmt: skip


def test_live_states_are_counted_and_end_at_a_limit(ledger, monkeypatch):
    queued(ledger), queued(ledger), queued(ledger), running(ledger), waiting(ledger), dead(ledger), succeeded(ledger)

    assert {s: str(n) for s, n in ledger.count_live().items()} == {
        "queued": "3", "running": "1", "waiting": "1", "dead": "1",
    }  # fmt: skip
    assert str(ledger.count_all()) == "7"
    monkeypatch.setattr(surveying, "MANY", 2)
    assert str(ledger.count_live()["queued"]) == "2+"
    assert ledger.count_all().about


def test_failures_that_are_alike(ledger, monkeypatch):
    assert ledger.likenesses() == []
    first, _, third = dead(ledger, "a"), dead(ledger, "b"), dead(ledger, "d")
    other = running(ledger, "c", max_losses=5)
    ledger.lose(other.task_id, other.token, gone(), owed_token="o", actor="k")
    ledger.replay_row(first.row_id, "again", actor="ann")

    lost, refused = ledger.likenesses()

    assert (lost.latest.kind, str(lost.count), str(lost.dead)) == ("worker_lost", "1", "0")
    assert (refused.latest.message, str(refused.count), str(refused.dead)) == ("card refused", "3", "2")
    assert refused.fingerprint == ledger.get("b").failure.fingerprint
    assert (refused.task, refused.first_seen) == (
        "shop.charge", ledger.failures(first.row_id)[0].occurred_at,
    )  # fmt: skip
    assert refused.last_seen == ledger.failures(third.row_id)[0].occurred_at
    monkeypatch.setattr(surveying, "ALIKE", 1)
    assert [str(x.count) for x in ledger.likenesses()] == ["1", "1+"]


def test_who_failed_of_something_before_has_not_died_of_it(ledger):
    claim = running(ledger)
    ledger.settle(claim, fails(), actor="worker-1")
    ledger.replay_row(claim.row_id, "again", actor="ann")
    again = ledger.claim(claim.task_id, "t2", owner="worker-1", pid=1, lease=30).claim
    end = failures.describe(KeyError("rates"), "permanent", worker="worker-1", claim=2)
    ledger.settle(again, lambda row: states.fail(row, end, "owed", owes=False, ring=30, retry=None), actor="worker-1")

    assert {x.latest.exception: str(x.dead) for x in ledger.likenesses()} == {
        "KeyError": "1", boom().exception: "0",
    }  # fmt: skip


@pytest.mark.parametrize("look", ["count_live", "likenesses"])
@pytest.mark.parametrize("dialect", ["postgresql", "mariadb", "sqlite"])
def test_nothing_is_read_from_end_to_end(failing, dialect, look, monkeypatch):
    ledger = failing(dialect)
    monkeypatch.setattr(surveying, "MANY", 100)
    monkeypatch.setattr(surveying, "ALIKE", 100)
    with captured(ledger) as sent:
        getattr(ledger, look)()
    with ledger.db.engine.connect() as connection:
        read = [
            (scan, statement)
            for statement, parameters in sent
            if statement.lstrip().upper().startswith(("SELECT", "WITH"))
            for scan in full_scans(connection, statement, parameters)
        ]
    assert read == []
