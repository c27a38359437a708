"""Each kind of illegal row is refused by the database itself, whoever inserts it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from celery_durable.ledger.schema import tables
from celery_durable.ledger.schema_rules import TASK_CHECKS
from tests.ledger.kit import opened

NOW = 1_700_000_000_000_000
LEASE = {"lease_owner": "w", "lease_expires_at": NOW, "claim_token": "t", "started_at": NOW}
WAIT = {"wait_kind": "retry", "wait_reason": "late", "wait_since": NOW, "wake_at": NOW}
LEGAL: dict[str, dict[str, Any]] = {
    "queued": {"publish_at": NOW},
    "running": LEASE,
    "waiting": WAIT,
    "succeeded": {"finished_at": NOW},
    "dead": {"finished_at": NOW, "failure_kind": "permanent"},
    "cancelled": {"finished_at": NOW},
}
OWING = {"continuation_pending": "c", "publish_at": NOW}

#: rule -> (state, what makes a legal row of that state illegal, what is wrong)
ILLEGAL: dict[str, list[tuple[str, dict[str, Any], str]]] = {
    "state_known": [("lost", {}, "no state of ours"), ("Queued", {}, "a state in other letters")],
    "running_leased": [
        ("running", {"lease_owner": None}, "running without an owner"),
        ("running", {"lease_expires_at": None}, "running without an expiry"),
        ("running", {"claim_token": None}, "running without a token"),
        ("running", {"started_at": None}, "running without a start"),
        ("queued", {"lease_owner": "w"}, "an owner of what nobody runs"),
        ("waiting", {"lease_expires_at": NOW}, "a lease of what nobody runs"),
        ("succeeded", {"lease_owner": "w", "lease_expires_at": NOW}, "a lease of what is over"),
    ],
    "waiting_explained": [
        ("waiting", {"wait_kind": None}, "a wait without a kind"),
        ("waiting", {"wait_reason": None}, "a wait without a reason"),
        ("waiting", {"wait_reason": ""}, "a wait with an empty reason"),
        ("waiting", {"wait_since": None}, "a wait without a beginning"),
        ("waiting", {"wake_at": None}, "a wait without an end"),
        ("queued", {"wait_kind": "retry"}, "a wait of what does not wait"),
        ("running", {"wake_at": NOW}, "a time to wake what does not wait"),
        ("dead", {"wake_at": NOW}, "a time to wake what is over"),
    ],
    "dead_has_kind": [
        ("dead", {"failure_kind": None}, "dead of nothing"),
        ("succeeded", {"failure_kind": "permanent"}, "a success that failed"),
        ("queued", {"failure_kind": "permanent"}, "a failure of what is live"),
    ],
    "terminal_finished": [
        ("succeeded", {"finished_at": None}, "a success without an end"),
        ("dead", {"finished_at": None}, "dead without an end"),
        ("cancelled", {"finished_at": None}, "cancelled without an end"),
        ("queued", {"finished_at": NOW}, "queued with an end"),
        ("running", {"finished_at": NOW}, "running with an end"),
        ("waiting", {"finished_at": NOW}, "waiting with an end"),
    ],
    "queued_rung": [("queued", {"publish_at": None}, "queued where no sweep sees it")],
    "owing_rung": [
        ("succeeded", {"continuation_pending": "c"}, "owing where no sweep sees it"),
        ("dead", {"continuation_pending": "c"}, "a failure owed where no sweep sees it"),
        ("queued", {"continuation_pending": "c"}, "owing before it is over"),
        ("running", OWING, "owing while it runs"),
    ],
    "rung_for_a_reason": [
        ("running", {"publish_at": NOW}, "rung while it runs"),
        ("waiting", {"publish_at": NOW}, "rung while it waits"),
        ("cancelled", {"publish_at": NOW}, "rung though nothing is owed"),
    ],
    "keyed_or_alias": [
        ("queued", {"key_digest": None}, "neither key nor first"),
        ("queued", {"duplicate_of": 1}, "key and first"),
    ],
    "counters": [
        ("queued", {name: -1}, f"negative {name}")
        for name in ("claims", "losses", "retries", "publish_count", "rings", "deferrals")
    ]
    + [("queued", {"envelope_no": 0}, "no envelope"), ("queued", {"max_losses": 0}, "dead before it is lost")],
    "observed_unpromised": [
        ("queued", {"observed": 1}, "a promise to ring what is only observed"),
        ("running", {"observed": 1, "claim_token": None}, "a lease of what is only observed"),
        ("waiting", {"observed": 1}, "a time to wake what is only observed"),
        ("succeeded", {"observed": 1, "deadline_at": NOW}, "a deadline of what is only observed"),
        ("dead", {"observed": 1, **OWING}, "an outcome owed of what is only observed"),
        ("succeeded", {"observed": 2}, "half observed"),
    ],
    "pruned_over": [
        ("queued", {"pruned_at": NOW}, "queued without a message"),
        ("dead", {"pruned_at": NOW, **OWING}, "an outcome owed of what is pruned"),
    ],
    "on_loss_known": [("queued", {"on_loss": "explode"}, "no answer to a loss")],
}
CASES = [
    pytest.param(rule, *case[:2], id=case[2].replace(" ", "-")) for rule, cases in ILLEGAL.items() for case in cases
]


def values(state: str, **changes: Any) -> dict[str, Any]:
    given = {
        "task_id": "id", "task": "t", "key_digest": hashlib.sha256(b"k").digest(), "idempotency_key": "k",
        "state": state, "queue": "q", "broker": "b", "envelope": "{}", "body": b"", "max_losses": 3, "on_loss": "retry",
        "owes": 0, "submitted_at": NOW, "submitted_by": "",
    }  # fmt: skip
    return given | LEGAL.get(state, {}) | changes


def insert(ledger, row):
    ledger.db.run(lambda c: c.execute(sa.insert(ledger.t.task).values(row)))


def test_every_rule_has_its_illegal_rows():
    assert set(ILLEGAL) == set(TASK_CHECKS)


@pytest.mark.parametrize("state", LEGAL)
def test_a_legal_row_is_taken(ledger, state):
    insert(ledger, values(state))

    if "finished_at" in LEGAL[state]:
        insert(ledger, values(state, task_id="2", key_digest=None, duplicate_of=1, **OWING))


@pytest.mark.parametrize(("rule", "state", "changes"), CASES)
def test_an_illegal_row_is_refused(ledger, rule, state, changes):
    with pytest.raises((exc.IntegrityError, exc.OperationalError), match=f"durable_{rule}"):
        insert(ledger, values(state, **changes))


@pytest.mark.parametrize(("rule", "state", "changes"), [c for c in CASES if c.values[1] in LEGAL])
def test_no_row_becomes_illegal(ledger, rule, state, changes):
    insert(ledger, values(state))
    update = sa.update(ledger.t.task).values(changes)

    with pytest.raises((exc.IntegrityError, exc.OperationalError), match=f"durable_{rule}"):
        ledger.db.run(lambda c: c.execute(update))


@pytest.mark.parametrize("column", ["task_id", "key_digest"])
def test_ids_and_keys_are_unique(ledger, column):
    insert(ledger, values("queued"))
    other = {"task_id": "other", "key_digest": hashlib.sha256(b"other").digest()}
    del other[column]

    with pytest.raises(exc.IntegrityError):
        insert(ledger, values("queued", **other))


def _required():
    task = tables("durable_").task
    return [c.name for c in task.columns if not c.nullable and c.server_default is None and not c.primary_key]


@pytest.mark.parametrize("column", _required())
def test_what_every_row_needs_cannot_be_left_out(ledger, column):
    with pytest.raises((exc.IntegrityError, exc.OperationalError)):
        insert(ledger, values("queued") | {column: None})


def test_a_ledger_has_one_identity(ledger):
    second = sa.insert(ledger.t.ledger).values(id=2, uuid="u", created_at=NOW)

    with pytest.raises((exc.IntegrityError, exc.OperationalError)):
        ledger.db.run(lambda c: c.execute(second))


def test_two_prefixes_are_two_ledgers(make_database):
    url = make_database("sqlite")
    first, other = opened(url), opened(url, table_prefix="other_")
    first.migrate()
    other.migrate()

    insert(other, values("queued"))

    assert first.find() == []
    assert other.uuid != first.uuid
    with pytest.raises(exc.IntegrityError, match="other_queued_rung"):
        insert(other, values("queued", task_id="2", key_digest=b"2", publish_at=None))
