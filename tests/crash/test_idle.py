"""What a worker costs that has nothing to do while 10,000 rows wait: measured, so on a machine at rest only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.conftest import DIALECTS
from tests.ledger.stock import crowd
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.fleet import Worker
    from tests.crash.kit import Stage

#: Waiting rows, seconds of measurement, the part of one core that is allowed.
MANY, SECONDS, LIMIT = 10_000, 30.0, 0.02
#: As it comes.
USUAL = {"durable_lease": 30.0, "durable_sweep_interval": 1.0, "durable_republish_after": 30.0}


@pytest.mark.slow
@pytest.mark.parametrize("ledger", DIALECTS)
def test_ten_thousand_waiting_rows_cost_an_idle_worker_little(stage: Callable[..., Stage], ledger: str) -> None:
    crash = stage("redis", ledger, **USUAL, broker_transport_options={"polling_interval": None})
    worker = crash.worker()
    alone = share(worker)
    crowd(crash.ledger, MANY)
    crowded = share(worker)
    assert crash.states() == {"waiting": MANY}
    print(f"IDLE ledger={ledger} rows=0: {alone:.2%} of one core; rows={MANY}: {crowded:.2%}")
    assert crowded < LIMIT


def share(worker: Worker) -> float:
    """The part of one core that a worker and its pool processes use, over some time."""
    began, spent = time.monotonic(), seconds(worker)
    wait_until(lambda: time.monotonic() - began >= SECONDS, SECONDS + 60)
    return (seconds(worker) - spent) / (time.monotonic() - began)


def seconds(worker: Worker) -> float:
    """Processor time of all of its processes so far."""
    times = [psutil.Process(pid).cpu_times() for pid in (worker.pid, *worker.children)]
    return sum(t.user + t.system for t in times)
