"""Crash points without failpoints: strace strikes at each system call of a move, and nothing is lost or doubled."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.conftest import DIALECTS, broker_of, ledger_of
from tests.sweep.moves import MOVES
from tests.sweep.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.sweep.strace import Strace

#: Of what `make test` takes each time anew: so many strikes, each among the first calls of its move.
SOME, FIRST = 8, 3


def test_some_system_calls_strike(request: pytest.FixtureRequest, tmp_path: Path, seed: int, strace: Strace) -> None:
    rng = random.Random(seed)
    with ledger_of(request, rng.choice(DIALECTS), tmp_path) as url:
        sweep = Sweep(tmp_path, broker_of(request, "filesystem", tmp_path), url, strace)
        chosen = [(rng.choice(list(MOVES)), rng.choice(sweep.kinds), rng.randint(1, FIRST)) for _ in range(SOME)]
        try:
            for each in sorted(set(chosen)):
                assert sweep.strike(*each) or each[-1] > 1, f"{each} did not strike"
            sweep.judge()
        finally:
            sweep.close()


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_system_call_strikes(
    request: pytest.FixtureRequest, tmp_path: Path, strace: Strace, dialect: str,
    record_property: Callable[..., None],
) -> None:  # fmt: skip
    with ledger_of(request, dialect, tmp_path) as url:
        sweep = Sweep(tmp_path, broker_of(request, "filesystem", tmp_path), url, strace)
        try:
            swept = {move: {kind.name: sweep.points(move, kind) for kind in sweep.kinds} for move in MOVES}
            for move, points in swept.items():
                print(f"SWEEP {dialect} {move}: {points}")
                assert all(points.values()), f"{move}: {points}"
            sweep.judge()
        finally:
            sweep.close()
    record_property("swept", {dialect: swept})
