"""The audit finds each kind of damage, planted by SQL, and nothing where only verbs have written."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger import verifying
from celery_durable.ledger.registry import Presence
from celery_durable.ledger.schema_rules import TASK_CHECKS
from tests.ledger import kit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.ledger import Ledger

MINUTE = 60 * kit.SECOND


def found(ledger: Ledger, **options: Any) -> list[tuple[int, str]]:
    return [(v.invariant, v.ref) for v in ledger.verify(**options)]


def details(ledger: Ledger) -> str:
    return "\n".join(v.detail for v in ledger.verify())


def overdue(ledger: Ledger, minutes: float) -> Any:
    return ledger.dialect.clock_sql - round(minutes * MINUTE)


def live_worker(ledger: Ledger, *, broker: str = kit.BROKER, minutes: float = 60) -> None:
    """A worker that beats now and has been there for some minutes."""
    ledger.enter(Presence("w-1", "w1@host", 7, [kit.QUEUE], [kit.TASK], broker, 30))
    w = ledger.t.worker
    age = sa.update(w).values(started_at=overdue(ledger, minutes), phase="running")
    ledger.db.run(lambda c: c.execute(age))


def write_event(ledger: Ledger, row: int, verb: str, source: str | None, target: str, claim: int = 0) -> None:
    values = {
        "task_row": row, "verb": verb, "at": ledger.dialect.clock_sql, "from_state": source, "to_state": target,
        "claim": claim, "actor": "mallory", "reason": "by hand",
    }  # fmt: skip
    ledger.db.run(lambda c: c.execute(sa.insert(ledger.t.event).values(values)))


@contextmanager
def unchecked(ledger: Ledger) -> Iterator[sa.Connection]:
    """A transaction in which the database lets rows pass that break the rules."""
    table = ledger.t.task.name
    with kit.transaction(ledger) as connection:
        if ledger.dialect.name == "postgresql":
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {table}_legal")
            yield connection
        else:
            off, on = {
                "sqlite": ("PRAGMA ignore_check_constraints=ON", "PRAGMA ignore_check_constraints=OFF"),
                "mysql": ("SET SESSION check_constraint_checks=0", "SET SESSION check_constraint_checks=1"),
            }[ledger.dialect.name]
            connection.exec_driver_sql(off)
            yield connection
            connection.exec_driver_sql(on)


@pytest.fixture
def restored(ledger: Ledger) -> Iterator[None]:
    """Afterwards no row is left and every CHECK is back."""
    yield
    kit.empty(ledger)
    if ledger.dialect.name == "postgresql":
        table = ledger.t.task.name
        with ledger.db.engine.begin() as connection:
            if not sa.inspect(connection).get_check_constraints(table):
                connection.exec_driver_sql(
                    f"ALTER TABLE {table} ADD CONSTRAINT {table}_legal CHECK ({table}_legal({table}))"
                )


def test_a_ledger_that_only_verbs_have_written_is_clean(ledger):
    live_worker(ledger)
    kit.queued(ledger)
    kit.waiting(ledger)
    kit.running(ledger)
    kit.succeeded(ledger, "done", owes=True)
    kit.cancelled(ledger)
    kit.dead(ledger, owes=True)
    replayed = kit.dead(ledger)
    ledger.replay_row(replayed.row_id, "again", actor="ann")
    kit.succeed(ledger, kit.claimed(ledger, replayed.task_id))
    retried = kit.running(ledger)
    ledger.settle(retried, kit.fails(retry=kit.retry()), actor="w")
    kit.make_due(ledger, retried.row_id, "wake_at")
    ledger.release(10, actor="w")
    lost = kit.running(ledger)
    ledger.lose(lost.task_id, lost.token, kit.gone(), owed_token="t", actor="w")
    kit.claimed(ledger, lost.task_id)
    flagged = kit.running(ledger)
    ledger.cancel_row(flagged.row_id, "stop", actor="ann")
    ledger.settle(flagged, kit.fails(), actor="w")
    with pytest.raises(Exception, match="claim 1 is over"):
        kit.succeed(ledger, flagged.__class__(flagged.row_id, flagged.task_id, 1, "another"))
    first = kit.running(ledger, "shared")
    ledger.submit(kit.submission("shared", awaited=True))
    kit.succeed(ledger, first)
    ledger.follow(10, actor="w")
    expired = kit.queued(ledger, deadline_at=kit.now(ledger) - 1)
    ledger.expire_deadlines(10, actor="w")
    assert kit.row_of(ledger, expired.row_id).state == states.DEAD
    ledger.park(kit.submission(), kit.boom(kind="rejected"), actor="w")
    assert ledger.verify() == []


BROKEN = {
    "state_known": {"state": "lost", "publish_at": None},
    "running_leased": {"lease_owner": "w"},
    "waiting_explained": {"wait_kind": "condition"},
    "dead_has_kind": {"failure_kind": "poison"},
    "terminal_finished": {"finished_at": 1},
    "queued_rung": {"publish_at": None},
    "owing_rung": {"continuation_pending": "token"},
    "pruned_over": {"pruned_at": 1},
    "observed_unpromised": {"observed": 1, "publish_at": 1},
    "rung_for_a_reason": {
        "state": "waiting",
        "wait_kind": "x",
        "wait_reason": "y",
        "wait_since": 1,
        "wake_at": 2**60,
    },
    "keyed_or_alias": {"key_digest": None},
    "counters": {"losses": -1},
    "on_loss_known": {"on_loss": "shrug"},
}


@pytest.mark.parametrize("rule", TASK_CHECKS)
def test_rows_that_a_check_should_have_refused(ledger, restored, rule):
    row = kit.queued(ledger)
    with unchecked(ledger) as connection:
        task = ledger.t.task
        connection.execute(sa.update(task).where(task.c.id == row.row_id).values(BROKEN[rule]))
    violations = [v for v in ledger.verify() if f"the rule {rule}:" in v.detail]
    assert [(v.invariant, v.ref) for v in violations] == [(verifying.CHECKED[rule], row.task_id)]


def test_every_check_is_assigned_to_an_invariant():
    assert set(verifying.CHECKED) == set(TASK_CHECKS)
    assert set(verifying.CHECKED.values()) <= {1, 2, 3, 4, 5}


def test_dead_without_a_failure_row(ledger):
    claim = kit.dead(ledger)
    ledger.db.run(lambda c: c.execute(sa.delete(ledger.t.failure)))
    assert found(ledger) == [(3, claim.task_id)]


def test_a_state_that_no_move_led_to(ledger):
    claim = kit.running(ledger)
    queued = {"state": "queued", "lease_owner": None, "lease_expires_at": None, "publish_at": 2**60}
    kit.change(ledger, claim.row_id, **queued)
    assert found(ledger) == [(2, claim.task_id)]
    assert "queued, but the last move of its history (claim) made it running" in details(ledger)


def test_a_row_without_history(ledger):
    row = kit.queued(ledger)
    ledger.db.run(lambda c: c.execute(sa.delete(ledger.t.event)))
    assert found(ledger) == [(1, row.task_id)]


@pytest.mark.parametrize("claims", [0, 2])
def test_a_fence_that_its_claims_do_not_add_up_to(ledger, claims):
    claim = kit.running(ledger)
    kit.change(ledger, claim.row_id, claims=claims)
    assert found(ledger) == [(2, claim.task_id)]


def test_a_fence_given_twice(ledger):
    claim = kit.running(ledger)
    ledger.lose(claim.task_id, claim.token, kit.gone(), owed_token="t", actor="w")
    kit.claimed(ledger, claim.task_id)
    events = ledger.t.event
    ledger.db.run(lambda c: c.execute(sa.update(events).where(events.c.verb == "claim").values(claim=2)))
    assert found(ledger) == [(2, claim.task_id)]
    assert "2 claims, 1 different" in details(ledger)


def test_a_success_told_twice(ledger):
    claim = kit.succeeded(ledger)
    write_event(ledger, claim.row_id, "succeed", "running", "succeeded", 1)
    assert (5, claim.task_id) in found(ledger)
    assert "it succeeded 2 times" in details(ledger)


def test_a_move_that_is_not_allowed(ledger):
    claim = kit.succeeded(ledger)
    write_event(ledger, claim.row_id, "replay", "succeeded", "succeeded", 1)
    assert found(ledger) == [(2, claim.task_id)]
    assert "not allowed, replay: succeeded -> succeeded" in details(ledger)


def test_a_verb_that_nobody_knows(ledger):
    row = kit.queued(ledger)
    write_event(ledger, row.row_id, "teleport", "queued", "queued")
    assert "not allowed, teleport: queued -> queued" in details(ledger)


def test_a_gap_in_the_history(ledger):
    claim = kit.succeeded(ledger)
    events = ledger.t.event
    ledger.db.run(lambda c: c.execute(sa.delete(events).where(events.c.verb == "claim")))
    kit.change(ledger, claim.row_id, claims=0)
    assert found(ledger) == [(2, claim.task_id)]
    assert "succeed: running -> succeeded, but the row was queued" in details(ledger)


def test_history_and_failures_of_a_row_that_is_gone(ledger):
    kit.queued(ledger)
    claim = kit.dead(ledger)
    kit.queued(ledger)
    task = ledger.t.task
    ledger.db.run(lambda c: c.execute(sa.delete(task).where(task.c.id == claim.row_id)))
    assert found(ledger) == [(1, f"row {claim.row_id}"), (3, f"row {claim.row_id}")]


def test_orphans_beyond_every_row(ledger):
    claim = kit.dead(ledger)
    ledger.db.run(lambda c: c.execute(sa.delete(ledger.t.task)))
    assert found(ledger) == [(1, f"row {claim.row_id}"), (3, f"row {claim.row_id}")]


def test_a_claim_that_nobody_expired(ledger):
    claim = kit.running(ledger)
    kit.change(ledger, claim.row_id, lease_expires_at=overdue(ledger, 1.5))
    assert found(ledger) == [(2, claim.task_id)]
    told = r"the lease of worker-1 \(pid 101\) passed 9\d s ago, and no live worker sweeps"
    assert re.search(told, details(ledger))
    assert found(ledger, lease=60) == []
    live_worker(ledger)
    assert "although live workers sweep" in details(ledger)


@pytest.mark.parametrize(
    ("broker", "minutes", "told"), [(kit.BROKER, 60, True), ("elsewhere", 60, False), (kit.BROKER, 0, False)]
)
def test_what_is_due_counts_only_while_a_worker_of_its_broker_sweeps(ledger, broker, minutes, told):
    wait, ring, owing = kit.waiting(ledger), kit.queued(ledger), kit.succeeded(ledger, owes=True)
    kit.change(ledger, wait.row_id, wake_at=overdue(ledger, 2))
    kit.change(ledger, ring.row_id, publish_at=overdue(ledger, 2))
    kit.change(ledger, owing.row_id, publish_at=overdue(ledger, 3))
    assert found(ledger) == []
    live_worker(ledger, broker=broker, minutes=minutes)
    expected = [(4, wait.task_id), (1, owing.task_id), (1, ring.task_id)]
    assert found(ledger) == (expected if told else [])


def test_a_minute_of_grace_for_what_is_due(ledger):
    live_worker(ledger)
    kit.change(ledger, kit.waiting(ledger).row_id, wake_at=overdue(ledger, 0.5))
    kit.change(ledger, kit.queued(ledger).row_id, publish_at=overdue(ledger, 0.5))
    assert ledger.verify() == []


def test_an_alias_that_nobody_told(ledger):
    first = kit.succeeded(ledger, "shared")
    alias = ledger.submit(kit.submission("shared", awaited=True))
    assert alias.outcome == "alias"
    assert ledger.verify() == []
    kit.change(ledger, first.row_id, finished_at=overdue(ledger, 5))
    assert found(ledger) == [(4, alias.task_id)]
    assert f"follows {first.task_id}, which has been succeeded for 5 min" in details(ledger)


def test_an_alias_whose_holder_is_gone(ledger):
    first = kit.running(ledger, "shared")
    alias = ledger.submit(kit.submission("shared", awaited=True))
    for table, column in ((ledger.t.task, "id"), (ledger.t.event, "task_row")):
        gone = sa.delete(table).where(table.c[column] == first.row_id)
        ledger.db.run(lambda c, gone=gone: c.execute(gone))
    assert found(ledger) == [(5, alias.task_id)]


def test_slices_cover_every_row_once(ledger, monkeypatch):
    ids = [kit.dead(ledger).task_id for _ in range(7)]
    ledger.db.run(lambda c: c.execute(sa.delete(ledger.t.failure)))
    monkeypatch.setattr(verifying, "SLICE", 2)
    assert found(ledger) == [(3, i) for i in ids]
