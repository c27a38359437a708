"""The database commits and the reply is lost: every verb comes out as if nothing had happened.

Each verb runs once on a sound wire and once for each of its commits with the reply to that commit lost; then the rows,
their history and their failures must be the same. Where a verb's answer is a count or a list of what it moved itself,
the answer after a lost reply may leave out what had been moved: the table below says where.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import sqlalchemy as sa

from celery_durable.errors import LeaseLost, LedgerUnavailable
from celery_durable.ledger import Presence
from celery_durable.steps import Content
from tests.ledger.kit import (
    BROKER,
    QUEUE,
    boom,
    cancelled,
    claimed,
    dead,
    empty,
    envelope,
    fails,
    gone,
    make_due,
    queued,
    retry,
    row_of,
    running,
    submission,
    succeed,
    succeeded,
    waiting,
    waits,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.ledger import Ledger


def again(verb: Callable[[], Any]) -> Any:
    """Ask once more, as callers do, where the database's answer was an error."""
    try:
        return verb()
    except LedgerUnavailable:
        return verb()


class Case(NamedTuple):
    """A verb with what it needs beforehand; `answer` tells which part of its answer must stay the same."""

    prepare: Callable[[Ledger], Any]
    call: Callable[[Ledger, Any], Any]
    answer: Callable[[Any], Any] = lambda answer: answer


def nothing(_answer: Any) -> None:
    """The answer tells what this very call moved: after a lost reply that is less."""


def due(ledger: Ledger, row_id: int, column: str) -> int:
    make_due(ledger, row_id, column)
    return row_id


def first_with_alias(ledger: Ledger) -> Any:
    claim = running(ledger, "k")
    queued(ledger, "k", awaited=True)
    return claim


def told(done: Any) -> Any:
    """`new` and `own` are the same row, and so are `replayed` and `existing`."""
    return done.task_id, done.state, done.envelope_no


def settles(decide: Any) -> Callable[[Ledger, Any], Any]:
    return lambda ledger, claim: ledger.settle(claim, decide, actor="w")


RESULT = Content(b"42", "application/json")
PRESENCE = Presence("w1", "celery@w1", 1, ["celery"], ["t"], "b", 30)
CASES = {
    "submit": Case(lambda _: submission("k", task_id="fixed"), lambda ledger, sub: ledger.submit(sub), told),
    "submit_with_an_eta": Case(
        lambda _: submission("k", task_id="fixed", wake=_soon()), lambda ledger, sub: ledger.submit(sub), told
    ),
    "submit_of_a_taken_key": Case(
        lambda ledger: queued(ledger, "k", task_id="first"), lambda ledger, _: queued(ledger, "k"), told
    ),
    "submit_of_a_dead_key": Case(
        lambda ledger: dead(ledger, "k", task_id="first"), lambda ledger, _: queued(ledger, "k", task_id="second"), told
    ),
    "submit_of_a_dead_key_or_raise": Case(
        lambda ledger: (dead(ledger, "k", task_id="first"), submission("k", task_id="second"))[1],
        lambda ledger, sub: ledger.submit(sub, on_conflict="raise"),
        told,
    ),
    "submit_of_an_alias": Case(
        lambda ledger: (queued(ledger, "k"), submission("k", task_id="fixed", awaited=True))[1],
        lambda ledger, sub: ledger.submit(sub),
        told,
    ),
    "adopt": Case(
        lambda _: submission("k", task_id="fixed"), lambda ledger, sub: ledger.submit(sub, verb="adopt"), told
    ),
    "park": Case(lambda _: submission(), lambda ledger, sub: ledger.park(sub, boom(), actor="w"), nothing),
    "unpublished": Case(queued, lambda ledger, row: ledger.unpublished(row.row_id, 1)),
    "claim": Case(
        lambda ledger: queued(ledger, task_id="fixed"),
        lambda ledger, _: claimed(ledger, "fixed", token="t"),
        lambda claim: (claim.task_id, claim.claims, claim.token),
    ),
    "renew": Case(running, lambda ledger, claim: list(ledger.renew({claim.task_id: claim.token}, 60).values())),
    "succeed": Case(running, lambda ledger, claim: succeed(ledger, claim, owes=True)),
    "succeed_before_an_alias": Case(first_with_alias, succeed),
    "fail": Case(running, settles(fails(owes=True))),
    "fail_before_an_alias": Case(first_with_alias, settles(fails())),
    "retry": Case(
        running, lambda ledger, claim: settles(fails(retry=retry(sent=envelope(claim.task_id))))(ledger, claim)
    ),
    "wait": Case(running, settles(waits())),
    "record_step": Case(
        running, lambda ledger, claim: ledger.record_step(claim, "charge", RESULT, seconds=1, actor="w")
    ),
    "write_checkpoint": Case(
        running, lambda ledger, claim: ledger.write_checkpoint(claim, RESULT, progress=True, actor="w")
    ),
    "lose": Case(
        running, lambda ledger, c: ledger.lose(c.task_id, c.token, gone(), owed_token="o", actor="k"), nothing
    ),
    "release": Case(
        lambda ledger: due(ledger, waiting(ledger).row_id, "wake_at"),
        lambda ledger, _: ledger.release(9, actor="s"),
        nothing,
    ),
    "expire_leases": Case(
        lambda ledger: due(ledger, running(ledger).row_id, "lease_expires_at"),
        lambda ledger, _: ledger.expire_leases(9, actor="s"),
        nothing,
    ),
    "expire_deadlines": Case(
        lambda ledger: due(ledger, queued(ledger).row_id, "deadline_at"),
        lambda ledger, _: ledger.expire_deadlines(9, actor="s"),
        nothing,
    ),
    "follow": Case(
        lambda ledger: (succeeded(ledger, "k"), queued(ledger, "k", awaited=True, owes=True)),
        lambda ledger, _: ledger.follow(9, actor="s"),
        nothing,
    ),
    "take_rings": Case(
        lambda ledger: due(ledger, queued(ledger).row_id, "publish_at"),
        lambda ledger, _: ledger.take_rings(BROKER, 9, depths={QUEUE: 0}),
        nothing,
    ),
    "clear_continuations": Case(
        lambda ledger: succeeded(ledger, owes=True),
        lambda ledger, claim: ledger.clear_continuations({claim.task_id: claim.token}),
        nothing,
    ),
    "cancel": Case(queued, lambda ledger, row: ledger.cancel_row(row.row_id, "no", actor="ann")),
    "cancel_running": Case(running, lambda ledger, claim: ledger.cancel_row(claim.row_id, "no", actor="ann")),
    "replay": Case(cancelled, lambda ledger, row: ledger.replay_row(row.row_id, "again", actor="ann"), nothing),
    "enter": Case(lambda _: None, lambda ledger, _: ledger.enter(PRESENCE)),
    "beat": Case(
        lambda ledger: ledger.enter(PRESENCE), lambda ledger, _: ledger.beat("w1", phase="running", running=2)
    ),
}


def _soon() -> Any:
    from celery_durable.states import After

    return After(60)


@pytest.mark.parametrize("verb", CASES)
def test_a_verb_whose_reply_is_lost_comes_out_as_if_nothing_had_happened(ledger, lossy, wire, verb):
    case = CASES[verb]
    prepared = case.prepare(ledger)
    wire.lose(0)
    expected = case.answer(case.call(lossy, prepared))
    sound, commits = picture(ledger), wire.commits
    if verb != "submit_of_a_taken_key":
        assert commits, "the wire saw no commit"

    for number in range(1, commits + 1):
        empty(ledger)
        prepared = case.prepare(ledger)
        wire.lose(number)
        answer = case.answer(again(lambda: case.call(lossy, prepared)))  # noqa: B023 - called at once

        assert wire.commits >= number
        assert answer == expected
        assert picture(ledger) == sound


def picture(ledger: Ledger) -> list[list[dict[str, Any]]]:
    """All that is stored, without what differs from one run to the next."""
    tables = (ledger.t.task, ledger.t.event, ledger.t.failure, ledger.t.worker, ledger.t.step)
    random = {
        "id",
        "task_row",
        "task_id",
        "idempotency_key",
        "key_digest",
        "envelope",
        "duplicate_of",
        "wait_reason",
        "reason",
    }
    told = []
    for table in tables:
        query = sa.select(table).order_by(table.c[0])
        found = ledger.db.run(lambda c, q=query: c.execute(q).mappings().all(), read_only=True)
        told.append([{k: _plain(k, v) for k, v in row.items() if k not in random} for row in found])
    return told


def _plain(name: str, value: Any) -> Any:
    if name.endswith("_at") or name in {"at", "wait_since", "claim_token", "continuation_pending"}:
        return value is not None
    return value


@pytest.mark.parametrize("verb", ["submit", "claim", "succeed", "fail"])
def test_a_database_that_never_answers_is_unavailable_and_asking_again_is_safe(ledger, lossy, wire, verb):
    case = CASES[verb]
    prepared = case.prepare(ledger)
    wire.lose(1, for_good=True)
    with pytest.raises(LedgerUnavailable) as caught:
        case.call(lossy, prepared)
    assert caught.value.outcome == "unknown"
    assert caught.value.task_id == prepared.task_id

    wire.lose(0)
    case.call(lossy, prepared)

    told = [e.verb for e in ledger.events(row_of(ledger, prepared.task_id).id)]
    assert len(told) == len(set(told))


def test_a_claim_that_is_over_is_fenced_whatever_replies_are_lost(ledger, lossy, wire):
    for number in itertools.count(1):
        claim = running(ledger)
        make_due(ledger, claim.row_id, "lease_expires_at")
        ledger.expire_leases(10, actor="sweep")
        wire.lose(number)
        with pytest.raises(LeaseLost):
            again(lambda: succeed(lossy, claim))  # noqa: B023 - called at once
        assert row_of(ledger, claim.row_id).state == "queued"
        if wire.commits < number:
            break
    assert number > 1


def test_a_ring_taken_back_twice_still_rings(ledger, lossy, wire):
    row = queued(ledger)
    make_due(ledger, row.row_id, "publish_at")
    ledger.take_rings(BROKER, 9, depths={})
    wire.lose(1)

    again(lambda: lossy.ring_again([row.row_id], at_once=True))

    rings, _ = ledger.take_rings(BROKER, 9, depths={})
    assert [r.row_id for r in rings] == [row.row_id]
