"""submit_many: what a loop of calls does, by the chunk."""

from __future__ import annotations

import functools
from datetime import datetime, timezone

import pytest
from celery import Task, signals
from celery.utils.saferepr import saferepr
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import EncodeError
from sqlalchemy import orm

from celery_durable import DurableTask, IdempotencyKeyError, LedgerUnavailable, PayloadTooLarge, SubmitError, ledger
from celery_durable.receipts import Receipts
from celery_durable.stencil import Stencil, applies, plainly_shown
from celery_durable.wiring import unwrapped
from tests.worker.kit import (
    closed_port,
    count,
    migrated,
    on_redis,
    over,
    payload,
    record,
    rows,
    statements,
    sweep,
    the_ledger,
    working,
)


def test_each_call_is_a_row_a_message_and_a_receipt(make, ledger_url, broker_url):
    app = migrated(make(ledger_url=ledger_url))

    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id, cents=0):
        return f"{order_id}: {cents}"

    def calls():
        yield ("o-0", 10)
        yield ["o-1", 11]
        yield {"order_id": "o-2", "cents": 12}
        yield ("o-0", 13)
        yield ("o-4",)

    receipts = charge.submit_many(calls(), chunk=2)

    assert [r.outcome for r in receipts] == ["new", "new", "new", "existing", "new"]
    assert (len(receipts), receipts.counts) == (5, {"new": 4, "existing": 1})
    assert receipts[3].id == receipts[0].id
    assert {r.key for r in rows(app)} == {"o-0", "o-1", "o-2", "o-4"}
    messages = {m["headers"]["id"]: m for m in on_redis(broker_url)}
    assert [payload(messages[r.id])[:2] for r in receipts[:3]] == [
        [["o-0", 10], {}], [["o-1", 11], {}], [[], {"order_id": "o-2", "cents": 12}],
    ]  # fmt: skip
    assert len(messages) == 4
    with working(app):
        assert {over(app, result).decoded_result() for result, _ in receipts} == {
            "o-0: 10", "o-1: 11", "o-2: 12", "o-4: 0",
        }  # fmt: skip
    again = charge.submit_many(calls(), key=lambda order_id, cents=0: f"again-{order_id}")
    assert again.counts == {"new": 4, "existing": 1}


# --- the same message as Celery's ---------------------------------------------------------------------

OPTIONS = {
    "nothing": {},
    "priority": {"priority": 3},
    "queue": {"queue": "bulk"},
    "compression": {"compression": "zlib"},
    "headers": {"headers": {"tenant": "acme", "depth": {"a": [1]}}, "shadow": "shop.shadow"},
    "limits": {"time_limit": 30, "soft_time_limit": 20, "ignore_result": True, "reply_to": "me"},
    "pickle": {"serializer": "pickle"},
    "expires": {"expires": datetime(2100, 1, 1, tzinfo=timezone.utc)},
    "countdown": {"countdown": 600},
    "root": {"root_id": "root", "parent_id": "parent"},
}
CALLS = [
    ((), {}),
    (("o-1", 250), {}),
    (["o-1", [1, {"a": (2, 3)}], "x" * 2000], {}),
    ((), {"order_id": "ümlaut \"quoted\" 'twice' \\n\n 🎉", "cents": 1.5}),
    ((True, None), {}),
    (("\0id\0", "\\u0000id\\u0000"), {}),
]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_filled_stencil_is_celerys_own_message_byte_for_byte(make, monkeypatch, options):
    """Each call is built by Celery under the id that the stencil gave it; envelopes and stored texts are equal."""
    from celery_durable import bulk

    app = make(accept_content=["json", "pickle"])

    @app.task(base=DurableTask, typing=False)
    def charge(*args, **kwargs): ...

    built = bulk.Builder(unwrapped(charge), DurableTask, None, options)
    built.build(("first",), {})
    stencil = built._stencil
    assert isinstance(stencil, Stencil)
    for args, kwargs in CALLS:
        with bulk._gathering() as gathered:
            charge.apply_async(args, kwargs, **options)
        theirs = gathered[0].envelope
        envelope, meta = stencil.filled(theirs.headers["id"], args, kwargs)
        assert (envelope, meta) == (theirs, theirs.meta())


def test_a_header_that_is_no_stencils_leaves_it_to_celery(app, broker_url):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    receipts = charge.submit_many([(1,), (2,)], headers={"argsrepr": "hidden"})

    assert [m["headers"]["argsrepr"] for m in on_redis(broker_url)] == ["hidden"] * 2
    assert len({r.id for r in receipts}) == 2


PLAIN = st.text(max_size=30) | st.integers() | st.floats() | st.booleans() | st.none()


FLAT = st.lists(PLAIN, max_size=6)


@given(FLAT | FLAT.map(tuple) | st.dictionaries(st.text(max_size=9), PLAIN, max_size=4))
def test_what_is_shown_at_a_glance_is_what_celery_shows(value):
    shown = plainly_shown(value, 1024)
    assert not shown or shown == saferepr(value, 1024)
    assert plainly_shown(value, 10) in {"", saferepr(value, 10)}


def router(name, args, kwargs, options, task=None, **_):
    return {"queue": f"q-{args[0] % 2}"}


def test_where_messages_may_differ_otherwise_celery_builds_each(make, broker_url):
    seen = []

    class Mine(DurableTask):
        abstract = True

        def apply_async(self, args=None, kwargs=None, *rest, **options):
            return super().apply_async(args, kwargs, *rest, **options | {"shadow": f"mine-{args[0]}"})

    class Shadowed(DurableTask):
        abstract = True

        def shadow_name(self, args, kwargs, options):
            return f"shadow-{args[0]}"

    def work(n): ...

    app, routed, heard = make(), make(task_routes=(router,)), make()
    mine = app.task(base=Mine, name="mine")(work)
    shadowed = app.task(base=Shadowed, name="shadowed")(work)
    by_route = routed.task(base=DurableTask, name="by_route")(work)
    plain = heard.task(base=DurableTask, name="plain")(work)

    def receive(sender=None, headers=None, **_):
        headers["stamp"] = len(seen)
        seen.append(sender)

    signals.before_task_publish.connect(receive, sender="plain")
    try:
        for task in (mine, shadowed, by_route, plain):
            assert not applies(unwrapped(task), DurableTask, {})
            assert task.submit_many([(0,), (1,)]).counts == {"new": 2}
    finally:
        signals.before_task_publish.disconnect(receive, sender="plain")

    shadows = {m["headers"]["shadow"] for m in on_redis(broker_url)}
    assert shadows == {"mine-0", "mine-1", "shadow-0", "shadow-1", None}
    assert {r.queue for r in rows(routed) if r.task == "by_route"} == {"q-0", "q-1"}
    assert seen == ["plain", "plain"]
    assert {m["headers"].get("stamp") for m in on_redis(broker_url)} == {0, 1, None}


def test_where_a_library_has_replaced_celerys_functions_it_is_called_for_each(app, monkeypatch):
    called = []
    real = Task.apply_async

    @functools.wraps(real)
    def traced(self, *args, **kwargs):
        called.append(self.name)
        return real(self, *args, **kwargs)

    @app.task(base=DurableTask, name="plain")
    def plain(n): ...

    monkeypatch.setattr(Task, "apply_async", traced)
    plain.submit_many([(1,), (2,), (3,)])

    assert called == ["plain"] * 3


def test_the_result_of_a_call_that_has_succeeded_is_stored_again(results):
    @results.task(base=DurableTask, idempotency_key="{n}")
    def double(n):
        return 2 * n

    with working(results):
        first = double.delay(4)
        assert first.get(timeout=30) == 8
    first.forget()

    [(result, outcome)] = double.submit_many([(4,)])

    assert (outcome, result.get(timeout=30)) == ("existing", 8)


def test_callbacks_belong_to_each_call(app, broker_url):
    @app.task(base=DurableTask, idempotency_key="{n}")
    def charge(n): ...

    @app.task(base=DurableTask)
    def tell(result): ...

    receipts = charge.submit_many([(1,), (2,), (1,)], link=tell.s())

    assert [r.outcome for r in receipts] == ["new", "new", "alias"]
    links = [payload(m)[2]["callbacks"][0]["options"]["task_id"] for m in on_redis(broker_url)]
    assert len(set(links)) == 2


def test_secrets_are_not_readable(app, broker_url):
    @app.task(base=DurableTask)
    def charge(order_id, card): ...

    receipts = charge.submit_many([(n, f"4000-{n}") for n in range(3)])

    assert "4000" not in str([m["headers"] for m in on_redis(broker_url)])
    query = the_ledger(app).t.task.select()
    stored = the_ledger(app).db.run(lambda c: c.execute(query).all(), read_only=True)
    assert b"4000" not in b"".join(r.body for r in stored)
    assert [payload(m)[0] for m in on_redis(broker_url)] == [[n, f"4000-{n}"] for n in range(3)]
    with working(app):
        assert over(app, receipts[2].result).state == "succeeded"


# --- what it costs -----------------------------------------------------------------------------------


def test_a_chunk_is_one_statement_on_postgresql(make, postgres_server):
    app = migrated(make(ledger_url=postgres_server.database()))

    @app.task(base=DurableTask)
    def charge(order_id): ...

    charge.submit_many([(0,)])
    with statements(app) as sent:
        charge.submit_many(((n,) for n in range(1000)), chunk=250)

    assert len(sent) == 4


def test_a_chunk_is_full_by_its_bytes_too(app):
    @app.task(base=DurableTask)
    def store(text): ...

    with statements(app) as sent:
        store.submit_many((("x" * 1_000_000,) for _ in range(6)), chunk=1000)

    assert len([s for s in sent if s.startswith("INSERT INTO durable_task")]) == 2


# --- when something is away, or wrong ----------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_away_costs_nothing_but_a_later_ring(make, scheme):
    with closed_port() as port:
        app = make(broker=f"{scheme}://127.0.0.1:{port}/")

        @app.task(base=DurableTask)
        def charge(order_id): ...

        receipts = charge.submit_many([(n,) for n in range(5)])

        stored = [record(app, r.id) for r in receipts]
    assert [(r.publish_count, r.publish_at <= r.now) for r in stored] == [(0, True)] * 5


def test_one_message_that_cannot_be_sent_holds_up_no_other(app, broker_url, monkeypatch):
    from celery_durable import outbox

    @app.task(base=DurableTask)
    def charge(n): ...

    real = outbox._publish

    def refusing(producer, messages):
        if any(m[1]["argsrepr"] == "(2,)" for m in messages):
            raise ValueError("not this one")
        real(producer, messages)

    monkeypatch.setattr(outbox, "_publish", refusing)
    receipts = charge.submit_many([(n,) for n in range(4)])
    monkeypatch.undo()

    assert [record(app, r.id).publish_count for r in receipts] == [1, 1, 0, 1]
    sweep(app)
    assert {m["headers"]["argsrepr"] for m in on_redis(broker_url)} == {f"({n},)" for n in range(4)}


def test_messages_reach_rabbitmq(make, rabbitmq_server):
    app = make(broker=rabbitmq_server.vhost())

    @app.task(base=DurableTask)
    def double(n):
        return 2 * n

    receipts = double.submit_many([(n,) for n in range(50)], queue="celery")
    with working(app):
        assert [over(app, result).decoded_result() for result, _ in receipts] == [2 * n for n in range(50)]


def test_a_ledger_that_is_away_says_how_far_it_came(make, monkeypatch):
    app = make()

    @app.task(base=DurableTask)
    def charge(n): ...

    kept = the_ledger(app)
    real, seen = kept.submit_many, []

    def failing(subs):
        seen.append(len(subs))
        if len(seen) == 3:
            raise LedgerUnavailable("The ledger did not answer.")
        return real(subs)

    monkeypatch.setattr(kept, "submit_many", failing)
    with pytest.raises(LedgerUnavailable, match="20 calls of submit_many are recorded, of the next 10 all or none"):
        charge.submit_many(((n,) for n in range(100)), chunk=10)

    assert (count(app), seen) == (20, [10, 10, 10])


@pytest.mark.parametrize(
    ("calls", "error", "message"),
    [
        (["o-1"], SubmitError, r"got a str for a call.*\(order_id,\)"),
        ([7], SubmitError, "got a int for a call"),
        ([(1,), (1, 2, 3)], TypeError, "positional argument"),
        ([(1,), (object(),)], EncodeError, r"argument 1 \(a object\) cannot be serialised"),
        ([(1,), ("x" * 2_000_000,)], PayloadTooLarge, "has 2"),
        ([(1,), ("",)], IdempotencyKeyError, "key is empty"),
    ],
)
def test_an_item_that_cannot_be_submitted_leaves_nothing_of_its_chunk(app, broker_url, calls, error, message):
    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id): ...

    with pytest.raises(error, match=message):
        charge.submit_many([(8,), (9,), *calls], chunk=2)

    assert count(app) == len(on_redis(broker_url)) == 2


@pytest.mark.parametrize("option", ["task_id", "idempotency_key", "on_conflict", "producer", "connection", "chord"])
def test_options_of_one_call_are_refused(app, option):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    with pytest.raises(SubmitError, match=f"submit_many takes no {option}"):
        charge.submit_many([(1,)], **{option: "x"})


@pytest.mark.parametrize("chunk", [0, -1, 10_001])
def test_a_chunk_has_a_size(app, chunk):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    with pytest.raises(SubmitError, match="from 1 to 10000"):
        charge.submit_many([(1,)], chunk=chunk)


def test_eagerly_each_is_called(make):
    app = make(task_always_eager=True)

    @app.task(base=DurableTask)
    def double(n):
        return 2 * n

    assert [(r.get(), outcome) for r, outcome in double.submit_many([(1,), (2,)])] == [(2, "new"), (4, "new")]


def test_nothing_is_nothing(app):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    assert list(charge.submit_many([])) == []


# --- inside a transaction ----------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_all_of_it_goes_with_a_transaction(app, broker_url, end):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    with orm.Session(the_ledger(app).db.engine) as session, ledger(app).transaction(session):
        receipts = charge.submit_many(((n,) for n in range(25)), chunk=10)
        assert on_redis(broker_url) == []
        getattr(session, end)()

    sent = {m["headers"]["id"] for m in on_redis(broker_url)}
    assert sent == ({r.id for r in receipts} if end == "commit" else set())
    assert count(app) == len(sent)


# --- receipts ----------------------------------------------------------------------------------------


def test_receipts_are_small_and_any_id_fits():
    ids = ["6ba7b810-9dad-11d1-80b4-00c04fd430c8", "mine", "6BA7B810-9DAD-11D1-80B4-00C04FD430C8", "é" * 16, "-" * 36]
    kept = Receipts(lambda task_id: task_id)
    for task_id in ids * 2:
        kept.add(task_id, "replayed")

    assert [r.result for r in kept] == ids * 2
    assert (kept[-1].result, [r.result for r in kept[1:3]]) == (ids[-1], ids[1:3])
    assert repr(kept) == "<10 receipts: {'replayed': 10}>"
    assert (len(kept._ids) + len(kept._outcomes)) / len(kept) == 17
    with pytest.raises(IndexError):
        kept[10]
