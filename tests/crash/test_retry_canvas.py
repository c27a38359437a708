"""Retries inside of chains, groups and chords: each part goes on where it was, and the whole completes once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import chain, chord, group

from tests.crash.witness import FINISHED, STARTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.kit import Stage
    from tests.services import Redis


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_canvas_whose_parts_are_retried_completes_once(
    stage: Callable[..., Stage], redis_server: Redis, broker: str
) -> None:
    # Given a chain, a group and a chord of tasks that are retried twice, by themselves or by what they raise
    crash = stage(broker, "sqlite", result_backend=redis_server.db())
    crash.worker(concurrency=3)
    part, gathered, work = (crash.app.tasks[name] for name in ("stumbles", "gathered", "work"))
    linked = work.s().set(task_id="the-callback")
    one = chain(part.s(1), part.s(how="raised").set(link=linked), work.s()).apply_async()
    some = group(part.s(2), part.s(3, how="raised")).apply_async()
    all_of_them = chain(chord([part.s(4), part.s(5, how="raised"), work.s(6)], gathered.s()), part.s()).apply_async()

    # When they are waited for, then each gives its result
    assert one.get(timeout=120) == 1
    assert some.get(timeout=120) == [2, 3]
    assert all_of_them.get(timeout=120) == [4, 5, 6]
    crash.await_(lambda: crash.states() == {"succeeded": 11}, "something else is there")  # once each, nothing twice

    # And each body has ended once, after as many runs as it was retried
    for row in crash.rows():
        retries = 2 if row.task == "stumbles" else 0
        assert (row.claims, row.retries, row.losses) == (retries + 1, retries, 0), row.task
        assert len(crash.witness.of(row.task_id, STARTED)) == retries + 1
        ended = 0 if row.task == "gathered" else 1
        assert len(crash.witness.of(row.task_id, FINISHED)) == ended
    assert {row.task_id for row in crash.rows()} >= {"the-callback", one.id, all_of_them.id}
    crash.await_(lambda: not [r for r in crash.rows() if r.continuation_pending], "something is still owed")
    crash.audit()
