"""Messages that a worker cannot run become rows; it lives, and what it can run runs."""

from __future__ import annotations

import base64
import json
import pickle
import uuid
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa
from celery import signals
from kombu import Connection, Producer

from celery_durable import DurableTask
from celery_durable.errors import NoSuchTask
from celery_durable.ledger import Ledger
from celery_durable.outbox import HEADER
from celery_durable.states import TERMINAL
from celery_durable.wiring import plugin
from tests.waiting import wait_until
from tests.worker import kit
from tests.worker.kit import DEADLINE, clock, events, record, rows, the_ledger, working

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

    from celery_durable.records import Record
    from tests.services import RabbitMQ, Redis

QUEUE = "celery"


@pytest.fixture(params=["redis", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    server: Redis | RabbitMQ = request.getfixturevalue(f"{request.param}_server")
    return server.db() if request.param == "redis" else server.vhost()


@pytest.fixture
def shop(make: Callable[..., Celery], url: str) -> Celery:
    """Durable `work`, stock `plain`, each noting its calls in the list that it carries."""
    return shop_of(make, url)


def shop_of(make: Callable[..., Celery], url: str, **conf: Any) -> Celery:
    app = make(broker=url, **conf)

    @app.task(name="work", base=DurableTask, shared=False)
    def work(n=0):
        app.ran.append(("work", n))
        return n

    @app.task(name="plain", shared=False)
    def plain(n=0):
        app.ran.append(("plain", n))
        return n

    app.ran = []
    return app


def headers(task: str = "work", **changes: Any) -> dict[str, Any]:
    task_id = str(uuid.uuid4())
    given = {"lang": "py", "task": task, "id": task_id, "root_id": task_id, "parent_id": None, "retries": 0}
    return given | changes


def without(*names: str, task: str = "work") -> dict[str, Any]:
    return {k: v for k, v in headers(task).items() if k not in names}


BODY = json.dumps([[1], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])


def send(app: Celery, body: Any = BODY, head: dict[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    """Put a message into the worker's queue as it is: nothing checks it."""
    head = headers() if head is None else head
    given = {"content_type": "application/json", "content_encoding": "utf-8"} | properties
    with Connection(app.conf.broker_url) as connection:
        connection.default_channel.queue_declare(queue=QUEUE, durable=True, auto_delete=False)
        app.amqp.queues[QUEUE](connection.default_channel).declare()
        producer = Producer(connection.default_channel)
        producer.publish(body, exchange=QUEUE, routing_key=QUEUE, headers=head, **given)
    return head


def parked(app: Celery) -> list[Record]:
    return [r for r in rows(app) if r.state == "dead"]


def reached(app: Celery, ref: Any, *states: str) -> Record:
    """The record of a foreign message once it is there and in one of these states."""
    task_id = getattr(ref, "id", ref)
    wait_until(lambda: [r for r in rows(app) if r.task_id == task_id], DEADLINE, f"{task_id} has no row")
    return kit.reached(app, task_id, *states)


def over(app: Celery, ref: Any) -> Record:
    return reached(app, ref, *TERMINAL)


def served(app: Celery) -> None:
    """The worker lives: it runs what comes now."""
    assert over(app, app.tasks["work"].delay("last")).state == "succeeded"


def await_parked(app: Celery, count: int) -> list[Record]:
    return wait_until(lambda: found if len(found := parked(app)) >= count else None, DEADLINE, f"not {count} parked")


def acknowledged(app: Celery) -> None:
    """Nothing is left in the broker: neither in the queue nor delivered and not acknowledged."""

    def empty() -> bool:
        if app.conf.broker_url.startswith("redis"):
            with redis.Redis.from_url(app.conf.broker_url) as client:
                return not client.llen(QUEUE) and not client.hlen("unacked")
        with Connection(app.conf.broker_url) as connection:
            return connection.default_channel.queue_declare(QUEUE, passive=True).message_count == 0

    wait_until(empty, DEADLINE, "a message is left")


#: shape -> body, headers, properties
MALFORMED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "an empty list as body": ("[]", None, {}),
    "null as body": ("null", None, {}),
    "a number as body": ("7", None, {}),
    "a string as body": ('"abc"', None, {}),
    "a body of two": ("[[], {}]", None, {}),
    "a body of four": ("[[], {}, {}, {}]", None, {}),
    "a mapping as body": ('{"a": 1, "b": 2, "c": 3}', None, {}),
    "args that are a number": ("[7, {}, {}]", None, {}),
    "args that are a string": ('["abc", {}, {}]', None, {}),
    "kwargs that are a list": ("[[], [], {}]", None, {}),
    "kwargs that are null": ("[[], null, {}]", None, {}),
    "an embedded list": ("[[], {}, [1]]", None, {}),
    "callbacks that are a number": ('[[], {}, {"callbacks": 7}]', None, {}),
    "a chain of numbers": ('[[], {}, {"chain": [1, 2]}]', None, {}),
    "a chord that is a list": ('[[], {}, {"chord": [1]}]', None, {}),
    "truncated JSON": (BODY[:-7], None, {}),
    "no JSON": ("\x00\x01 hello", None, {}),
    "bytes that are no UTF-8": (b"\xff\xfe\x80[", None, {"content_encoding": "binary"}),
    "an empty body": ("", None, {}),
    "JSON nested too deeply": ("[" * 100_000, None, {}),
    "an unknown content type": (BODY, None, {"content_type": "application/x-what"}),
    "pickle, which is not accepted": (b"\x80\x04N.", None, {"content_type": "application/x-python-serialize"}),
    "an unknown encoding": (BODY.encode(), None, {"content_encoding": "utf-99", "content_type": "text/plain"}),
    "a compression of another": (BODY, headers(compression="application/x-bz2"), {}),
    "an unknown compression": (BODY, headers(compression="application/x-what"), {}),
    "no id": (BODY, without("id"), {}),
    "a list as id": (BODY, headers(id=["a"]), {}),
    "a number as id": (BODY, headers(id=7), {}),
    "null as id": (BODY, headers(id=None), {}),
    "an endless id": (BODY, headers(id="x" * 5_000), {}),
    "an id with a NUL": (BODY, headers(id="a\x00b"), {}),
    "a list as task": (BODY, headers(task=["work"]), {}),
    "null as task": (BODY, headers(task=None), {}),
    "no task anywhere": (BODY, without("task"), {}),
    "protocol 1 without a task": (json.dumps({"id": "1", "args": []}), {}, {}),
    "a number as timelimit": (BODY, headers(timelimit=7), {}),
    "a timelimit of strings": (BODY, headers(timelimit=["a", "b"]), {}),
    "a timelimit of one": (BODY, headers(timelimit=[1]), {}),
    "a negative timelimit": (BODY, headers(timelimit=[-1, None]), {}),
    "an eta that is no time": (BODY, headers(eta="tomorrow"), {}),
    "an empty eta": (BODY, headers(eta=""), {}),
    "an eta that is a number": (BODY, headers(eta=7), {}),
    "an eta beyond the calendar": (BODY, headers(eta="0001-01-01T00:00:00+14:00"), {}),
    "an expires that is a list": (BODY, headers(expires=[1]), {}),
    "an expires that is garbage": (BODY, headers(expires="never"), {}),
    "retries that are text": (BODY, headers(retries="many"), {}),
    "endless retries": (BODY, headers(retries=2**40), {}),
    "a list as root_id": (BODY, headers(root_id=[1]), {}),
    "a mapping as group": (BODY, headers(group={"a": 1}), {}),
    "stamped headers of lists": (BODY, headers(stamped_headers=[[1]], stamps=[]), {}),
    "stamps that are a list": (BODY, headers(stamped_headers=["a"], stamps=[1]), {}),
    "a body that is too large": (json.dumps([["x" * 1_100_000], {}, {}]), None, {}),
}


@pytest.mark.parametrize("task", ["work", "plain"])
def test_whatever_is_malformed_becomes_a_row_and_the_worker_lives(shop: Celery, url: str, task: str) -> None:
    """One worker for all of them, valid work in between: a single one that ended it would show."""
    sent: dict[str, dict[str, Any]] = {}
    valid = []
    with working(shop):
        for number, (shape, (body, given, properties)) in enumerate(MALFORMED.items()):
            head = headers() if given is None else dict(given)
            if head.get("task") == "work":
                head["task"] = task
            if isinstance(head.get("id"), str) and len(head["id"]) == 36:
                head["id"] = str(uuid.uuid4())
            if shape in _FINE_FOR_STOCK and task == "plain":
                continue
            sent[shape] = send(shop, body, head, **properties)
            valid.append(shop.tasks["work"].delay(number))
        for result in valid:
            assert over(shop, result).state == "succeeded"
        found = await_parked(shop, len(sent))
        acknowledged(shop)
    ids = {r.task_id for r in found}
    for shape, head in sent.items():
        if isinstance(head.get("id"), str) and len(head["id"]) == 36:
            assert head["id"] in ids, shape
    assert len(found) == len(sent)
    assert {(r.failure_kind, r.failure.kind, r.claims) for r in found} == {("undecodable", "undecodable", 0)}
    assert all(r.failure.message and not r.failure.retryable for r in found)
    assert {r.task for r in found} <= {task, "<unknown>"}
    assert the_ledger(shop).verify() == []


#: What a stock task's message may be: it is Celery's, and ends nothing.
_FINE_FOR_STOCK = {
    "callbacks that are a number", "a chain of numbers", "a chord that is a list", "an endless id", "an id with a NUL",
    "a body that is too large",
}  # fmt: skip


def test_a_parked_message_is_kept_as_it_came_but_not_without_bound(make: Callable[..., Celery], broker_url) -> None:
    app = shop_of(make, broker_url, durable_max_message_bytes=1_000)
    password = '{"password": "hunter2hunter2"'
    with working(app):
        short, long = send(app, password), send(app, "x" * 5_000)
        await_parked(app, 2)
    t = the_ledger(app).t.task

    def envelope(head: dict[str, Any]) -> Any:
        from celery_durable.records import Envelope

        query = sa.select(t.c.envelope, t.c.body).where(t.c.task_id == head["id"])
        return Envelope.load(*the_ledger(app).db.run(lambda c: c.execute(query).one(), read_only=True))

    assert envelope(short).body == password.encode()
    assert (envelope(short).content_type, envelope(short).headers["lang"]) == ("application/json", "py")
    assert len(envelope(long).body) == 1_000
    assert "1000 of its 5000 bytes" in record(app, long["id"]).failure.message
    assert "hunter2" not in str(record(app, short["id"]))


def test_protocol_1_and_hybrid_messages_that_are_valid_run(shop: Celery) -> None:
    old = {"task": "work", "id": str(uuid.uuid4()), "args": [1], "kwargs": {}, "retries": 0}
    stock = old | {"task": "plain", "id": str(uuid.uuid4())}
    hybrid = {"args": [2], "kwargs": {}, "callbacks": None, "errbacks": None, "chord": None}
    with working(shop):
        for body in (old, stock):
            send(shop, json.dumps(body), {})
        mixed = send(shop, json.dumps(hybrid), headers())
        assert over(shop, old["id"]).state == over(shop, mixed["id"]).state == "succeeded"
        wait_until(lambda: ("plain", 1) in shop.ran, DEADLINE)
    assert sorted(shop.ran) == [("plain", 1), ("work", 1), ("work", 2)]
    assert not parked(shop)


def standing(app: Celery, ref: str) -> str | None:
    try:
        return record(app, ref).state
    except NoSuchTask:
        return None


def test_a_valid_message_is_run_although_a_bad_one_came_under_its_id(shop: Celery) -> None:
    with working(shop):
        head = send(shop, "[]")
        await_parked(shop, 1)
        send(shop, BODY, head)
        # Its row takes the id over from the bad one's: a look in between may meet neither, or both by their key.
        wait_until(lambda: standing(shop, head["id"]) == "succeeded", DEADLINE, "it was not run")
    assert shop.ran == [("work", 1)]
    assert len(parked(shop)) == 1, "the bad one keeps a row"
    assert the_ledger(shop).verify() == []


def test_a_bad_message_under_the_id_of_a_row_leaves_that_row_alone(shop: Celery) -> None:
    done = shop.tasks["work"].delay(1)
    with working(shop):
        over(shop, done)
        send(shop, "[]", headers(id=done.id))
        found = await_parked(shop, 1)
    assert record(shop, done.id).state == "succeeded"
    assert found[0].key == done.id, "it is found by the id that it claimed"


def test_stock_tasks_run_as_in_a_stock_worker(shop: Celery) -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=0.2)
    with working(shop):
        shop.tasks["plain"].delay(1)
        shop.tasks["plain"].apply_async((2,), eta=soon)
        shop.tasks["plain"].apply_async((3,), compression="zlib")
        shop.tasks["plain"].apply_async((4,), expires=60, serializer="json")
        wait_until(lambda: len(shop.ran) == 4, DEADLINE, "not all were run")
    assert sorted(shop.ran) == [("plain", n) for n in (1, 2, 3, 4)]
    assert rows(shop) == []


def test_signals_tell_of_rejected_and_unknown_messages_as_ever(shop: Celery) -> None:
    told: list[str] = []

    def rejected(message=None, **_: Any) -> None:
        told.append("rejected")

    def unknown(name=None, **_: Any) -> None:
        told.append(name)

    with _connected(signals.task_rejected, rejected), _connected(signals.task_unknown, unknown), working(shop):
        send(shop, "[]")
        send(shop, BODY, headers("nobody.knows"))
        wait_until(lambda: len(rows(shop)) == 2, DEADLINE)
    assert sorted(told) == ["nobody.knows", "rejected"]


@contextmanager
def _connected(signal: Any, receiver: Any) -> Iterator[None]:
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


# Replay ---------------------------------------------------------------------------------------------------


def test_a_replayed_message_that_is_still_bad_is_parked_again(shop: Celery) -> None:
    with working(shop):
        head = send(shop, "[]")
        row = await_parked(shop, 1)[0]
        assert the_ledger(shop).replay_row(row.id, "try again", actor="ann")
        wait_until(lambda: len(the_ledger(shop).failures(row.id)) == 2, DEADLINE, "it did not come back")
    assert record(shop, head["id"]).state == "dead"
    assert [e.verb for e in events(shop, head["id"])] == ["park", "replay", "park"]
    assert the_ledger(shop).verify() == []


def test_a_replay_runs_once_the_content_is_accepted(make: Callable[..., Celery], url: str) -> None:
    strict, lenient = shop_of(make, url), shop_of(make, url, accept_content=["json", "pickle"])
    with working(strict):
        head = send(strict, pickle.dumps(([5], {}, {})), content_type="application/x-python-serialize")
        row = await_parked(strict, 1)[0]
    the_ledger(strict).replay_row(row.id, "pickle is accepted now", actor="ann")
    with working(lenient):
        assert over(lenient, head["id"]).state == "succeeded"
    assert lenient.ran == [("work", 5)]


# Unregistered ---------------------------------------------------------------------------------------------


def newer(app: Celery, **options: Any) -> None:
    """Add the task that older workers do not know."""

    @app.task(name="newer", shared=False, **options)
    def new(n=0, order="", **_: Any):
        app.ran.append(("newer", n))
        return n


def test_a_message_for_an_unknown_task_waits_for_a_worker_that_knows_it(make: Callable[..., Celery], url: str) -> None:
    old, new = shop_of(make, url), shop_of(make, url)
    newer(new, base=DurableTask)
    foreign = headers("newer")
    with working(old):
        recorded = new.tasks["newer"].delay(2)
        send(old, BODY, foreign)
        for ref in (recorded.id, foreign["id"]):
            found = reached(old, ref, "waiting")
            assert found.wait_kind == "unregistered"
            assert "'newer'" in found.wait_reason
        acknowledged(old)
    assert the_ledger(old).verify() == []
    with working(new):
        assert over(new, recorded.id).state == over(new, foreign["id"]).state == "succeeded"
    assert sorted(new.ran) == [("newer", 1), ("newer", 2)]
    assert [e.verb for e in events(new, foreign["id"])] == ["park", "release", "claim", "succeed"]
    assert [e.verb for e in events(new, recorded.id)] == ["submit", "park", "release", "claim", "succeed"]
    assert the_ledger(new).verify() == []


def test_the_key_of_an_unknown_task_holds_once_it_is_known(make: Callable[..., Celery], url: str) -> None:
    """Two messages are one piece of work: only who knows the task can tell."""
    old, new = shop_of(make, url), shop_of(make, url)
    newer(new, base=DurableTask, idempotency_key="{order}")
    heads = [headers("newer") for _ in range(2)]
    with working(old):
        for head in heads:
            send(old, json.dumps([[7], {"order": "A1"}, {}]), head)
        for head in heads:
            reached(old, head["id"], "waiting")
    with working(new):
        assert {over(new, head["id"]).state for head in heads} == {"succeeded"}
    assert new.ran == [("newer", 7)]
    assert the_ledger(new).verify() == []


def test_who_does_not_know_a_due_task_looks_again_later(make: Callable[..., Celery], url: str) -> None:
    app = shop_of(make, url)
    head = headers("newer")
    with working(app):
        send(app, BODY, head)
        before = reached(app, head["id"], "waiting").wake_at
        _due(app, head["id"])
        wait_until(lambda: record(app, head["id"]).wake_at > before, DEADLINE, "it is not looked at")
    assert record(app, head["id"]).wait_kind == "unregistered"


def _due(app: Celery, task_id: str) -> None:
    t = the_ledger(app).t.task
    update = sa.update(t).where(t.c.task_id == task_id).values(wake_at=clock(app) - 1_000_000)
    the_ledger(app).db.run(lambda c: c.execute(update))


def test_an_unknown_task_that_is_a_stock_task_elsewhere_is_handed_over(make: Callable[..., Celery], url: str) -> None:
    old, new = shop_of(make, url), shop_of(make, url)
    newer(new)
    head = headers("newer")
    with working(old):
        send(old, BODY, head)
        reached(old, head["id"], "waiting")
    with working(new):
        wait_until(lambda: new.ran, DEADLINE, "it was not run")
        acknowledged(new)
    found = record(new, head["id"])
    assert (new.ran, found.state) == ([("newer", 1)], "cancelled")
    assert "handed over to Celery" in found.cancel_reason
    assert the_ledger(new).verify() == []


def test_a_recorded_message_of_a_task_that_is_stock_now_runs_once(make: Callable[..., Celery], url: str) -> None:
    was, is_now = shop_of(make, url), shop_of(make, url)
    newer(was, base=DurableTask)
    newer(is_now)
    sent = was.tasks["newer"].delay(3)
    with working(is_now):
        wait_until(lambda: is_now.ran, DEADLINE, "it was not run")
        assert over(is_now, sent.id).state == "cancelled"
        served(is_now)
    assert is_now.ran.count(("newer", 3)) == 1


def test_an_unknown_task_whose_arguments_do_not_fit_is_dead_when_it_is_known(make: Callable[..., Celery], url) -> None:
    old, new = shop_of(make, url), shop_of(make, url)
    newer(new, base=DurableTask, idempotency_key="{order.id}")
    head = headers("newer")
    with working(old):
        send(old, BODY, head)
        reached(old, head["id"], "waiting")
    with working(new):
        found = over(new, head["id"])
    assert (found.state, found.failure_kind) == ("dead", "undecodable")


# ETA and refusals -----------------------------------------------------------------------------------------


def test_a_foreign_message_with_an_eta_waits_in_the_ledger(shop: Celery) -> None:
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    with working(shop):
        head = send(shop, BODY, headers(eta=later.isoformat()))
        found = reached(shop, head["id"], "waiting")
        acknowledged(shop)
        assert (found.wait_kind, found.wake_at) == ("scheduled", round(later.timestamp() * 1e6))
        _due(shop, head["id"])
        assert over(shop, head["id"]).state == "succeeded"
    assert shop.ran == [("work", 1)]
    assert [e.verb for e in events(shop, head["id"])] == ["adopt", "release", "claim", "succeed"]


def test_a_foreign_message_that_its_task_refuses_is_a_row(make: Callable[..., Celery], url: str) -> None:
    app = shop_of(make, url)
    newer(app, base=DurableTask, idempotency_key="{order.id}")
    with working(app):
        head = send(app, BODY, headers("newer"))
        found = over(app, head["id"])
    assert (found.state, found.failure_kind) == ("dead", "rejected")
    assert "IdempotencyKeyError" in found.failure.exception


# The wire -------------------------------------------------------------------------------------------------

WIRE = {
    "no JSON": b"hello",
    "truncated": b'{"body": "W10=", "headers"',
    "bytes": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "null": b"null",
    "nothing": b"",
    "an empty mapping": b"{}",
    "no properties": json.dumps({"body": "", "headers": {}}).encode(),
    "headers that are a list": json.dumps(
        {"body": "", "headers": [1], "properties": {"delivery_tag": "t", "delivery_info": {}}}
    ).encode(),
    "no base64": json.dumps(
        {
            "body": "%%%",
            "headers": {},
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": "t",
                "delivery_info": {"exchange": "", "routing_key": "celery"},
            },
        }
    ).encode(),
    "a tag that is a mapping": json.dumps(
        {"body": base64.b64encode(b"[]").decode(), "headers": {}, "properties": {"delivery_tag": {}}}
    ).encode(),
}


def test_what_lies_in_a_redis_list_and_is_no_message_becomes_a_row(make: Callable[..., Celery], broker_url) -> None:
    app = shop_of(make, broker_url)
    with working(app), redis.Redis.from_url(broker_url) as client:
        for item in WIRE.values():
            client.lpush(QUEUE, item)
            client.lpush(QUEUE, item)
        found = await_parked(app, 2 * len(WIRE))
        served(app)
    assert len(found) == 2 * len(WIRE)
    assert {(r.task, r.failure_kind, r.queue) for r in found} == {("<unknown>", "undecodable", QUEUE)}


# The ledger is away -----------------------------------------------------------------------------------------


def test_a_bad_message_stays_with_the_broker_while_the_ledger_is_down(
    make: Callable[..., Celery], url: str, postgres_server: Any
) -> None:
    database = postgres_server.database()
    Ledger.open(plugin(make(ledger_url=database, broker=url)).settings).migrate()
    app = shop_of(make, url, ledger_url=database)
    with working(app):
        served(app)
        postgres_server.stop()
        send(app, "[]")
        send(app, BODY, headers("nobody.knows"))
        wait_until(lambda: plugin(app).keeper.paused, DEADLINE, "the worker goes on")
        postgres_server.start()
        wait_until(lambda: len(rows(app)) == 3, DEADLINE, "the bad messages are lost")
        served(app)
        acknowledged(app)
    assert sorted(r.state for r in rows(app)) == ["dead", "succeeded", "succeeded", "waiting"]


def test_a_full_backlog_pauses_consumption(make: Callable[..., Celery], broker_url, monkeypatch) -> None:
    monkeypatch.setattr("celery_durable.worker.intake.BACKLOG", 4)
    app = shop_of(make, broker_url, worker_prefetch_multiplier=50)
    with working(app):
        for _ in range(120):
            send(app, "[]")
        assert len(await_parked(app, 120)) == 120
        served(app)


def test_counts_are_shown_by_inspect(shop: Celery) -> None:
    with working(shop) as worker:
        send(shop, "[]")
        await_parked(shop, 1)
        wait_until(lambda: worker.stats().get("durable") == {"parked": 1}, DEADLINE, "it is not counted")


def test_a_mark_of_another_ledger_is_none(shop: Celery) -> None:
    mark = {"ledger": str(uuid.uuid4()), "id": "x", "envelope": 1}
    with working(shop):
        head = send(shop, BODY, headers("nobody.knows", **{HEADER: mark}))
        assert reached(shop, head["id"], "waiting").wait_kind == "unregistered"


def test_a_marked_message_of_an_unknown_task_without_a_row_is_dead(shop: Celery) -> None:
    task_id = str(uuid.uuid4())
    mark = {"ledger": the_ledger(shop).uuid, "id": task_id, "envelope": 1}
    with working(shop):
        send(shop, BODY, headers("nobody.knows", id=task_id, **{HEADER: mark}))
        assert over(shop, task_id).failure_kind == "rejected"
