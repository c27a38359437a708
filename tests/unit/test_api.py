"""The ledger as user code sees it: what it accepts, what it refuses, and what it passes on."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery

from celery_durable import BadRequest, DurableTask, NoSuchTask
from celery_durable import ledger as ledger_of
from celery_durable.api import as_payload, event_name, replayed, when
from celery_durable.ledger import Batch
from celery_durable.states import After, At
from tests.ledger import kit


@pytest.fixture
def app(tmp_path):
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.durable_ledger_url = f"sqlite:///{tmp_path / 'ledger.db'}"
    app.conf.durable_max_message_bytes = 2_000

    @app.task(name="shop.charge", base=DurableTask, shared=False)
    def charge():
        """Do nothing."""

    return app


@pytest.fixture
def view(app):
    view = ledger_of(app)
    yield view
    view._ledger.db.dispose()


# --- events -----------------------------------------------------------------------------------------


def test_an_event_is_sent_by_ref(view):
    claim = kit.running(view._ledger, "order-1")

    assert view.send_event("order-1", "paid", {"cents": [5, None, "é"]})
    assert not view.send_event(claim.task_id, "paid", 6)
    assert view._ledger.event(claim, "paid") == '{"cents": [5, null, "\\u00e9"]}'
    assert view.send_event("order-1", "seen")
    assert view._ledger.event(claim, "seen") == "null"
    assert view._ledger.events(claim.row_id)[-1].actor.endswith(tuple("0123456789"))


def loop():
    found: list[object] = []
    found.append(found)
    return found


@pytest.mark.parametrize("payload", [object(), {1, 2}, b"x", float("nan"), float("inf"), {(1, 2): 3}, loop()])
def test_a_payload_that_json_has_no_form_for_is_refused(view, payload):
    kit.queued(view._ledger, "order-1")

    with pytest.raises(BadRequest, match="has to be JSON"):
        view.send_event("order-1", "paid", payload)


def test_a_payload_has_a_limit():
    assert as_payload("x" * 98, 100) == f'"{"x" * 98}"'
    with pytest.raises(BadRequest, match="101 bytes; durable_max_message_bytes allows 100"):
        as_payload("x" * 99, 100)


@pytest.mark.parametrize("name", ["", " ", " paid", "paid ", "x" * 256, "a\nb", "a\0b", "\ud800"])
def test_a_name_that_a_database_could_not_tell_apart_is_refused(name):
    with pytest.raises(BadRequest, match="is no name of an event"):
        event_name(name)


@pytest.mark.parametrize("name", ["paid", "order paid", "x" * 255, "bezahlt: ümlaut ✓", "a.b/c"])
def test_other_names_are_fine(name):
    assert event_name(name) == name


# --- replays ----------------------------------------------------------------------------------------


def test_a_replay_of_one_and_of_many(view):
    made = [kit.dead(view._ledger, f"order-{n}") for n in range(4)]
    fingerprint = kit.boom().fingerprint

    assert view.replay("order-0", "fixed", fresh=True)
    assert not view.replay("order-0")
    assert view.replay_many(fingerprint=fingerprint, reason="fixed", limit=1) == 1
    assert view.replay_many(task="shop.charge", kind="permanent", rate=1000) == 2
    assert {view.get(r.task_id).state for r in made} == {"queued"}
    assert view._ledger.events(made[1].row_id)[-1].reason == "fixed"
    with pytest.raises(BadRequest, match="Which dead tasks"):
        view.replay_many(reason="everything")


class Slow:
    """A ledger that replays as many as it is asked for, and has no more than 25."""

    def __init__(self):
        self.batches = []

    def replay_all(self, _which, _reason, *, limit, batch=100, **_):
        rest = 25 if limit is None else limit
        while rest:
            done = min(batch, rest)
            self.batches.append(done)
            rest -= done
            yield Batch(done)


@pytest.mark.parametrize(
    ("rate", "batches", "least"),
    [(None, [25], 0), (10, [10, 10, 5], 2), (2.5, [2] * 12 + [1], 9), (0.5, [1] * 25, 48), (500, [25], 0)],
)
def test_a_rate_is_kept_on_the_whole(rate, batches, least):
    ledger, pauses = Slow(), []

    for _ in replayed(ledger, None, "", rate=rate, pause=pauses.append):
        pass

    assert ledger.batches == batches
    # Nobody waited in truth, so that each pause makes up for all that was done until then.
    assert max(pauses, default=0) >= least - 1
    assert all(p > 0 for p in pauses)


def test_nobody_waits_behind_the_last_one():
    pauses = []

    assert len(list(replayed(Slow(), None, "", rate=5, limit=5, pause=pauses.append))) == 1
    assert pauses == []


# --- failures, waits, pauses ------------------------------------------------------------------------


def test_failures_and_their_groups(view):
    kit.dead(view._ledger, "order-1")

    (failed,) = view.failures(task="shop.charge", since=timedelta(hours=1))
    (group,) = view.failure_groups(since=datetime(2020, 1, 1, tzinfo=timezone.utc))

    assert (failed.key, failed.state, group.count, group.dead) == ("order-1", "dead", 1, 1)
    assert view.failures(kind="timeout") == []
    assert view.failure_groups(fingerprint="another") == []


def test_a_pause_and_its_end(view):
    kit.queued(view._ledger, "order-1")

    assert view.pause("task:shop.charge", "closed", until=timedelta(hours=2)) == 1
    assert [(p.target, p.reason) for p in view.pauses()] == [("shop.charge", "closed")]
    assert [r.key for r in view.waits(kind="paused")] == ["order-1"]
    assert view.resume("shop.charge") == 1
    with pytest.raises(BadRequest, match="over already"):
        view.pause("queue:celery", "closed", until=datetime(2020, 1, 1, tzinfo=timezone.utc))


@pytest.mark.parametrize(
    ("text", "target"),
    [("task:a", ("task", "a")), ("queue:a:b", ("queue", "a:b")), ("queue:task:x", ("queue", "task:x"))],
)
def test_a_target_says_what_it_is(view, text, target):
    assert view.target(text) == target


@pytest.mark.parametrize("text", ["nope", "task:", "host:name", ""])
def test_a_target_that_nobody_knows_is_refused(view, text):
    with pytest.raises(BadRequest, match="say task:"):
        view.target(text)


def test_a_bare_name_that_the_app_or_the_ledger_knows(view):
    kit.queued(view._ledger, queue="reports")

    assert view.target("shop.charge") == ("task", "shop.charge")
    assert view.target("reports") == ("queue", "reports")


def test_times():
    noon = datetime(2030, 1, 2, 12, tzinfo=timezone(timedelta(hours=1)))
    assert when(None) is None
    assert when(timedelta(hours=2)) == After(7200)
    assert when(timedelta(hours=2), ago=True) == After(-7200)
    assert when(noon) == At(1_893_582_000_000_000)
    with pytest.raises(BadRequest, match="no time zone"):
        when(noon.replace(tzinfo=None))


@pytest.mark.parametrize("call", ["send_event", "replay"])
def test_an_unknown_ref_is_an_error(view, call):
    with pytest.raises(NoSuchTask):
        getattr(view, call)("nope", "x")


_WITHOUT_EXTRAS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"redis", "psycopg", "pymysql", "django", "gevent"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import celery_durable, celery_durable.cli, celery_durable.results, celery_durable.worker.steps
from celery import Celery

app = Celery("shop", broker="memory://", task_cls="celery_durable:DurableTask")
app.conf.durable_ledger_url = "sqlite:///" + sys.argv[1]

@app.task
def work():
    pass

work.delay()
"""


def test_what_no_extra_was_asked_for_is_not_needed(tmp_path):
    """As `pip install celery-durable` leaves it: no driver but SQLite's."""
    command = [sys.executable, "-c", _WITHOUT_EXTRAS, str(tmp_path / "ledger.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
