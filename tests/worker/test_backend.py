"""`result_backend = "durable://"`: what Celery's result API tells, from the ledger's rows."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
from celery import chain, chord, group
from celery.exceptions import Ignore, TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, GroupResult

from celery_durable import DurableTask, ledger
from celery_durable.ledger import Part
from celery_durable.ledger.listening import MAX_EARS
from tests.waiting import wait_until
from tests.worker.kit import (
    Gate,
    migrated,
    over,
    reached,
    record,
    rows,
    settled,
    statements,
    sweep,
    the_ledger,
    working,
)


@pytest.fixture
def durable(make):
    """An app whose results are the rows."""
    return make(result_backend="durable://")


def stored(app):
    """What is kept beside the rows: (kind, ref, state)."""
    t = the_ledger(app).t.result
    query = t.select().with_only_columns(t.c.kind, t.c.ref, t.c.state)
    return the_ledger(app).db.run(lambda c: [tuple(r) for r in c.execute(query)], read_only=True)


def again(app, result):
    """The same result, asked for afresh."""
    return AsyncResult(result.id, app=app)


def test_a_result_is_its_row(durable):
    @durable.task(base=DurableTask)
    def add(x, y):
        return {"sum": x + y}

    result = add.delay(1, 2)
    assert (result.state, result.result) == ("PENDING", None)
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.01)
    with working(durable):
        assert result.get(timeout=30) == {"sum": 3}

    assert (result.state, result.successful(), result.children) == ("SUCCESS", True, [])
    finished = result.date_done
    assert round(finished.timestamp() * 1e6) == record(durable, result).finished_at
    assert stored(durable) == []
    assert record(durable, result).continuation_pending is None


def test_it_is_written_once(durable):
    """From the claim to the end: as many writes as without any result backend."""

    @durable.task(base=DurableTask)
    def add(x, y):
        return x + y

    with working(durable):
        add.delay(0, 0).get(timeout=30)
        with statements(durable) as sent:
            result = add.delay(1, 2)
            over(durable, result)
        assert result.get(timeout=30) == 3

    writes = [s.split(None, 3)[:3] for s in sent if not s.lstrip().startswith(("SELECT", "BEGIN", "PRAGMA"))]
    touched = [w[1] if w[0] == "UPDATE" else w[2] for w in writes]
    # submit, claim, settle, each with its history row; the worker reports itself now and then
    assert [t for t in touched if t != "durable_worker"] == ["durable_task", "durable_event"] * 3


class Refused(Exception):
    """Of this module: a reader that has it makes it again."""


def test_a_failure_is_made_again(durable):
    @durable.task(base=DurableTask)
    def fail(kind):
        raise {"key": KeyError("x"), "own": Refused("card", 7)}[kind]

    with working(durable):
        key, own = fail.delay("key"), fail.delay("own")
        with pytest.raises(KeyError) as missing:
            key.get(timeout=30)
        with pytest.raises(Refused) as refused:
            own.get(timeout=30)

    assert (missing.value.args, refused.value.args) == (("x",), ("card", 7))
    assert (key.state, key.failed()) == ("FAILURE", True)
    assert "in fail" in key.traceback
    assert stored(durable) == []


def test_states_while_it_is_under_way(durable):
    gate = Gate()

    @durable.task(base=DurableTask, track_started=True)
    def tracked():
        gate.hold()

    @durable.task(base=DurableTask)
    def untracked():
        gate.hold()

    @durable.task(base=DurableTask, bind=True, autoretry_for=(ValueError,), retry_backoff=False, default_retry_delay=60)
    def flaky(self):
        raise ValueError("not now")

    with working(durable, concurrency=3):
        shown, hidden, retried = tracked.delay(), untracked.delay(), flaky.delay()
        for one in (shown, hidden):
            reached(durable, one, "running")
        reached(durable, retried, "waiting")
        assert (shown.state, hidden.state, retried.state) == ("STARTED", "PENDING", "RETRY")
        assert set(shown.info) == {"pid", "hostname"}
        assert isinstance(retried.info, ValueError)
        gate.let_go()
        assert shown.get(timeout=30) is None
    assert stored(durable) == []


def test_a_state_of_the_tasks_own(durable):
    gate = Gate()

    @durable.task(base=DurableTask, bind=True)
    def importing(self):
        self.update_state(state="PROGRESS", meta={"done": 3})
        gate.hold()
        return "done"

    @durable.task(base=DurableTask, bind=True)
    def skipped(self):
        self.update_state(state="SKIPPED", meta="nothing to do")
        raise Ignore

    with working(durable):
        result = importing.delay()
        gate.await_body()
        assert (result.state, result.info) == ("PROGRESS", {"done": 3})
        gate.let_go()
        assert result.get(timeout=30) == "done"
        other = skipped.delay()
        over(durable, other)
    assert again(durable, result).state == "SUCCESS"
    assert (other.state, other.info) == ("SKIPPED", "nothing to do")


def test_cancelled_and_expired_are_revoked(durable):
    @durable.task(base=DurableTask)
    def work():
        pass

    cancelled, late = work.apply_async(countdown=600), work.apply_async(expires=0.01)
    ledger(durable).cancel(cancelled.id, reason="not wanted")
    wait_until(lambda: sweep(durable) or record(durable, late).state == "dead", timeout=30)

    for result, reason in ((cancelled, "not wanted"), (late, "expired")):
        assert result.state == "REVOKED"
        with pytest.raises(TaskRevokedError, match=reason):
            result.get(timeout=30)


def test_forget(durable):
    @durable.task(base=DurableTask)
    def add(x, y):
        return x + y

    with working(durable):
        result = add.delay(1, 2)
        assert result.get(timeout=30) == 3
    result.forget()

    assert (result.state, again(durable, result).state) == ("PENDING", "PENDING")
    row = record(durable, result)
    assert (row.state, row.result) == ("succeeded", None)


def test_a_forgotten_task_that_is_replayed_has_a_result_again(durable):
    answers = [ValueError("no"), "yes"]

    @durable.task(base=DurableTask, throws=(ValueError,))
    def ask():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with working(durable):
        result = ask.delay()
        with pytest.raises(ValueError, match="no"):
            result.get(timeout=30)
        result.forget()
        assert again(durable, result).state == "PENDING"
        ledger(durable).replay(result.id)
        assert again(durable, result).get(timeout=30) == "yes"


def test_ignored_results_are_not_kept(durable):
    @durable.task(base=DurableTask, ignore_result=True)
    def quiet():
        return "nobody asks"

    with working(durable):
        result = quiet.delay()
        assert over(durable, result).result is None
    assert (again(durable, result).state, again(durable, result).result) == ("SUCCESS", None)


def test_stock_tasks_of_the_app(durable):
    @durable.task
    def stock(x):
        if x < 0:
            raise ValueError("negative")
        return 2 * x

    with working(durable):
        good, bad = stock.delay(2), stock.delay(-1)
        assert good.get(timeout=30) == 4
        with pytest.raises(ValueError, match="negative"):
            bad.get(timeout=30)
    assert sorted(stored(durable)) == sorted([("task", good.id, "SUCCESS"), ("task", bad.id, "FAILURE")])
    assert rows(durable) == []
    good.forget()
    assert again(durable, good).state == "PENDING"


def test_many_at_once(durable):
    @durable.task(base=DurableTask)
    def double(x):
        return 2 * x

    with working(durable):
        grouped = group(double.s(n) for n in range(20)).apply_async()
        grouped.save()
        assert grouped.get(timeout=30) == [2 * n for n in range(20)]
        restored = GroupResult.restore(grouped.id, app=durable)
        assert (restored.completed_count(), restored.join_native(timeout=30)) == (20, [2 * n for n in range(20)])
    grouped.delete()
    assert GroupResult.restore(grouped.id, app=durable) is None


def test_children(durable):
    @durable.task(base=DurableTask)
    def double(x):
        return 2 * x

    @durable.task(base=DurableTask)
    def spread(n):
        group(double.s(i) for i in range(n)).apply_async()
        return double.delay(n).id

    with working(durable):
        last = chain(spread.s(3), double.si(1)).apply_async()
        last.get(timeout=30)
        first = again(durable, last.parent)
        assert first.get(timeout=30)
        wait_until(lambda: len(rows(durable)) == 6, timeout=30)
        for row in rows(durable):
            settled(durable, row.task_id)

    kinds = [(type(c).__name__, len(c) if isinstance(c, GroupResult) else c.get()) for c in first.children]
    assert kinds == [("GroupResult", 3), ("AsyncResult", 6), ("AsyncResult", 2)]
    assert first.children[1].id == first.get()


def test_extended_results(make):
    app = make(result_backend="durable://", result_extended=True)

    @app.task(base=DurableTask, name="shop.add")
    def add(x, y):
        return x + y

    @app.task(base=DurableTask)
    def pay(cents, *, card):
        return cents

    with working(app) as worker:
        open_, secret = add.delay(1, y=2), pay.delay(3, card="4111")
        assert (open_.get(timeout=30), secret.get(timeout=30)) == (3, 3)

    assert (open_.name, open_.retries, open_.queue, open_.worker) == ("shop.add", 0, "celery", worker.hostname)
    assert (list(open_.args), open_.kwargs) == ([1], {"y": 2})
    assert "4111" not in str(secret.kwargs)


def test_a_chord_is_counted_in_the_ledger(durable):
    @durable.task(base=DurableTask)
    def double(x):
        return 2 * x

    @durable.task
    def stock(x):
        return -x

    @durable.task(base=DurableTask)
    def gathered(values):
        return values

    with working(durable):
        plain = chord((double.s(n) for n in range(5)), gathered.s())()
        mixed = chord([double.s(1), stock.s(2), chain(double.s(1), double.s())], gathered.s())()
        nested = chord([double.s(1), chain(double.s(1), group(double.s(), stock.s()))], gathered.s())()
        assert plain.get(timeout=30) == [0, 2, 4, 6, 8]
        assert mixed.get(timeout=30) == [2, -2, 4]
        assert nested.get(timeout=30) == [2, [4, -2]]
    chords = the_ledger(durable).t.chord
    states = the_ledger(durable).db.run(lambda c: [r.state for r in c.execute(chords.select())], read_only=True)
    assert states.count("sent") == 3


def test_a_part_that_fails_fails_the_chord_and_its_replay_mends_it(durable):
    broken, sorry = [1], []

    @durable.task(base=DurableTask, throws=(ValueError,))
    def part(n):
        if n in broken:
            raise ValueError(f"part {n}")
        return n

    @durable.task(base=DurableTask)
    def gathered(values):
        return values

    @durable.task(base=DurableTask)
    def told(task_id):
        sorry.append(task_id)

    with working(durable):
        body = chord([part.s(0), part.s(1)])(gathered.s().on_error(told.s()))
        with pytest.raises(Exception, match="part 1"):
            body.get(timeout=30)
        wait_until(lambda: sorry, timeout=30)
        broken.clear()
        dead = next(r for r in rows(durable) if r.state == "dead")
        settled(durable, dead.task_id)
        ledger(durable).replay(dead.task_id)
        wait_until(lambda: again(durable, body).state == "SUCCESS", timeout=30)
        assert again(durable, body).get() == [0, 1]
    assert sorry == [body.id]


def test_a_failed_step_fails_those_that_would_have_followed(durable):
    @durable.task(base=DurableTask, throws=(ValueError,))
    def fail():
        raise ValueError("first")

    @durable.task(base=DurableTask)
    def then(_):
        pass

    with working(durable):
        last = chain(fail.s(), then.s(), then.s()).apply_async()
        with pytest.raises(ValueError, match="first"):
            last.get(timeout=30)
    assert len(rows(durable)) == 1


def test_what_is_beside_the_rows_expires(durable):
    @durable.task
    def stock():
        return 1

    @durable.task(base=DurableTask)
    def kept():
        return 2

    with working(durable):
        gone, stays = stock.delay(), kept.delay()
        assert (gone.get(timeout=30), stays.get(timeout=30)) == (1, 2)
    durable.backend.expires = 1e-6
    durable.backend.cleanup()
    assert (again(durable, gone).state, again(durable, stays).state) == ("PENDING", "SUCCESS")


def test_a_lost_message_of_a_part_is_no_second_part(durable):
    """A part that is told twice is counted once."""

    @durable.task(base=DurableTask)
    def part(n):
        return n

    @durable.task(base=DurableTask)
    def gathered(values):
        return values

    gid = "the-group"
    kept = the_ledger(durable)
    body = gathered.s().set(task_id="the-body")
    kept.begin_chord(gid)
    kept.size_chord(gid, 2)
    first, last = (Part(f"p{n}", n, "SUCCESS", *durable.backend._packed(n)) for n in (0, 1))
    assert [kept.part_returned(gid, p) for p in (first, first, last, first, last)] == [False, False, True, False, True]
    durable.backend._finish(gid, body)
    assert not kept.part_returned(gid, last)
    assert [r.task_id for r in rows(durable)] == ["the-body"]


@pytest.fixture
def on_postgresql(make, postgres_server):
    return migrated(make(ledger_url=postgres_server.database(), result_backend="durable://"))


def succeed(app, result, value):
    """What a worker does with a task, in short."""
    kept = the_ledger(app)
    claim = kept.claim(result.id, "token", owner="w/1", pid=1, lease=60).claim
    kept.succeed(claim, str(value).encode(), "application/json", owes=False, actor="w/1", continuation_grace=60)
    kept.hint(result.id)


def test_get_is_woken_on_postgresql(on_postgresql):
    """Whoever listens hears of its own result, and of no other; whoever finds no ear left looks by himself."""
    app = on_postgresql

    @app.task(base=DurableTask)
    def work(): ...

    mine, other = work.delay(), work.delay()
    ears, heard = the_ledger(app).ears, []
    with ears.listen() as hear, ExitStack() as lent:
        for _ in range(MAX_EARS - 1):
            lent.enter_context(ears.listen())(1, ())
        assert not hear(1, {mine.id}), "it only begins to listen"
        succeed(app, other, 1)
        assert not hear(0.01, {mine.id})
        thread = threading.Thread(target=lambda: heard.append(hear(60, {mine.id})))
        thread.start()
        succeed(app, mine, 2)
        thread.join(50)
        assert heard == [True]
        assert [r.get(timeout=30) for r in (mine, other)] == [2, 1]


def test_listening_survives_a_fork(on_postgresql):
    """A child neither uses nor closes the connections on which its parent listens."""
    app = on_postgresql

    @app.task(base=DurableTask)
    def work(): ...

    first, second, third = work.delay(), work.delay(), work.delay()
    with pytest.raises(CeleryTimeoutError):
        first.get(timeout=0.1)
    pid = os.fork()
    if pid == 0:
        try:
            succeed(app, second, 2)
            os._exit(0 if second.get(timeout=30) == 2 and first.state == "PENDING" else 1)
        except BaseException:  # noqa: BLE001 - a child must not run the rest of the tests
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    succeed(app, first, 1)
    succeed(app, third, 3)
    assert [first.get(timeout=30), third.get(timeout=30)] == [1, 3]


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import sys, time, gevent
from celery import Celery
from celery_durable import DurableTask
from celery_durable.wiring import plugin

app = Celery("shop", broker="memory://", backend="durable://", set_as_current=False)
app.conf.durable_ledger_url = sys.argv[1]

@app.task(base=DurableTask, name="work")
def work(): ...

results = [work.delay() for _ in range(12)]
ticks = []

def tick():
    while not all(w.ready() for w in waiting):
        ticks.append(1)
        gevent.sleep(0.01)

def finish():
    gevent.sleep(1)
    for r in results:
        kept = plugin(app).ledger
        claim = kept.claim(r.id, "token", owner="w/1", pid=1, lease=60).claim
        kept.succeed(claim, b"7", "application/json", owes=False, actor="w/1", continuation_grace=60)
        kept.hint(r.id)

waiting = [gevent.spawn(r.get, timeout=60) for r in results]
gevent.joinall([gevent.spawn(tick), gevent.spawn(finish), *waiting], timeout=90)
assert [w.value for w in waiting] == [7] * 12, [w.value or w.exception for w in waiting]
assert len(ticks) > 20, f"others ran {len(ticks)} times meanwhile"
"""


def test_greenlets_wait_beside_one_another(on_postgresql):
    url = on_postgresql.conf.durable_ledger_url
    done = subprocess.run(
        [sys.executable, "-c", GREENLETS, url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_part_that_runs_again_adds_its_part_once(durable):
    runs = []

    @durable.task(base=DurableTask)
    def part(n):
        return n

    @durable.task(base=DurableTask, bind=True, autoretry_for=(ValueError,), retry_backoff=False, default_retry_delay=0)
    def adds(self):
        self.add_to_chord(part.s(10))
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("after it was added")
        return 1

    @durable.task(base=DurableTask)
    def total(numbers):
        return sum(numbers)

    with working(durable):
        assert chord([adds.s(), part.s(100)])(total.s()).get(timeout=30) == 111
    assert (len(runs), len(rows(durable))) == (2, 4)
