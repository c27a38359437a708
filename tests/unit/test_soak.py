"""The soak's pure parts: its plan, its judge, its report."""

import json
from collections import Counter
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from tests.crash.witness import FINISHED, STARTED, Sight
from tests.soak import report
from tests.soak.judge import ACCEPTED, ATTEMPTED, REFUSED, Fault, judge, percentile, recoveries
from tests.soak.plan import BLOWS, CALM, SPELLS, draw
from tests.soak.storm import Outcome


def client(what, *numbers):
    return [Sight(what, str(n), 0, 1, "", 0.0) for n in numbers]


def ends(*numbers):
    return [Sight(FINISHED, f"id-{n}", 0, 1, f"{n} a1@crash", float(n)) for n in numbers]


def body(what, task_id, pid, at, worker="a1@crash"):
    return Sight(what, task_id, 0, pid, f"1 {worker}", at)


def test_a_plan_is_that_of_its_seed():
    assert draw(2, 7, 4) == draw(2, 7, 4)
    assert draw(2, 7, 4) != draw(2, 8, 4)


def test_ten_minutes_hold_two_hundred_kills_and_each_other_fault_five_times():
    counts = Counter(strike.kind for strike in draw(10, 1, 4))
    assert sum(counts[blow] for blow in BLOWS) >= 200
    assert all(counts[kind] == 5 for kind in SPELLS)


def test_faults_that_last_do_not_meet(seed):
    spells = [strike for strike in draw(10, seed, 4) if strike.seconds]
    for before, after in pairwise(spells):
        assert before.at + sum(SPELLS[before.kind]) <= after.at + 1e-9
    assert spells[0].at >= CALM
    assert spells[-1].at + sum(SPELLS[spells[-1].kind]) <= 600 - CALM + 1e-9


def test_a_plan_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"1 minutes are too short .*: 2 would do"):
        draw(1, 1, 4)


def test_the_judge_finds_each_kind_of_fault():
    told = client(ATTEMPTED, 1, 2, 3, 4, 5) + client(ACCEPTED, 1, 2, 3) + client(REFUSED, 4, 5)
    verdict = judge(told, ends(1, 1, 3, 4, 9), {1: 2, 4: 1, 9: 1})
    assert (verdict.attempts, verdict.accepted, verdict.refused, verdict.completed) == (5, 3, 2, 4)
    assert verdict.lost == (2,)
    assert verdict.unexpected == (9,)
    assert verdict.repeated == 1
    assert verdict.recovered == 1
    assert verdict.effects_lost == 2
    assert verdict.effects_doubled == (1,)
    assert not verdict.kept


def test_the_judge_is_content_with_what_is_right():
    assert judge(client(ATTEMPTED, 1) + client(ACCEPTED, 1), ends(1, 1), {1: 1}).kept


def test_recovery_of_a_kill_is_the_next_start_of_what_it_ran():
    sights = [body(STARTED, "x", 7, 1.0), body(STARTED, "done", 8, 1.0), body(FINISHED, "done", 8, 1.5)]
    sights += [body(STARTED, "done", 9, 2.1), body(STARTED, "x", 9, 2.75), body(STARTED, "x", 10, 9.0)]
    assert recoveries([Fault("kill_worker", 2.0, 2.0, (7, 8))], sights) == {"kill_worker": [0.75]}


def test_a_kill_beside_another_fault_is_told_apart():
    sights = [body(STARTED, "x", 7, 1.0), body(STARTED, "x", 9, 3.0)]
    faults = [Fault("kill_child", 2.0, 2.0, (7,)), Fault("broker_kill", 2.5, 4.0)]
    assert recoveries(faults, sights)["kill_child, amid others"] == [1.0]


def test_recovery_of_a_cut_worker_is_its_own_next_start():
    sights = [body(STARTED, "x", 7, 5.5, "b1@crash"), body(STARTED, "y", 8, 6.0, "a2@crash")]
    assert recoveries([Fault("cut_broker_in", 1.0, 5.0, workers="a")], sights) == {"cut_broker_in": [1.0]}
    assert recoveries([Fault("broker_kill", 1.0, 5.0)], sights) == {"broker_kill": [0.5]}


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentiles_are_values_that_were_seen(share, value):
    assert percentile(range(1, 101), share) == value


def test_an_outcome_can_be_read_and_looked_at():
    told = client(ATTEMPTED, 1, 2) + client(ACCEPTED, 1, 2)
    faults = [Fault("kill_child", 11.0, 11.0, (1,)), Fault("disk_full", 12.0, 15.0)]
    outcome = Outcome(
        side="durable", pair="redis-postgresql", verdict=judge(told, ends(1, 2), {1: 1, 2: 1}), audit={}, settled=True,
        recoveries={"kill_child": [0.5]}, faults=faults, failed=[], began=10.0, finished=[10.5, 12.5], workers=4,
        fell=0,
    )  # fmt: skip
    assert outcome.kept
    soaks = json.loads(json.dumps(report.document([outcome], 1, 0.1)))["soaks"]
    assert soaks[0]["timeline"] == [1, 0, 1]
    assert soaks[0]["recovery_seconds"] == {"kill_child": {"count": 1, "p50": 0.5, "p99": 0.5, "max": 0.5}}
    titles = [e.text for e in ET.fromstring(report.picture([outcome], 1)).iter() if e.tag.endswith("title")]  # noqa: S314
    assert titles == ["kill_child at 1.0 s", "disk_full at 2.0 s"]
    assert [table.row_count for table in report.tables([outcome])] == [15, 1]
