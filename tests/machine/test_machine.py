"""The ledger of every dialect does what the reference says, in whatever order its verbs come."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.ledger.kit import opened
from tests.ledger.wire import Proxy, Wire, lose_commits_of_sqlite
from tests.machine.machine import Machine
from tests.machine.stored import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A failure is told as the calls that lead to it, and a line that repeats it.
SOUND: dict[str, Any] = {
    "deadline": None, "database": None, "print_blob": True, "suppress_health_check": list(HealthCheck),
}  # fmt: skip


@contextmanager
def machine_on(url: str) -> Iterator[type[Machine]]:
    """A machine on an empty database."""
    near, wire, proxy = opened(url), Wire(), None
    near.migrate()
    if near.dialect.name == "sqlite":
        far = opened(url)
        lose_commits_of_sqlite(far.db.engine, wire)
        for ledger in (near, far):
            sa.event.listen(ledger.db.engine, "connect", _hasty)
    else:
        proxy = Proxy(wire, near.db.url)
        far = opened(proxy.proxied_url)
    clock = Clock(near)
    for ledger in (near, far):
        Clock.rules(ledger)
    yield type("Ours", (Machine,), {"ledger": near, "far": far, "wire": wire, "clock": clock})
    for ledger in (near, far):
        ledger.db.dispose()
    if proxy:
        proxy.close()


def _hasty(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")  # nobody cuts the power here


def run(url: str, **how: Any) -> None:
    with machine_on(url) as machine:
        try:
            run_state_machine_as_test(machine, settings=settings(**SOUND, **how))
        finally:
            print(f"{machine.examples} examples")


def test_every_verb_does_what_the_reference_says(ledger_url):
    examples = int(os.environ.get("DURABLE_MACHINE", "0"))
    few = 40 if ledger_url.startswith("sqlite") else 12
    # Shrinking would be worth its time only to people: `python -m tests.mutants` asks for more, and unshrunk.
    phases = [Phase.generate] if examples else [Phase.generate, Phase.shrink]
    run(ledger_url, derandomize=True, max_examples=examples or few, stateful_step_count=30, phases=phases)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_long_lives(ledger_url):
    run(ledger_url, max_examples=500, stateful_step_count=50, verbosity=Verbosity.normal)
