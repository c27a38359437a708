"""What must be true after a tour, by the ledger, by the witness that knows nothing of it, and by what was committed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tests.crash.witness import STARTED
from tests.points.tasks import effects

if TYPE_CHECKING:
    from tests.points.tour import Points

#: Events that tell something of a row without moving it.
NOTES = {"fenced", "rerun", "progress"}


def judge(stage: Points) -> None:
    """Nothing is lost, nothing is unexpected, nothing was done twice."""
    rows = {r.task_id: r for r in stage.rows()}
    expected = _expected(stage)
    owners = {r.task_id: r.task_id if r.task_id in expected else r.root_id for r in rows.values()}
    keyed = {r.idempotency_key: r.task_id for r in rows.values() if r.task == "keyed"}
    owners |= {task_id: key for key, task_id in keyed.items() if key in expected}
    unexpected = {i: (rows[i].task, rows[i].state) for i, owner in owners.items() if owner not in expected}
    assert not unexpected, f"nobody submitted {unexpected}"
    left = Counter(owners.values())
    for ref, wanted in expected.items():
        if not (wanted["optional"] and not left[ref]):
            assert left[ref] == wanted["rows"], f"{ref} left {left[ref]} rows, not {wanted['rows']}"
    for task_id, row in rows.items():
        if not row.observed:
            assert row.state in expected[owners[task_id]]["states"], f"{task_id} ({row.task}) is {row.state}"
    _histories(stage, rows)
    _executions(stage, rows)
    done = [r.task_id for r in rows.values() if r.task == "works" and r.state == "succeeded"]
    there = stage.ledger.db.run(lambda c: list(c.execute(sa.select(effects.c.ref)).scalars()), read_only=True)
    assert Counter(there) == Counter(f"{task_id}{more}" for task_id in done for more in ("", " more"))
    assert stage.ledger.verify() == []


def _expected(stage: Points) -> dict[str, Any]:
    lines = (stage.folder / "expected").read_text().splitlines()
    return {line["ref"]: line for line in map(json.loads, lines)}


def _histories(stage: Points, rows: dict[str, Any]) -> None:
    """Each history has no gap, a claim for each number, and one success of what succeeded."""
    t = stage.ledger.t
    query = sa.select(t.task.c.task_id, t.event).join(t.event, t.event.c.task_row == t.task.c.id).order_by(t.event.c.id)
    histories: dict[str, list[Any]] = {}
    for event in stage.ledger.db.run(lambda c: c.execute(query).all(), read_only=True):
        if not rows[event.task_id].observed:
            histories.setdefault(event.task_id, []).append(event)
    for task_id, events in histories.items():
        row, told = rows[task_id], [(e.verb, e.from_state, e.to_state, e.claim) for e in events]
        moves = [e for e in events if e.verb not in NOTES]
        for before, after in pairwise(moves):
            assert before.to_state == after.from_state, (task_id, told)
        assert moves[-1].to_state == row.state, (task_id, told)
        claims = [e.claim for e in events if e.verb == "claim"]
        assert claims == list(range(1, row.claims + 1)), (task_id, told)
        endings = [e.verb for e in moves if e.to_state == "succeeded"]
        assert len(endings) == (row.state == "succeeded"), (task_id, told)


def _executions(stage: Points, rows: dict[str, Any]) -> None:
    """A claim begins its body once at most, and what has succeeded came to its end."""
    started = Counter((s.task_id, s.fence) for s in stage.witness.sights if s.what == STARTED)
    assert {key for key, times in started.items() if times > 1} == set()
    for task_id, fence in started:
        assert fence <= rows[task_id].claims, f"{task_id} ran under claim {fence} of {rows[task_id].claims}"
    finished = stage.witness.finished()
    for task_id, row in rows.items():
        if row.state == "succeeded" and not row.observed and not row.duplicate_of:
            assert task_id in finished, f"{task_id} ({row.task}) succeeded, but its body did not come to its end"
