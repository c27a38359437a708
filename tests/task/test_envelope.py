"""What Celery would send is what goes out, the first time and every time after."""

from __future__ import annotations

import json
import uuid

import pytest
from celery import Task, signals
from celery.canvas import StampingVisitor
from kombu import Exchange, Queue

from celery_durable import DurableTask
from celery_durable.outbox import HEADER
from celery_durable.wiring import plugin
from tests.waiting import wait_until
from tests.worker.kit import DEADLINE, alter, on_redis, record, redis_of, statements, sweep, taken, waits_in

EVENTS = Exchange("events", type="topic")
AUDITS = Queue("audits", EVENTS, routing_key="audit.#")


def link(name: str, **options):
    return {"task": name, "args": [], "kwargs": {}, "options": {"task_id": f"id-of-{name}", **options},
            "subtask_type": None, "immutable": False}  # fmt: skip


OPTIONS = {
    "nothing": {},
    "priority": {"priority": 0},
    "queue by name": {"queue": "bulk"},
    "queue object": {"queue": Queue("special", Exchange("special"), routing_key="special")},
    "exchange and routing key": {"exchange": "", "routing_key": "celery"},
    "topic": {"queue": "audits", "routing_key": "audit.money"},
    "compression": {"compression": "zlib"},
    "headers": {"headers": {"tenant": "acme", "depth": {"a": [1]}}},
    "shadow": {"shadow": "shop.shadow"},
    "ignore_result": {"ignore_result": True},
    "time limits": {"time_limit": 30, "soft_time_limit": 20},
    "link": {"link": link("shop.next"), "link_error": [link("shop.sorry")]},
    "reply_to": {"reply_to": "answers", "correlation_id": "own"},
    "transient": {"delivery_mode": 1},
    "retries": {"retries": 3},
    "group": {"group_id": "g", "group_index": 2, "root_id": "r", "parent_id": "p"},
    "message properties": {"app_id": "shop", "message_id": "m-1"},
}


@pytest.fixture(params=["redis", "rabbitmq"])
def any_broker(request) -> str:
    server = request.getfixturevalue(f"{request.param}_server")
    return server.db() if request.param == "redis" else server.vhost()


@pytest.fixture
def both(make, any_broker):
    """A stock task and a durable one that differ in nothing else, on every broker in turn."""
    app = make(broker=any_broker, task_queues=[Queue("celery"), AUDITS, Queue("bulk")])
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()

    @app.task(name="shop.stock")
    def stock(*args, **kwargs): ...

    @app.task(base=DurableTask, name="shop.durable")
    def durable(*args, **kwargs): ...

    return stock, durable


def sent(app, name: str) -> dict:
    message = taken(app.conf.broker_url, queue=name)
    message["mark"] = message["headers"].pop(HEADER, None)
    message["headers"]["task"] = "shop"
    message["properties"].pop("application_headers", None)
    return message


def sent_again(app, task_id: str, name: str) -> dict:
    """What a sweep sends; swept until it is there, as workers do."""

    def swept() -> bool:
        alter(app, task_id, publish_at=1, deferrals=3)
        sweep(app)
        return waits_in(app.conf.broker_url, name)

    wait_until(swept, timeout=DEADLINE, message=f"no sweep sent task {task_id}")
    return sent(app, name)


def queue_of(options: dict) -> str:
    queue = options.get("queue", "celery")
    return queue.name if isinstance(queue, Queue) else queue


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_message_is_what_celery_would_send(both, options):
    stock, durable = both
    task_id = str(uuid.uuid4())
    call = {"args": ("o-1", 2), "kwargs": {"note": "é"}, "task_id": task_id} | options

    stock.apply_async(**call)
    expected = sent(stock.app, queue_of(options))
    durable.apply_async(**call)
    first = sent(stock.app, queue_of(options))
    again = sent_again(durable.app, task_id, queue_of(options))

    assert first | {"mark": None} == expected
    assert again == first
    assert first["mark"]["id"] == task_id


@pytest.mark.parametrize("exchange", [EVENTS, "events"], ids=["object", "name"])
def test_an_exchange_without_a_queue(make, rabbitmq_server, exchange):
    app = make(broker=rabbitmq_server.vhost())
    with app.connection_for_write() as connection:
        AUDITS(connection.default_channel).declare()

    @app.task(base=DurableTask)
    def charge(order_id): ...

    result = charge.apply_async(("o-1",), exchange=exchange, routing_key="audit.money")
    first = taken(app.conf.broker_url, "audits")
    alter(app, result, publish_at=1, deferrals=3)
    sweep(app)

    assert taken(app.conf.broker_url, "audits") == first
    assert first["info"] == {"exchange": "events", "routing_key": "audit.money"}


def test_stamps_go_along(both):
    class Tenant(StampingVisitor):
        def on_signature(self, sig, **headers):
            return {"tenant": "acme", "stamped_headers": ["tenant"]}

    stock, durable = both
    for task in (stock, durable):
        signature = task.s("o-1").set(task_id="same")
        signature.stamp(Tenant())
        signature.apply_async()

    expected, first = sent(stock.app, "celery"), sent(stock.app, "celery")
    assert first | {"mark": None} == expected
    assert first["headers"]["stamps"] == {"tenant": "acme"}


@pytest.mark.parametrize(
    "arguments",
    [{"x-max-priority": 10}, {"x-queue-type": "quorum"}, {"x-message-ttl": 600_000, "x-max-length": 1000}],
    ids=["priority", "quorum", "limits"],
)
def test_a_queue_with_arguments_is_declared_as_it_is(make, rabbitmq_server, arguments):
    app = make(
        broker=rabbitmq_server.vhost(),
        task_queues=[Queue("special", Exchange("special", type="topic"), routing_key="s.#", queue_arguments=arguments)],
        task_default_queue="special",
    )

    @app.task(base=DurableTask)
    def charge(order_id): ...

    result = charge.apply_async(("o-1",), routing_key="s.x", priority=5)
    with app.connection_for_write() as connection:
        connection.default_channel.queue_delete("special")  # whoever rings has to declare it again, just so

    alter(app, result, publish_at=1, deferrals=3)
    sweep(app)
    _rung(app, result, "special")
    assert taken(app.conf.broker_url, "special")["headers"]["id"] == result.id
    with app.connection_for_write() as connection:
        app.amqp.queues["special"](connection.default_channel).declare()


def test_a_countdown_leaves_quorum_queues_alone(make, rabbitmq_server):
    """Stock Celery sends it to the exchange celery_delayed_27; here the ledger waits (CELERY.md)."""
    app = make(
        broker=rabbitmq_server.vhost(),
        task_queues=[Queue("celery", Exchange("celery", type="topic"), routing_key="celery",
                           queue_arguments={"x-queue-type": "quorum"})],
    )  # fmt: skip

    @app.task(base=DurableTask)
    def charge(order_id): ...

    result = charge.apply_async(("o-1",), countdown=600)
    assert record(app, result).state == "waiting"
    alter(app, result, wake_at=1)
    sweep(app)
    _rung(app, result, "celery")

    assert taken(app.conf.broker_url)["headers"]["id"] == result.id


def _rung(app, result, queue):
    """A sweep rings: more than once if need be, for a quorum queue takes no message before it has a leader."""

    def rung() -> bool:
        if plugin(app).publisher.depth(queue):
            return True
        alter(app, result, publish_at=1, deferrals=3)
        sweep(app)
        return False

    wait_until(rung, DEADLINE, f"nothing was rung in {queue}")


def test_routes_and_task_options_are_followed(make, broker_url):
    app = make(task_routes={"shop.charge": {"queue": "money", "priority": 0}})

    @app.task(base=DurableTask, name="shop.charge", compression="zlib", ignore_result=True, time_limit=30)
    def charge(order_id): ...

    result = charge.delay("o-1")

    assert record(app, result).queue == "money"
    [message] = on_redis(broker_url, "money")
    assert message["headers"]["ignore_result"] is True
    assert message["headers"]["timelimit"] == [30, None]
    assert message["headers"]["compression"] == "application/x-gzip"


def test_a_producer_of_the_caller_is_used(make, redis_server):
    here, there = redis_server.db(), redis_server.db()
    app = make(broker=here)

    @app.task(base=DurableTask)
    def charge(order_id): ...

    other = make(broker=there)
    with other.connection_for_write() as connection:
        charge.apply_async(("o-1",), connection=connection)
    with other.connection_for_write() as connection:
        charge.apply_async(("o-2",), producer=app.amqp.Producer(connection, auto_declare=False))

    assert (len(on_redis(here)), len(on_redis(there))) == (0, 2)


def test_publish_signals_fire_once(app):
    @app.task(base=DurableTask, name="shop.charge", idempotency_key="{order_id}")
    def charge(order_id): ...

    told = []
    receivers = {
        signals.before_task_publish: lambda sender, headers, body, **_: told.append(("before", sender, body[0])),
        signals.after_task_publish: lambda sender, headers, body, **_: told.append(("after", sender, body[0])),
    }
    for signal, receiver in receivers.items():
        signal.connect(receiver)
    try:
        charge.delay("o-1")
        charge.delay("o-1")
        sweep(app)
    finally:
        for signal, receiver in receivers.items():
            signal.disconnect(receiver)

    # Celery asks for a message before it knows that the key is taken; none is sent for the second.
    assert told == [
        ("before", "shop.charge", ("o-1",)),
        ("after", "shop.charge", ("o-1",)),
        ("before", "shop.charge", ("o-1",)),
    ]


def test_what_a_signal_adds_to_the_message_is_recorded(app, broker_url):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    def tag(headers, **_):
        headers["trace"] = "t-1"

    signals.before_task_publish.connect(tag)
    try:
        result = charge.delay("o-1")
    finally:
        signals.before_task_publish.disconnect(tag)
    redis_of(broker_url).flushdb()
    alter(app, result, publish_at=1)
    sweep(app)

    [message] = on_redis(broker_url)
    assert message["headers"]["trace"] == "t-1"


def test_the_task_sent_event_goes_out_beside_the_task(make, rabbitmq_server):
    app = make(broker=rabbitmq_server.vhost(), task_send_sent_event=True)

    @app.task(base=DurableTask, name="shop.charge")
    def charge(order_id): ...

    with app.connection_for_write() as connection:
        Queue("watch", Exchange("celeryev", type="topic"), routing_key="#")(connection.default_channel).declare()
    result = charge.delay("o-1")

    event = json.loads(taken(app.conf.broker_url, "watch")["body"])
    assert (event["type"], event["uuid"], event["name"]) == ("task-sent", result.id, "shop.charge")
    assert taken(app.conf.broker_url)["headers"]["id"] == result.id


def test_a_submission_costs_one_look_at_the_ledger(app):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    charge.delay("warm up")
    with statements(app) as sent_ones:
        charge.delay("o-1")

    assert [s.split()[0] for s in sent_ones] == ["BEGIN", "INSERT", "INSERT"]


def test_stock_tasks_are_left_alone(app, broker_url):
    @app.task(name="shop.stock")
    def stock(): ...

    assert type(stock).__mro__[1] is Task or not isinstance(stock, DurableTask)
    result = stock.delay()

    [message] = on_redis(broker_url)
    assert (message["headers"]["id"], HEADER in message["headers"]) == (result.id, False)
