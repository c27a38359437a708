"""A pool process that dies at a commit on the way to what follows: nothing of a canvas is lost, nothing comes twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import chain, chord, group

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.kit import Stage

#: Where a process dies, once each: as it settles, sends what follows, and counts the parts of a chord.
POINTS = ("settle", "succeed", "submit", "begin_chord", "size_chord", "part_returned", "close_chord")


@pytest.mark.parametrize("action", [pytest.param("die", marks=pytest.mark.slow), "execute-then-die"])
def test_a_canvas_is_whole_whatever_commit_a_process_dies_at(
    stage: Callable[..., Stage], tmp_path_factory: pytest.TempPathFactory, action: str
) -> None:
    crash = stage(result_backend="durable://", durable_republish_after=1.0)
    struck = tmp_path_factory.mktemp("struck")
    points = ";".join(f"{verb}.commit={action}" for verb in POINTS)
    crash.fleet._env.update(DURABLE_FAILPOINTS=points, DURABLE_FAILPOINTS_ONCE=str(struck))
    tasks = crash.app.tasks
    next_, gathered, delegate = tasks["next"], tasks["gathered"], tasks["delegate"]
    pair = group(gathered.s(), gathered.s())
    forms = {  # form: (canvas, result, rows)
        "chain to chord": (chain(next_.s(0), group(next_.s(), next_.s()), gathered.s()), [2, 2], 4),
        "body of groups": (chord([next_.s(0), next_.s(1)], chain(pair, gathered.s())), [[1, 2], [1, 2]], 5),
        "replaced by chain": (delegate.s("chain", 0), 2, 2),
        "replaced by chord": (delegate.s("chord", 0), [1, 2], 3),
        "replaced twice": (chain(delegate.s("delegate", 0), next_.s()), 3, 4),
        "callback": (next_.s(0), 1, 4),
    }
    # Alone: the first submission in a worker is the first of the callback's pair, the other comes from another process.
    results = {"callback": forms["callback"][0].apply_async(link=chain(pair, gathered.s()))}
    crash.worker(concurrency=3)
    crash.await_(lambda: crash.states() == {"succeeded": 4}, "the callback is not whole")
    results |= {name: canvas.apply_async() for name, (canvas, _, _) in forms.items() if name not in results}

    def over() -> bool:
        rows = crash.rows()
        return all(r.state == "succeeded" and not r.continuation_pending for r in rows) and len(rows) >= expected

    expected = sum(count for *_, count in forms.values())
    crash.await_(over, "not everything succeeded")
    assert {name: result.get(timeout=60) for name, result in results.items()} == {k: v[1] for k, v in forms.items()}
    rows = crash.rows()
    assert len(rows) == expected, sorted((r.task, r.root_id) for r in rows)
    assert {mark.name for mark in struck.iterdir()} == {f"{verb}.commit-die" for verb in POINTS}
    for row in rows:
        replaced = sum(verb == "replace" for verb in crash.verbs(row.task_id))
        runs = len(crash.witness.of(row.task_id))
        assert runs <= 1 + row.losses + replaced, (row.task, runs, row.losses, replaced)
    assert crash.ledger.verify() == []
