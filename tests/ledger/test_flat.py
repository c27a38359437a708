"""What a verb costs follows what is due, never what is stored."""

from __future__ import annotations

import pytest

from tests.conftest import DIALECTS
from tests.ledger.stock import ACTS, SLACK, crowd, fill, work

FEW = 1_000
SIZES = [50_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


@pytest.mark.parametrize("many", SIZES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_work_of_every_verb_is_the_same_beside_many_finished_rows(stocked, dialect, many):
    few, lots = stocked(dialect, FEW), stocked(dialect, many)

    assert not steep(few, lots, ACTS)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nor_does_it_follow_the_live_rows_that_are_not_due(stocked, fresh, dialect):
    few, lots = stocked(dialect, FEW), fresh(dialect)
    fill(lots, FEW, live=160)

    assert not steep(few, lots, ("glance", "expire_deadlines", "claim"))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nor_does_an_idle_look_follow_the_rows_that_wait(stocked, fresh, dialect):
    few, lots = stocked(dialect, FEW), fresh(dialect)
    fill(lots, FEW)
    crowd(lots, 3_000)

    assert not steep(few, lots, ("glance", "release", "follow"))


def steep(few, lots, verbs):
    """Verbs that cost more, as (few, lots); the least of three counts: a page split is not the verb's own."""
    found = {}
    for verb in verbs:
        least = [float("inf"), float("inf")]
        for _ in range(3):
            least = [min(cost, work(ledger, ACTS[verb])) for cost, ledger in zip(least, (few, lots), strict=True)]
            if least[1] <= 1.3 * least[0] + SLACK.get(few.dialect.name, 0):
                break
        else:
            found[verb] = tuple(least)
        print(verb, *least)
    return found
