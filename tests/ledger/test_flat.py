"""What a verb costs follows what is due, never what is stored."""

from __future__ import annotations

import pytest

from tests.conftest import DIALECTS
from tests.ledger.kit import empty
from tests.ledger.stock import ACTS, SLACK, fill, work

FEW = 1_000
SIZES = [50_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


@pytest.mark.parametrize("many", SIZES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_work_of_every_verb_is_the_same_beside_many_finished_rows(stocked, dialect, many):
    few, lots = stocked(dialect, FEW), stocked(dialect, many)

    costs = {verb: (cost(few, verb), cost(lots, verb)) for verb in ACTS}

    assert not steep(costs, dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nor_does_it_follow_the_live_rows_that_are_not_due(stocked, migrated, dialect):
    few, lots = stocked(dialect, FEW), migrated(dialect)
    empty(lots)
    fill(lots, FEW, live=160)

    costs = {verb: (cost(few, verb), cost(lots, verb)) for verb in ("glance", "expire_deadlines", "claim")}

    assert not steep(costs, dialect)


def cost(ledger, verb):
    """The least of three: growing a file or a page split are not the verb's own."""
    return min(work(ledger, ACTS[verb]) for _ in range(3))


def steep(costs, dialect):
    print(costs)
    return {verb: (few, lots) for verb, (few, lots) in costs.items() if lots > 1.3 * few + SLACK.get(dialect, 0)}
