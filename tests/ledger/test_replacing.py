"""A canvas stands in for a row: its last part takes over, and nothing else does."""

from __future__ import annotations

import dataclasses

import pytest

from celery_durable import states
from tests.ledger import kit


@pytest.fixture
def stood_in(ledger):
    """A call whose row waits for the canvas that its body sent."""
    call = kit.submission("k")
    ledger.submit(call)
    claim = kit.claimed(ledger, call.task_id)
    ledger.settle(claim, lambda row: states.stand_in(row, token="t", owes=False), actor="w")
    return call


def test_the_last_part_takes_over_once(ledger, stood_in):
    part = dataclasses.replace(
        stood_in, nesting=1, envelope=kit.envelope(stood_in.task_id, body=b"[[1],{},{}]"), parent_id="before"
    )
    assert ledger.submit(part).outcome == "replacing"
    assert ledger.submit(part).outcome == "own"
    assert kit.row_of(ledger, stood_in.task_id).state == "queued"


def test_the_call_itself_that_comes_again_changes_nothing(ledger, stood_in):
    """Its client was told that the ledger is away, and submits again under the same id (PROTOCOL 1)."""
    before = kit.row_of(ledger, stood_in.task_id)
    assert ledger.submit(stood_in).outcome == "own"
    assert kit.row_of(ledger, stood_in.task_id) == before
    assert kit.verbs(ledger, before.id) == ["submit", "claim", "replace"]


@pytest.mark.parametrize("change", ["nesting", "parent_id", "body"])
def test_a_part_that_is_much_like_the_call_takes_over(ledger, stood_in, change):
    other = {"nesting": 1, "parent_id": "before"}.get(change)
    body = kit.envelope(stood_in.task_id, body=b"[[1],{},{}]")
    part = dataclasses.replace(stood_in, **({"envelope": body} if change == "body" else {change: other}))
    assert ledger.submit(part).outcome == "replacing"
