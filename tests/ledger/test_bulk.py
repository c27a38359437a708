"""submit_many: as many rows as if each had come alone, by a few statements."""

from __future__ import annotations

import random

import pytest

from celery_durable import states
from celery_durable.errors import KeyBusy, TaskIdConflict
from celery_durable.ledger import dialects
from celery_durable.records import Envelope
from tests.ledger.kit import (
    SECOND,
    cancelled,
    captured,
    dead,
    history,
    now,
    queued,
    race,
    row_of,
    rows,
    running,
    seconds_ahead,
    submission,
    succeeded,
    transaction,
    waiting,
)


def subs(*names, **options):
    return [submission(name, **options) for name in names]


def outcomes(done):
    return [d.outcome for d in done]


def test_many_rows_are_what_one_by_one_would_have_made_of_them(ledger):
    given = [
        submission(f"order-{n}", body=b"\x00\xff" + "ä🎉".encode() * n, priority=n % 2 or None, queue=f"q{n % 3}")
        for n in range(20)
    ]
    # 20 rows at once, and the same one by one, compared in every column that is no time and no identity.
    done = ledger.submit_many(given)
    alone = [ledger.submit(submission(f"twin-{n}", body=g.envelope.body, priority=g.priority, queue=g.queue))
             for n, g in enumerate(given)]  # fmt: skip

    assert outcomes(done) == ["new"] * 20
    assert [d.task_id for d in done] == [g.task_id for g in given]
    assert all(d.publish and d.state == "queued" for d in done)
    for mine, twin in zip(done, alone, strict=True):
        one, other = row_of(ledger, mine.row_id), row_of(ledger, twin.row_id)
        differ = {k for k, v in one._mapping.items() if v != other._mapping[k]}
        assert differ <= {
            "id", "task_id", "key_digest", "idempotency_key", "envelope",
            "submitted_at", "publish_at", "published_at",
        }  # fmt: skip
        assert abs(one.submitted_at - now(ledger)) < 20 * SECOND
        assert history(ledger, one.id) == [("submit", None, "queued", "shop")]
    stored = row_of(ledger, done[7].row_id)
    assert Envelope.load(stored.envelope, stored.body) == given[7].envelope


def test_an_eta_a_deadline_and_other_constants(ledger):
    given = [
        submission(wake=states.After(60)),
        submission(wake=states.At(2**52), deadline_at=2**52 + 1),
        submission(max_losses=7, on_loss="dead", owes=True, root_id="root", parent_id="parent"),
    ]

    done = ledger.submit_many(given)

    stored = [row_of(ledger, d.row_id) for d in done]
    assert [(d.state, d.publish) for d in done] == [("waiting", False), ("waiting", False), ("queued", True)]
    assert 50 < seconds_ahead(ledger, stored[0].wake_at) <= 60
    assert (stored[1].wake_at, stored[1].deadline_at, stored[0].wait_kind) == (2**52, 2**52 + 1, "scheduled")
    assert (stored[2].max_losses, stored[2].on_loss, stored[2].owes) == (7, "dead", 1)
    assert (stored[2].root_id, stored[2].parent_id) == ("root", "parent")


@pytest.mark.parametrize("make", [queued, running, waiting, succeeded])
def test_taken_keys_are_reported_one_by_one(ledger, make):
    holder = make(ledger, "order-1")

    done = ledger.submit_many(subs("order-0", "order-1", "order-2", "order-1", "order-2"))

    assert outcomes(done) == ["new", "existing", "new", "existing", "existing"]
    assert done[1].task_id == done[3].task_id == holder.task_id
    assert done[4].task_id == done[2].task_id, "the first of a key within the chunk holds it"
    assert done[1].result == (b"42" if make is succeeded else None)
    assert len(rows(ledger)) == 3


@pytest.mark.parametrize("make", [dead, cancelled])
def test_keys_of_failed_rows_are_replayed(ledger, make):
    holder = make(ledger, "order-1")

    done = ledger.submit_many(subs("order-0", "order-1", "order-1", body=b"[[2],{},{}]"))

    assert outcomes(done) == ["new", "replayed", "existing"]
    assert (done[1].task_id, done[1].envelope_no, done[1].publish) == (holder.task_id, 2, True)
    assert row_of(ledger, holder.row_id).body == b"[[2],{},{}]"


def test_awaited_duplicates_become_aliases(ledger):
    queued(ledger, "order-1")

    done = ledger.submit_many(subs("order-1", "order-2", "order-2", awaited=True))

    assert outcomes(done) == ["alias", "new", "alias"]


def test_a_chunk_that_comes_twice_is_there_once(ledger):
    """As after a lost reply."""
    given = subs("order-1", "order-2", None)
    first = ledger.submit_many(given)

    again = ledger.submit_many(given)

    assert [(d.outcome, d.row_id, d.publish) for d in again] == [("new", d.row_id, True) for d in first]
    assert [history(ledger, d.row_id) for d in again] == [[("submit", None, "queued", "shop")]] * 3


def test_a_task_id_of_another_key_is_an_error_of_its_own(ledger):
    known = queued(ledger, "order-1")

    with pytest.raises(TaskIdConflict):
        ledger.submit_many([submission("order-2", task_id=known.task_id)])


def test_it_takes_a_few_statements(ledger):
    few = {"postgresql": 1, "mysql": 4, "sqlite": 4}[ledger.dialect.name]
    with captured(ledger) as sent:
        ledger.submit_many(subs(*(None for _ in range(500))))

    assert len([s for s, _ in sent if not s.startswith("BEGIN")]) == few


def test_rule_20_chunks_that_cross_each_other_end_without_a_deadlock(ledger, seed):
    rng = random.Random(seed)
    names = [f"order-{n}" for n in range(60)]

    def submit(_):
        return ledger.submit_many(subs(*rng.sample(names, len(names))))

    done = race(4, submit)

    assert sorted(o for answers in done for o in outcomes(answers)) == ["existing"] * 180 + ["new"] * 60
    assert len(rows(ledger)) == 60


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_rule_20_a_chunk_inside_a_transaction(ledger, end):
    holder = queued(ledger, "order-1")
    with ledger.db.engine.connect() as connection, connection.begin() as outer:
        within = ledger.within(ledger.lender(connection))
        done = within.submit_many(subs("order-0", "order-1", "order-2", "order-2"))
        again = within.submit_many(subs("order-2"))
        assert len(rows(ledger)) == 1
        getattr(outer, end)()

    assert outcomes(done) + outcomes(again) == ["new", "existing", "new", "existing", "existing"]
    assert (done[1].task_id, done[3].task_id, again[0].task_id) == (holder.task_id, *2 * [done[2].task_id])
    assert [d.publish for d in done] == [True, False, True, False]
    there = {r.idempotency_key: r for r in rows(ledger)}
    assert set(there) == ({"order-0", "order-1", "order-2"} if end == "commit" else {"order-1"})
    if end == "commit":
        assert (there["order-0"].rings, seconds_ahead(ledger, there["order-0"].publish_at) <= 0) == (0, True)


def test_rule_20_a_busy_key_in_a_chunk_is_named(postgres_ledger, monkeypatch):
    ledger = postgres_ledger
    monkeypatch.setattr(dialects, "LOCK_TIMEOUT", 1)
    with transaction(ledger) as theirs:
        ledger.within(ledger.lender(theirs)).submit(submission("order-1"))
        with pytest.raises(KeyBusy, match="'order-1'"):
            ledger.submit_many(subs("order-0", "order-1"))
