"""Many rows that are due at once: released in bounded batches, by several sweepers in turn, each row once."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from celery_durable.worker.sweeper import BATCH, BATCHES
from tests.ledger.kit import race
from tests.ledger.stock import crowd

SWEEPERS = 3


@pytest.mark.parametrize("number", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_herd_is_released_in_batches_each_row_once(ledger, number):
    crowd(ledger, number, due=True)
    began = time.monotonic()

    def sweep(me: int) -> list[int]:
        """A worker's turns: so many batches at most, then the others get theirs."""
        turns = []
        while sum(turns[-1:]) or not turns:
            moved = []
            while len(moved) < BATCHES and (not moved or moved[-1] == BATCH):
                moved.append(ledger.release(BATCH, actor=f"sweep-{me}"))
            turns.append(sum(moved))
        return turns

    turns = race(SWEEPERS, sweep)
    print(f"HERD ledger={ledger.dialect.name} rows={number} seconds={time.monotonic() - began:.1f} turns={turns}")
    assert sum(map(sum, turns)) == number
    assert max(map(max, turns)) <= BATCH * BATCHES
    e = ledger.t.event.c
    query = sa.select(e.task_row, e.actor).where(e.verb == "release")
    released = ledger.db.run(lambda c: c.execute(query).all(), read_only=True)
    assert len(released) == len({r.task_row for r in released}) == number
    if ledger.dialect.name != "sqlite":  # whose lock is not fair: who has it may have it again at once
        assert len({r.actor for r in released}) > 1, "one did it all"
