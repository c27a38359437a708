"""durable_fast_path_url: Redis may say anything, or nothing; only how long a "done" takes follows it."""

from __future__ import annotations

import pytest

from celery_durable import DurableTask, KeyConflict, SettingsError, keys, shortcut
from celery_durable.ledger import Aged
from celery_durable.states import After
from celery_durable.wiring import plugin
from tests.ledger.kit import claimed, fails, succeed
from tests.worker.kit import count, record, redis_of, statements, the_ledger


@pytest.fixture
def hints(redis_server):
    """A Redis of its own for what is remembered."""
    return redis_server.db()


@pytest.fixture
def fast(make, hints):
    """An app with a durable task whose key is its argument."""
    return _shop(make, durable_fast_path_url=hints)


def _shop(make, **conf):
    app = make(**conf)

    @app.task(base=DurableTask, name="shop.charge", idempotency_key="{order_id}", shared=False)
    def charge(order_id): ...

    return app


def charge(app, order_id="o-1", **options):
    return app.tasks["shop.charge"].apply_async((order_id,), **options)


def done(app, order_id="o-1"):
    """A call that was made and has succeeded."""
    result = charge(app, order_id)
    ledger = the_ledger(app)
    succeed(ledger, claimed(ledger, result.id), b"7")
    return record(app, result)


def entry_of(app, order_id="o-1"):
    return f"durable:{the_ledger(app).uuid}:{keys.digest('shop.charge', order_id).hex()}"


def test_a_key_that_is_done_asks_for_one_row_once_it_is_remembered(fast, hints):
    first = done(fast)
    assert redis_of(hints).keys() == []

    assert charge(fast).id == first.task_id
    assert redis_of(hints).get(entry_of(fast)) == str(first.id).encode()
    with statements(fast, mine=True) as sent:
        assert charge(fast).id == first.task_id
    assert len([s for s in sent if not s.startswith(("BEGIN", "PRAGMA"))]) == 1
    assert count(fast) == 1
    assert 0 < redis_of(hints).ttl(entry_of(fast)) <= shortcut.KEPT


def test_its_result_is_stored_again_as_ever(make, hints, broker_url):
    app = _shop(make, durable_fast_path_url=hints, result_backend=broker_url)
    done(app)
    for _ in range(2):
        app.backend.client.flushdb()
        assert charge(app).get(timeout=5) == 7


@pytest.mark.parametrize("end", ["live", "dead", "cancelled"])
def test_a_key_that_is_not_done_is_never_remembered(fast, hints, end):
    first = charge(fast)
    if end == "cancelled":
        the_ledger(fast).cancel_row(record(fast, first).id, "no", actor="ann")
    elif end == "dead":
        the_ledger(fast).settle(claimed(the_ledger(fast), first.id), fails(), actor="w")

    assert charge(fast).id == first.id
    assert record(fast, first).state == "queued"
    assert redis_of(hints).keys() == []


LIES = ["another key's row", "the row of a live key", "nowhere", "a negative number", "text", "a list", "too large"]


@pytest.mark.parametrize("lie", LIES)
def test_whatever_redis_says_of_a_key_that_is_not_done_it_is_submitted(fast, hints, lie):
    other = done(fast, "o-2")
    live = charge(fast, "o-3")
    said = {
        "another key's row": other.id, "the row of a live key": record(fast, live).id, "nowhere": 10**12,
        "a negative number": "-1", "text": "done", "too large": "9" * 30,
    }  # fmt: skip
    for name in (entry_of(fast), entry_of(fast, "o-3")):
        if lie == "a list":
            redis_of(hints).rpush(name, "1")
        else:
            redis_of(hints).set(name, said[lie])

    new = charge(fast)

    assert record(fast, new).state == "queued"
    assert charge(fast, "o-3").id == live.id
    assert count(fast) == 3


def test_a_replayed_key_is_not_taken_for_done(fast, hints):
    """Redis was told by somebody that a cancelled row is done; it is queued again all the same."""
    first = charge(fast)
    the_ledger(fast).cancel_row(record(fast, first).id, "no", actor="ann")
    redis_of(hints).set(entry_of(fast), record(fast, first).id)

    assert charge(fast).id == first.id
    assert record(fast, first).state == "queued"


def test_a_key_that_was_pruned_is_done_and_one_that_was_deleted_runs_again(fast):
    first, ledger = done(fast), the_ledger(fast)
    charge(fast)

    list(ledger.prune(Aged(before=After(60))))
    assert charge(fast).id == first.task_id
    list(ledger.forget_keys(-60))
    again = charge(fast)

    assert (again.id != first.task_id, record(fast, again).state) == (True, "queued")


def test_two_deployments_may_share_a_redis(make, hints, tmp_path):
    ours = _shop(make, durable_fast_path_url=hints)
    theirs = _shop(make, durable_fast_path_url=hints, ledger_url=tmp_path / "theirs.db")
    done(theirs)
    charge(theirs)

    assert record(ours, charge(ours)).state == "queued"


def test_who_wants_an_error_or_a_row_of_his_own_gets_it(fast):
    first = done(fast)
    charge(fast)

    with pytest.raises(KeyConflict, match=first.task_id):
        charge(fast, on_conflict="raise")
    assert charge(fast, task_id="mine").id == "mine"
    assert record(fast, "mine").duplicate_of == first.id


def test_a_call_without_a_key_asks_no_redis(make, hints, monkeypatch):
    app = make(durable_fast_path_url=hints)

    @app.task(base=DurableTask)
    def work(): ...

    asked = []
    monkeypatch.setattr(plugin(app).shortcut, "row_of", asked.append)
    work.delay()
    work.apply_async(idempotency_key="k")

    assert len(asked) == 1


def test_without_the_setting_nothing_is_asked(make):
    app = _shop(make)
    done(app)
    charge(app)

    assert plugin(app).shortcut is None


def test_a_redis_that_is_gone_or_hangs_costs_a_moment_and_no_more(fast, redis_server, hints, monkeypatch):
    first = done(fast)
    charge(fast)
    client = plugin(fast).shortcut
    clock = [100.0]
    monkeypatch.setattr(shortcut.time, "monotonic", lambda: clock[0])
    asked, told = [], []
    monkeypatch.setattr(shortcut.logger, "warning", lambda text, *words: told.append(text % words))

    def refuse(name):
        asked.append(name)
        raise ConnectionError("gone")

    monkeypatch.setattr(client._redis, "get", refuse)
    for _ in range(3):
        assert charge(fast).id == first.task_id
    assert len(asked) == 1
    assert ["does not answer (ConnectionError)" in text for text in told] == [True]
    clock[0] += shortcut.PAUSE + 1
    monkeypatch.undo()
    with statements(fast, mine=True) as sent:
        client._silent_until = 0
        assert charge(fast).id == first.task_id
    assert len([s for s in sent if not s.startswith(("BEGIN", "PRAGMA"))]) == 1


def test_a_redis_that_is_not_there(make):
    app = _shop(make, durable_fast_path_url="redis://127.0.0.1:1/0")
    first = done(app)

    assert charge(app).id == first.task_id
    assert charge(app, "o-2").id != first.task_id


@pytest.mark.parametrize("url", ["localhost", "http://x/0", "postgresql://x/y"])
def test_a_url_of_something_else_is_refused(make, url):
    app = _shop(make, durable_fast_path_url=url)

    with pytest.raises(SettingsError, match="durable_fast_path_url begins with"):
        charge(app)


def test_a_url_that_cannot_be_read_is_refused(make):
    app = _shop(make, durable_fast_path_url="redis://host:port/0")

    with pytest.raises(SettingsError, match="durable_fast_path_url cannot be read"):
        charge(app)
