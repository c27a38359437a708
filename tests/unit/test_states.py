"""Decisions: each is a move of the table, and no sequence of them makes a row that the database would refuse."""

from __future__ import annotations

import inspect
import sqlite3
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_durable import states
from celery_durable.ledger.schema import tables
from celery_durable.ledger.schema_rules import TASK_CHECKS
from celery_durable.records import Envelope, Failure

NOW = 1_700_000_000_000_000
FAILURE = Failure("permanent", "ValueError", "refused")
SENT = Envelope(b"", "application/json", "utf-8", {"id": "1", "task": "t"}, {}, "", "celery")
COLUMNS = [c.name for c in tables("durable_").task.columns]
LIVE_AND_OVER = {
    "queued": states.into_queued(),
    "waiting": states.into_waiting("retry", "late", states.After(1)),
    "running": {
        "state": "running", "lease_owner": "w", "lease_expires_at": 1, "claim_token": "t", "started_at": 1,
        "claims": 1, "publish_at": None, "rings": 0, "deferrals": 0,
    },
    "succeeded": states.into_terminal("succeeded", owed=None),
    "dead": states.into_terminal("dead", owed="o", failure_kind="permanent"),
    "cancelled": states.into_terminal("cancelled", owed=None),
}  # fmt: skip
NEW = dict.fromkeys(COLUMNS) | {
    "key_digest": b"d", "claims": 0, "losses": 0, "retries": 0, "publish_count": 0, "rings": 0, "deferrals": 0,
    "envelope_no": 1, "max_losses": 3, "on_loss": "retry", "owes": 1, "waits": 0, "progressed": 0, "replaces": 0,
    "observed": 0,
}  # fmt: skip


def row_in(state, **other):
    return NEW | LIVE_AND_OVER[state] | other


def seen(row):
    """A locked row as a decision sees it: its times are numbers, and it knows the time."""
    told = {k: NOW if isinstance(v, states.After | states.At) else v for k, v in row.items()}
    return SimpleNamespace(**({"now": NOW} | told))


WAIT = states.Wait("condition", "rates are late", states.After(30), give_up_after=60)
GIVEN_UP = states.Wait("condition", "rates are late", states.After(30), give_up_after=-1)
RETRY = states.Retry(states.After(60), "retry 1 of 3", 1)
#: name -> (states it may be asked in, the decision)
DECISIONS = {
    "fail": ("running", lambda r: states.fail(r, FAILURE, "o", owes=bool(r.owes), ring=1, retry=None)),
    "retry": ("running", lambda r: states.fail(r, FAILURE, "o", owes=bool(r.owes), ring=1, retry=RETRY)),
    "replace": ("running", lambda r: states.replace_message(r, SENT, None, token="o", owes=bool(r.owes))),
    "replace_later": ("running", lambda r: states.replace_message(r, SENT, states.After(9), token="o", owes=True)),
    "stand_in": ("running", lambda r: states.stand_in(r, token="o", owes=bool(r.owes))),
    "go_on_as": ("waiting", lambda _: states.go_on_as("replaced by the task add", None)),
    "go_on_as_later": ("waiting", lambda _: states.go_on_as("replaced by the task add", states.After(9))),
    "succeed_silently": ("running", lambda _: states.succeed_silently()),
    "wait": ("running", lambda r: states.wait(r, WAIT, FAILURE, token="o", owes=bool(r.owes), ring=1)),
    "wait_given_up": ("running", lambda r: states.wait(r, GIVEN_UP, FAILURE, token="o", owes=bool(r.owes), ring=1)),
    "drain": ("running", lambda r: states.drain(r, "w1 shuts down", token="o", owes=bool(r.owes))),
    "take_over": ("running", lambda r: states.take_over(r, "w1 was shut down", "o")),
    "cancelled": ("running", lambda r: states.cancelled(r, "", token="o", owes=bool(r.owes))),
    "unregistered": ("queued", lambda _: states.unregistered("shop.gone")),
    "undecodable": ("queued", lambda _: states.undecodable(FAILURE)),
    "hand_over": ("queued", lambda _: states.hand_over("shop.charge")),
    "hold": ("queued", lambda _: states.hold("the queue is paused", None)),
    "lose": ("running", lambda r: states.lose(r, FAILURE, "o")),
    "terminate": ("running", lambda r: states.terminate(r, FAILURE, "o", "revoked")),
    "cancel": ("queued running waiting", lambda r: states.cancel(r, "o", "not wanted")),
    "expire": ("queued waiting", lambda r: states.expire(r, "o", FAILURE)),
    "replay": ("dead cancelled", lambda _: states.replay("again")),
    "replay_later": ("dead cancelled", lambda _: states.replay("again", states.After(9))),
    "replay_alias": ("dead cancelled", lambda _: states.replay_alias("again")),
    "follow_succeeded": ("waiting", lambda r: states.follow("succeeded", None, "o", owes=bool(r.owes), first="f")),
    "follow_dead": ("waiting", lambda r: states.follow("dead", "permanent", "o", owes=bool(r.owes), first="f")),
    "follow_cancelled": ("waiting", lambda r: states.follow("cancelled", None, "o", owes=bool(r.owes), first="f")),
}
#: What the ledger itself writes without a decision.
WRITTEN = {
    "claim": ("queued", lambda r: states.Move("claim", "running", LIVE_AND_OVER["running"] | {"claims": r.claims + 1})),
    "release": ("waiting", lambda _: states.Move("release", "queued", states.into_queued())),
    "succeed": ("running", lambda _: states.Move("succeed", "succeeded", states.into_terminal("succeeded", owed="o"))),
}


def test_every_decision_is_tried_here():
    made = {
        name for name, made in inspect.getmembers(states, inspect.isfunction)
        if inspect.signature(made).return_annotation == "Move"
    }  # fmt: skip
    tried = {name.partition("_succeeded")[0] for name in DECISIONS} | {"replace_message"}
    assert made <= tried | {"follow"}


@pytest.mark.parametrize(("name", "state"), [(n, s) for n, (sources, _) in DECISIONS.items() for s in sources.split()])
@pytest.mark.parametrize("flag", [None, 1])
@pytest.mark.parametrize("on_loss", ["retry", "dead"])
@pytest.mark.parametrize("losses", [0, 2])
def test_every_decision_is_a_move_of_the_table(name, state, flag, on_loss, losses):
    row = seen(row_in(state, cancel_requested_at=flag, on_loss=on_loss, losses=losses))

    move = DECISIONS[name][1](row)

    assert states.allowed(move.verb, state, move.to)
    assert move.changes.get("state", state) == move.to
    assert set(move.changes) <= set(COLUMNS)
    assert move.reason


def test_the_table_knows_only_states_that_there_are():
    for verb, (sources, targets) in states.MOVES.items():
        assert sources <= {None, *states.STATES}, verb
        assert targets <= set(states.STATES), verb
    assert set(states.STATES) == states.LIVE | states.TERMINAL
    assert not states.LIVE & states.TERMINAL


def test_nothing_leaves_success():
    assert not [verb for verb, (sources, _) in states.MOVES.items() if states.SUCCEEDED in sources]


def test_what_is_over_leaves_by_replay_only():
    leaving = [v for v, (sources, _) in states.MOVES.items() if sources & {states.DEAD, states.CANCELLED}]
    assert leaving == ["replay"]


def test_only_a_claim_makes_a_row_run():
    starting = [v for v, (sources, targets) in states.MOVES.items() if states.RUNNING in targets - sources]
    assert starting == ["claim"]
    assert states.MOVES["claim"][0] == {states.QUEUED}


@pytest.mark.parametrize("flagged", ["fail", "retry", "wait", "lose", "replace", "drain", "take_over", "cancelled"])
def test_a_flagged_row_ends_cancelled_and_owes(flagged):
    row = seen(row_in("running", cancel_requested_at=1))

    move = DECISIONS[flagged][1](row)

    assert move.to == states.CANCELLED
    assert move.changes["continuation_pending"] == "o"
    assert move.changes["publish_at"] is not None


def test_a_replay_never_touches_claims():
    for name in ("replay", "replay_later", "replay_alias"):
        assert "claims" not in DECISIONS[name][1](seen(row_in("dead"))).changes


_checker = sqlite3.connect(":memory:", check_same_thread=False)
_names = ", ".join(f"?{n} AS {name}" for n, name in enumerate(COLUMNS, 1))
_verdicts = ", ".join(f"({rule}) IS NOT 0" for rule in TASK_CHECKS.values())  # as a CHECK: unknown passes


def broken_rules(row):
    """The rules that this row breaks, as SQL itself judges them."""
    values = [1 if isinstance(row[c], states.After | states.At) else row[c] for c in COLUMNS]
    verdicts = _checker.execute(f"SELECT {_verdicts} FROM (SELECT {_names})", values).fetchone()
    return [rule for rule, kept in zip(TASK_CHECKS, verdicts, strict=True) if not kept]


def test_the_rules_are_judged():
    assert broken_rules(row_in("queued", publish_at=None)) == ["queued_rung"]
    assert "dead_has_kind" in broken_rules(row_in("dead", failure_kind=None))


@pytest.mark.parametrize("state", states.STATES)
def test_the_columns_of_every_state_keep_the_rules(state):
    assert broken_rules(row_in(state)) == []


@given(st.data())
def test_no_sequence_of_decisions_breaks_a_rule_of_the_database(data):
    row = row_in(
        data.draw(st.sampled_from(["queued", "waiting"])),
        on_loss=data.draw(st.sampled_from(["retry", "dead"])),
        owes=data.draw(st.integers(0, 1)),
        max_losses=data.draw(st.integers(1, 3)),
    )
    for _ in range(data.draw(st.integers(1, 25))):
        possible = [n for n, (sources, _) in (DECISIONS | WRITTEN).items() if row["state"] in sources.split()]
        if not possible or row["observed"]:  # no verb touches what is only observed
            break
        name = data.draw(st.sampled_from(possible))
        move = (DECISIONS | WRITTEN)[name][1](seen(row))
        assert states.allowed(move.verb, row["state"], move.to), name
        row |= move.changes
        assert broken_rules(row) == [], name
