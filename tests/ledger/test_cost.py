"""What the hot verbs cost on PostgreSQL: round trips as a proxy sees them. It is counted, not timed."""

from __future__ import annotations

import itertools

import pytest

from celery_durable.steps import Content
from tests.ledger.kit import BROKER, claimed, opened, queued, row_of, running, submission, succeed, succeeded
from tests.ledger.wire import Proxy, Wire

NUMBERS, AGAIN = itertools.count(), itertools.count()
WARM, COUNTED = 8, 5  # psycopg prepares on the server what it has sent five times: that is a round trip of its own

#: verb -> (what is there before, the call, its round trips); a number that has to rise here is a loss of speed.
VERBS = {
    "submit": (lambda _: submission(), lambda ledger, sub: ledger.submit(sub), 1),
    "submit with a deadline": (lambda _: submission(deadline_at=2 * 10**15), lambda ledger, sub: ledger.submit(sub), 1),
    "submit a key that is done": (
        lambda ledger: (succeeded(ledger, f"k{next(NUMBERS)}"), submission(f"k{next(AGAIN)}"))[1],
        lambda ledger, sub: ledger.submit(sub), 6,
    ),
    "a key that is remembered as done": (
        lambda ledger: row_of(ledger, succeeded(ledger).row_id),
        lambda ledger, row: ledger.finished(row.id, row.key_digest).task_id, 1,
    ),
    "claim": (queued, lambda ledger, row: claimed(ledger, row.task_id), 1),
    "succeed": (running, succeed, 1),
    "succeed, owing": (running, lambda ledger, claim: succeed(ledger, claim, owes=True), 1),
    "what was owed": (
        lambda ledger: succeeded(ledger, owes=True),
        lambda ledger, claim: ledger.clear_continuations({claim.task_id: claim.token}), 1,
    ),
    "step": (
        running,
        lambda ledger, claim: ledger.record_step(claim, "a", Content(b"1", "application/json"), seconds=0.1, actor="w"),
        1,
    ),
    "renew": (running, lambda ledger, claim: ledger.renew({claim.task_id: claim.token}, 30), 1),
    "an idle sweep": (lambda _: None, lambda ledger, _: ledger.glance(BROKER), 1),
    "a refused claim": (
        running, lambda ledger, claim: ledger.claim(claim.task_id, "other", owner="w", pid=1, lease=30), 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_the_round_trips_of_a_verb_do_not_rise(postgres_ledger, verb):
    prepare, call, expected = VERBS[verb]
    wire = Wire()
    proxy = Proxy(wire, postgres_ledger.db.url)
    far = opened(proxy.proxied_url)
    before = [prepare(postgres_ledger) for _ in range(WARM + COUNTED)]
    counted = []
    try:
        for given in before:
            wire.replies = 0
            call(far, given)
            counted.append(wire.replies)
    finally:
        far.db.dispose()
        proxy.close()
    assert counted[WARM:] == [expected] * COUNTED, counted


def test_nobody_is_told_of_a_result_while_nobody_listens(postgres_ledger):
    """A hint is a commit of its own: a task that nobody waits for has none."""
    ledger = postgres_ledger

    def heard() -> bool:
        claim = running(ledger)
        return ledger.succeed(claim, b"1", "application/json", owes=False, actor="w", continuation_grace=30)

    assert not heard()
    with ledger.ears.listen() as hear:
        assert not hear(1, {"any"}), "it only begins to listen"
        assert heard()
        with ledger.ears.listen() as another:
            another(1, {"any"})
        assert heard(), "one has left, the other listens still"
    assert not heard()
