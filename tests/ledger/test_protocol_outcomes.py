"""The rules of the protocol about outcomes, cancellation and replay: each fails when its rule is out."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from celery_durable import states
from tests.ledger.kit import (
    Background,
    cancelled,
    change,
    claimed,
    dead,
    envelope,
    fails,
    gone,
    history,
    make_due,
    queued,
    retry,
    row_of,
    rows,
    running,
    succeeded,
    transaction,
    until_blocked,
    waiting,
)


def attempt(ledger, task_id, token):
    return ledger.claim(task_id, token, owner="w", pid=1, lease=30)


def by_expiry(ledger):
    row = queued(ledger, owes=True)
    make_due(ledger, row.row_id, "deadline_at")
    ledger.expire_deadlines(10, actor="sweep")
    return row


def by_loss(ledger):
    claim = running(ledger, owes=True, max_losses=1)
    make_due(ledger, claim.row_id, "lease_expires_at")
    ledger.expire_leases(10, actor="sweep")
    return claim


def by_following(ledger):
    queued(ledger, "k")
    other = queued(ledger, "k", awaited=True, owes=True)
    ledger.cancel_row(ledger.get("k").id, "no", actor="ann")
    ledger.follow(10, actor="sweep")
    return other


OVER = {
    "succeed": lambda ledger: succeeded(ledger, owes=True),
    "fail": lambda ledger: dead(ledger, owes=True),
    "cancel": lambda ledger: cancelled(ledger, owes=True),
    "expire": by_expiry,
    "lose": by_loss,
    "follow": by_following,
}


@pytest.mark.parametrize("end", OVER)
def test_rule_13_every_end_that_is_awaited_is_owed_until_it_is_told(ledger, end):
    row = row_of(ledger, OVER[end](ledger).row_id)

    assert row.state in states.TERMINAL
    assert row.continuation_pending is not None
    assert attempt(ledger, row.task_id, "t").why == "owing"
    assert ledger.clear_continuations({row.task_id: row.continuation_pending}) == 1
    assert attempt(ledger, row.task_id, "t").why == "done"


def test_rule_13_each_outcome_has_a_token_of_its_own(ledger):
    tokens = {row_of(ledger, OVER[end](ledger).row_id).continuation_pending for end in OVER for _ in range(2)}

    assert len(tokens) >= 2 * len(OVER) - 1  # `fail` is given its token by the test


def test_rule_13_only_its_token_clears_what_is_owed(ledger):
    first = dead(ledger, owes=True)
    ledger.replay_row(first.row_id, "again", actor="ann")
    ledger.settle(claimed(ledger, first.task_id), fails(owes=True, token="of-the-replay"), actor="w")

    ledger.clear_continuations({first.task_id: "owed-by-fail"})

    assert row_of(ledger, first.row_id).continuation_pending == "of-the-replay"


def test_rule_13_a_loss_that_runs_again_owes_nobody(ledger):
    claim = running(ledger, owes=True)

    ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="k")

    assert row_of(ledger, claim.row_id).continuation_pending is None


@pytest.mark.parametrize("end", ["fail", "retry", "lose", "expire_leases"])
def test_rule_14_a_flagged_row_ends_cancelled_whatever_becomes_of_its_attempt(ledger, end):
    claim = running(ledger, owes=True)
    ledger.cancel_row(claim.row_id, "stop", actor="ann")
    if end == "lose":
        ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="k")
    elif end == "expire_leases":
        make_due(ledger, claim.row_id, "lease_expires_at")
        ledger.expire_leases(10, actor="sweep")
    else:
        ledger.settle(claim, fails(owes=True, retry=retry() if end == "retry" else None), actor="w")

    row = row_of(ledger, claim.row_id)
    assert row.state == "cancelled"
    assert row.continuation_pending is not None


def test_rule_14_a_replay_clears_the_flag(ledger):
    claim = running(ledger)
    ledger.cancel_row(claim.row_id, "stop", actor="ann")
    ledger.settle(claim, fails(), actor="w")

    ledger.replay_row(claim.row_id, "go on", actor="ann")

    again = claimed(ledger, claim.task_id)
    assert ledger.renew({again.task_id: again.token}, 30) == {again.task_id: False}
    assert ledger.lose(again.task_id, again.token, gone(), owed_token="o", actor="k") == "queued"


def test_rule_14_an_expired_row_is_dead_and_owes_before_its_delivery_is_dropped(ledger):
    row = queued(ledger, owes=True)
    make_due(ledger, row.row_id, "deadline_at")
    assert attempt(ledger, row.task_id, "t").why == "expired"

    ledger.expire_deadlines(10, actor="sweep")

    stored = row_of(ledger, row.row_id)
    assert (stored.state, stored.failure_kind) == ("dead", "expired")
    assert attempt(ledger, row.task_id, "t").why == "owing"


@pytest.mark.parametrize("how", ["replay_row", "submit"])
def test_rule_15_a_replay_resets_retries_and_losses_and_never_claims(ledger, how):
    claim = dead(ledger, "order-1")
    change(ledger, claim.row_id, retries=20, losses=2)

    if how == "submit":
        queued(ledger, "order-1")
    else:
        ledger.replay_row(claim.row_id, "again", actor="ann")

    row = row_of(ledger, claim.row_id)
    assert (row.retries, row.losses, row.claims) == (0, 0, 1)
    assert claimed(ledger, claim.task_id).claims == 2


def test_rule_27_the_dead_say_of_what(ledger):
    for end in ("fail", "lose", "expire"):
        assert row_of(ledger, OVER[end](ledger).row_id).state == "dead"

    assert {row.failure_kind for row in rows(ledger)} == {"permanent", "poison", "expired"}
    assert all(ledger.failures(row.id) for row in rows(ledger))


@pytest.mark.parametrize("verb", ["cancel", "replay"])
def test_rule_27_the_history_tells_the_state_that_a_move_really_left(ledger, verb):
    """The row changes while the verb waits for it: `from` is what it became."""
    row = queued(ledger) if verb == "cancel" else dead(ledger)
    became = (
        states.into_waiting("sleep", "busy", states.After(60))
        if verb == "cancel"
        else states.into_terminal("cancelled", owed=None)
    )
    with transaction(ledger) as connection:
        values = ledger.writer.values(became)
        connection.execute(sa.update(ledger.t.task).where(ledger.t.task.c.id == row.row_id).values(values))
        asked = Background(lambda: getattr(ledger, f"{verb}_row")(row.row_id, "why", actor="ann"))
        until_blocked(ledger)
    asked.answer()

    target, source = {"cancel": ("cancelled", "waiting"), "replay": ("queued", "cancelled")}[verb]
    assert history(ledger, row.row_id)[-1] == (verb, source, target, "ann")


def test_an_envelope_changes_only_with_its_number(ledger):
    claim = running(ledger)
    ledger.settle(claim, fails(retry=retry(sent=envelope(claim.task_id))), actor="w")

    assert row_of(ledger, claim.row_id).envelope_no == 2
    assert waiting(ledger).envelope_no == 1
