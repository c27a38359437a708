"""Every form of canvas, with `task_cls` set to `DurableTask`, beside a stock app: the same comes out."""

from __future__ import annotations

import pytest
from celery import chain, chord, group, signature
from celery.canvas import StampingVisitor
from celery.exceptions import Ignore

from celery_durable import DurableTask
from tests.waiting import wait_until
from tests.worker.kit import rows, settled, working

DEADLINE = 30


class Shop:
    """The same tasks in whichever app; what they were called with is noted."""

    def __init__(self, app):  # noqa: C901 - a task after the other
        self.app, self.seen = app, []
        task = app.task

        @task(name="add", shared=False)
        def add(x, y):
            return x + y

        @task(name="total", shared=False)
        def total(numbers):
            return sum(numbers)

        @task(name="note", shared=False)
        def note(value):
            self.seen.append(value)
            return value

        @task(name="fail", shared=False, throws=(ValueError,))
        def fail(*_):
            raise ValueError("as planned")

        @task(name="sorry", shared=False)
        def sorry(task_id):
            self.seen.append("sorry")

        @task(name="stamped", shared=False, bind=True)
        def stamped(self_):
            return self_.request.stamps

        @task(name="replaced", shared=False, bind=True)
        def replaced(self_, form, x):
            forms = {
                "task": lambda: add.s(x, 1),
                "chain": lambda: chain(add.s(x, 1), add.s(1)),
                "chord": lambda: chord([add.s(x, 1), add.s(x, 2)], total.s()),
                "group": lambda: group(add.s(x, 1), add.s(x, 2)),
                "group in chain": lambda: chain(add.s(x, 1), group(add.s(1), add.s(2))),
                "group first": lambda: chain(group(add.s(x, 1), add.s(x, 2)), total.s(), add.s(5)),
                "itself": lambda: replaced.s("chain", x),
                "nested": lambda: chain(add.s(x, 1), replaced_by.s("chain")),
                "failing": lambda: chain(add.s(x, 1), fail.s(), add.s(1)),
            }
            raise self_.replace(forms[form]())

        @task(name="replaced_by", shared=False, bind=True)
        def replaced_by(self_, x, form):
            raise self_.replace(chain(add.s(x, 1), add.s(1)))

        @task(name="adds_a_part", shared=False, bind=True)
        def adds_a_part(self_, x):
            self_.add_to_chord(add.s(x, 100))
            return x

        @task(name="skips", shared=False)
        def skips():
            raise Ignore

        self.add, self.total, self.note, self.fail, self.sorry = add, total, note, fail, sorry
        self.stamped, self.replaced, self.adds_a_part = stamped, replaced, adds_a_part
        app.finalize()

    def outcomes(self):
        """What each form comes to; all are under way at once."""
        told = {}
        for name, result in {name: form.apply_async() for name, form in self.forms().items()}.items():
            try:
                told[name] = result.get(timeout=DEADLINE)
            except Exception as exc:  # noqa: BLE001 - that too is an outcome
                told[name] = f"{type(exc).__name__}: {exc}".partition(" raised")[0][:25]
        return told

    def forms(self):
        add, total, replaced = self.add, self.total, self.replaced
        told = {
            "chain": chain(add.s(1, 1), add.s(2), add.s(3)),
            "group": group(add.s(n, 1) for n in range(3)),
            "chord": chord([add.s(n, 1) for n in range(3)], total.s()),
            "chord of one": chord([add.s(1, 1)], total.s()),
            "chord of chains": chord([chain(add.s(n, 1), add.s(1)) for n in range(2)], total.s()),
            "chord of chords": chord([chord([add.s(n, 1)], total.s()) for n in range(2)], total.s()),
            "chain of groups": chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s(), add.s(1)),
            "group after group": chain(group(add.s(1, 1), add.s(2, 2)), group(total.s(), total.s())),
            "chord into chain": chain(chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(1)),
            "chord with a chain as body": chord([add.s(1, 1), add.s(2, 2)], chain(total.s(), add.s(1))),
            "chord with a group as body": chord([add.s(1, 1), add.s(2, 2)], group(total.s(), total.s())),
            "immutable": chain(add.s(1, 1), add.si(5, 5)),
            "map": self.note.map([1, 2]),
            "starmap": add.starmap([(1, 2), (3, 4)]),
            "chunks": add.chunks([(n, n) for n in range(4)], 2).group(),
            "failed chain": chain(add.s(1, 1), self.fail.s(), add.s(1)),
            "failed part": chord([add.s(1, 1), self.fail.s()], total.s()),
            "added part": chord([self.adds_a_part.s(1), add.s(1, 1)], total.s()),
        }
        told |= {f"replaced by {form}": replaced.s(form, 1) for form in (
            "task", "chain", "chord", "group", "group in chain", "group first", "itself", "nested", "failing",
        )}  # fmt: skip
        told |= {
            "replaced in a chain": chain(replaced.s("chain", 1), add.s(100)),
            "replaced in a chord": chord([replaced.s("chord", 1), replaced.s("chain", 1), add.s(1, 1)], total.s()),
            "replaced in a group": group(replaced.s("group", 1), add.s(1, 1)),
        }
        return told


EXPECTED = {
    "chain": 7, "group": [1, 2, 3], "chord": 6, "chord of one": 2, "chord of chains": 5, "chord of chords": 3,
    "chain of groups": 8, "group after group": [6, 6], "chord into chain": 7, "chord with a chain as body": 7,
    "chord with a group as body": [6, 6], "immutable": 10, "map": [1, 2], "starmap": [3, 7],
    "chunks": [[0, 2], [4, 6]], "failed chain": "ValueError: as planned", "failed part": "ValueError: as planned",
    "added part": 104,
    "replaced by task": 2, "replaced by chain": 3, "replaced by chord": 5, "replaced by group": [2, 3],
    "replaced by group in chain": [3, 4], "replaced by group first": 10, "replaced by itself": 3,
    "replaced by nested": 4, "replaced by failing": "ValueError: as planned", "replaced in a chain": 103,
    "replaced in a chord": 10, "replaced in a group": [[2, 3], 2],
}  # fmt: skip


@pytest.fixture(params=["redis", "durable"])
def shop(request, make, broker_url):
    backend = broker_url if request.param == "redis" else "durable://"
    return Shop(make(task_cls=DurableTask, result_backend=backend, durable_republish_after=2))


@pytest.mark.timeout(240)
def test_each_form_comes_to_the_same(shop):
    with working(shop.app, concurrency=4):
        told = shop.outcomes()
        assert {k: v for k, v in told.items() if v != EXPECTED[k]} == {}
        wait_until(lambda: all(r.state in {"succeeded", "dead"} for r in rows(shop.app)), timeout=DEADLINE)
        for row in rows(shop.app):
            settled(shop.app, row.task_id)
    assert shop.app.tasks["celery.chord_unlock"].fence == 0
    assert {r.wait_kind for r in rows(shop.app)} == {None}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_stock_app_comes_to_what_is_expected(make, broker_url):
    """The other half: what `EXPECTED` says is what Celery itself does."""
    from celery import Task

    shop = Shop(make(task_cls=Task, result_backend=broker_url))
    with working(shop.app, concurrency=4):
        told = shop.outcomes()
    assert {k: v for k, v in told.items() if v != EXPECTED[k]} == {}


def test_callbacks_and_errbacks(shop):
    with working(shop.app):
        linked = shop.add.apply_async((1, 2), link=[shop.note.s(), chain(shop.add.s(1), shop.note.s())])
        failed = shop.fail.apply_async(link_error=shop.sorry.s())
        grouped = shop.add.apply_async((3, 4), link=group(shop.note.s(), shop.note.s()))
        replaced = shop.replaced.apply_async(("chain", 1), link=shop.note.s())
        broken = shop.replaced.apply_async(("failing", 1), link_error=shop.sorry.s())
        wait_until(lambda: len(shop.seen) >= 7, timeout=DEADLINE)
        for result in (linked, failed, grouped, replaced, broken):
            settled(shop.app, result)
        wait_until(lambda: all(r.finished_at for r in rows(shop.app)), timeout=DEADLINE)
    assert sorted(shop.seen, key=str) == [3, 3, 4, 7, 7, "sorry", "sorry"]


def test_stamps_travel(shop):
    class InMonitoring(StampingVisitor):
        def on_signature(self, sig, **headers):
            return {"monitoring": "nightly"}

    stamped = chain(shop.stamped.si(), shop.stamped.si())
    stamped.stamp(visitor=InMonitoring())
    with working(shop.app):
        last = stamped.apply_async()
        assert last.get(timeout=DEADLINE) == {"monitoring": "nightly"}
        assert last.parent.get(timeout=DEADLINE) == {"monitoring": "nightly"}


def test_signatures_from_json(shop):
    import json

    plain = json.loads(json.dumps(chain(shop.add.s(1, 1), group(shop.add.s(1), shop.add.s(2)), shop.total.s())))
    with working(shop.app):
        assert signature(plain, app=shop.app).apply_async().get(timeout=DEADLINE) == 7
