"""Every failpoint x action x ledger x broker: whatever strikes where, work that was accepted is done once."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from celery_durable import failpoints
from celery_durable.ledger import Ledger
from tests.conftest import BROKERS, DIALECTS, broker_of, ledger_of
from tests.points.errands import ERRANDS
from tests.points.judge import judge
from tests.points.tour import ACTIONS, Tour, reachable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from tests.conftest import Broker

#: Of what `make test` takes each time anew: so many cells, and so many of the errands in each.
CELLS, SOME = 2, 4


def test_every_verb_has_an_errand_that_brings_it_about():
    reasons = set().union(*(errand.verbs for errand in ERRANDS.values()))
    here = {point.partition(".")[0] for point in failpoints.points(Ledger.verbs())}
    assert reasons == here, "tests/points/errands.py says which errand is the reason of which verb"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("n", range(CELLS))
def test_some_points_strike(request: pytest.FixtureRequest, tmp_path: Path, seed: int, n: int) -> None:
    rng = random.Random(seed + n)
    dialect, broker, action = rng.choice(DIALECTS), rng.choice(BROKERS), rng.choice(ACTIONS)
    reasons = set().union(*(ERRANDS[name].verbs for name in rng.sample(sorted(ERRANDS), SOME)))
    points = [point for point in reachable(dialect) if point.partition(".")[0] in reasons]
    with ledger_of(request, dialect, tmp_path) as url:
        strike(broker_of(request, broker, tmp_path), url, tmp_path, rng, action, points)


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("action", ACTIONS)
def test_every_point_strikes(
    broker: Broker, ledger_url: str, tmp_path: Path, seed: int, action: str, record_property: Callable[..., None]
) -> None:
    """DURABLE_POINTS names the only ones that shall, for a search."""
    dialect = sa.make_url(ledger_url).get_backend_name().replace("mysql", "mariadb")
    points = os.environ.get("DURABLE_POINTS", "").split() or reachable(dialect)
    strike(broker, ledger_url, tmp_path, random.Random(seed), action, points)
    for name, value in {"points": points, "action": action, "ledger": dialect, "broker": broker.name}.items():
        record_property(name, value)


def strike(
    broker: Broker, ledger_url: str, folder: Path, rng: random.Random, action: str, points: Collection[str]
) -> None:
    """Have each point struck once, and judge what is left."""
    began = time.monotonic()
    tour = Tour(folder, broker, ledger_url, action, points)
    try:
        tour.go(rng)
        print(f"struck: {tour.struck()}\nclients that were struck:\n{tour.errands.log}")
        assert not tour.missing(), f"never reached: {sorted(tour.missing())}"
        judge(tour.stage)
        seconds = time.monotonic() - began
        print(f"POINTS {broker.name} {ledger_url.partition(':')[0]} {action} in {seconds:.1f} s: {tour.facts()}")
    finally:
        tour.close()
