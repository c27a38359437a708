"""The moves that are swept: what each needs beforehand, what is done under strace, and when it has happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import sqlalchemy as sa

from celery_durable.errors import LedgerUnavailable
from celery_durable.states import DEAD, QUEUED, RUNNING, SUCCEEDED
from celery_durable.steps import Content
from tests.crash.witness import FINISHED, STARTED
from tests.ledger.kit import SECOND, fails, make_due
from tests.points.tasks import effects

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.records import Claim
    from tests.points.tour import Points

LEASE = 600.0  # passes when all strikes are done


class Move(NamedTuple):
    """`prepare` is given the id of a task to come, `do` what that returned; `stands` tells what `do` has promised."""

    prepare: Callable[[Points, str], Any]
    do: Callable[[Points, Any], object]
    stands: Callable[[Points, str], bool]
    #: It is a client's, who does it again when the process that did it has died.
    client: bool = False
    states: tuple[str, ...] = (SUCCEEDED,)


def again(do: Callable[[], object]) -> None:
    """Do it once more, as callers do, where the ledger was not available."""
    try:
        do()
    except LedgerUnavailable:
        do()


def submit(stage: Points, ref: str, **options: Any) -> str:
    stage.submit("works", 7, task_id=ref, **options)
    return ref


def claimed(stage: Points, ref: str) -> Claim:
    return claim(stage, (submit(stage, ref), uuid4().hex))


def claim(stage: Points, told: tuple[str, str]) -> Claim:
    ref, token = told
    answer = stage.ledger.claim(ref, token, owner="swept", pid=1, lease=LEASE)
    assert answer.claim is not None, answer.why
    return answer.claim


def step(stage: Points, claim: Claim) -> None:
    stage.ledger.record_step(claim, "look", Content(b"7", "application/json"), seconds=0.1, actor="swept")


def transact(stage: Points, claim: Claim, name: str = "book", more: str = "") -> None:
    def book(connection: sa.Connection) -> Content:
        connection.execute(sa.insert(effects).values(ref=claim.task_id + more))
        return Content(b"null", "application/json")

    stage.ledger.transact_step(claim, name, stage.ledger.enclosure(book), book, actor="swept")


def worked(stage: Points, ref: str) -> Claim:
    """A claim under which all has been done that its body does."""
    claim = claimed(stage, ref)
    stage.witness.saw(STARTED, ref, claim.claims)
    step(stage, claim)
    transact(stage, claim)
    transact(stage, claim, "book more", " more")
    stage.witness.saw(FINISHED, ref, claim.claims)
    return claim


def succeed(stage: Points, claim: Claim) -> None:
    stage.ledger.succeed(claim, b"7", "application/json", owes=False, actor="swept", continuation_grace=30)


def fail(stage: Points, claim: Claim) -> None:
    stage.ledger.settle(claim, fails(), actor="swept")


def put_off(stage: Points, seconds: int = 3600) -> None:
    """Have whatever waits look again so much later."""
    t = stage.ledger.t.task
    later = stage.ledger.dialect.clock_sql + seconds * SECOND
    change = sa.update(t).where(t.c.wake_at.is_not(None)).values(wake_at=later)
    stage.ledger.db.run(lambda connection: connection.execute(change))


def due(stage: Points, ref: str) -> str:
    """A wait that is over; that of no other row is, or it would be released along."""
    put_off(stage)
    submit(stage, ref, countdown=3600)
    make_due(stage.ledger, stage.row(ref).id, "wake_at")
    return ref


def release(stage: Points, _ref: str) -> None:
    stage.ledger.release(9, actor="swept")


def cancelled(stage: Points, ref: str) -> int:
    row_id: int = stage.row(submit(stage, ref)).id
    stage.ledger.cancel_row(row_id, "not wanted", actor="ann")
    return row_id


def replay(stage: Points, row_id: int) -> None:
    stage.ledger.replay_row(row_id, "wanted after all", actor="ann")


def is_in(state: str) -> Callable[[Points, str], bool]:
    return lambda stage, ref: stage.row(ref).state == state


def has(name: str) -> Callable[[Points, str], bool]:
    return lambda stage, ref: name in [s.name for s in stage.ledger.steps(stage.row(ref).id)]


MOVES = {
    "submit": Move(lambda _, ref: ref, submit, is_in(QUEUED), client=True),
    "claim": Move(lambda stage, ref: (submit(stage, ref), uuid4().hex), claim, is_in(RUNNING)),
    "step": Move(claimed, step, has("look")),
    "transactional step": Move(claimed, transact, has("book")),
    "succeed": Move(worked, succeed, is_in(SUCCEEDED)),
    "fail": Move(claimed, fail, is_in(DEAD), states=(DEAD, SUCCEEDED)),
    "release": Move(due, release, is_in(QUEUED)),
    "replay": Move(cancelled, replay, is_in(QUEUED), client=True),
}
