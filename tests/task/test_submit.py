"""Submitting: the row that a call becomes, and the message that goes out."""

from __future__ import annotations

import os
import socket

import pytest
from celery.result import AsyncResult

from celery_durable import DurableTask, ledger
from celery_durable.errors import SubmitError, TaskIdConflict
from tests.worker.kit import count, on_redis, payload, record, rows, verbs


def test_a_call_is_a_row_and_a_message(app, broker_url):
    @app.task(base=DurableTask, name="shop.charge")
    def charge(order_id, cents): ...

    result = charge.apply_async(args=("o-1",), kwargs={"cents": 250})

    assert isinstance(result, AsyncResult)
    seen = ledger(app).get(result.id).as_json()
    at = seen.pop("submitted_at")
    assert at.endswith("+00:00")
    assert seen == {
        "id": seen["id"],
        "task_id": result.id,
        "task": "shop.charge",
        "key": result.id,
        "state": "queued",
        "queue": "celery",
        "priority": None,
        "root_id": result.id,
        "parent_id": None,
        "claims": 0,
        "losses": 0,
        "retries": 0,
        "publish_count": 1,
        "submitted_by": f"gen{os.getpid()}@{socket.gethostname()}",
        "started_at": None,
        "finished_at": None,
        "lease": None,
        "wait": None,
        "failure": None,
        "result": None,
        "progress": None,
        "observed": False,
    }
    assert verbs(app, result) == ["submit"]
    [message] = on_redis(broker_url)
    assert message["headers"]["id"] == result.id
    assert payload(message)[:2] == [["o-1"], {"cents": 250}]


@pytest.mark.parametrize(
    "call",
    [
        lambda task: task.delay("o-1", 250),
        lambda task: task.delay("o-1", cents=250),
        lambda task: task.delay(order_id="o-1", cents=250),
        lambda task: task.apply_async(("o-1", 250)),
        lambda task: task.apply_async(["o-1"], {"cents": 250}),
        lambda task: task.apply_async(kwargs={"order_id": "o-1", "cents": 250}),
        lambda task: task.s("o-1", 250).delay(),
        lambda task: task.s("o-1").apply_async((), {"cents": 250}),
        lambda task: task.si("o-1", 250).apply_async(),
    ],
)
def test_every_way_to_call_ends_in_one_row(app, broker_url, call):
    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id, cents): ...

    result = call(charge)

    assert [(r.task_id, r.key) for r in rows(app)] == [(result.id, "o-1")]
    assert len(on_redis(broker_url)) == 1


def test_a_call_without_arguments(app):
    @app.task(base=DurableTask)
    def tick(): ...

    assert record(app, tick.delay()).state == "queued"
    assert record(app, tick.apply_async()).state == "queued"


def test_the_mark_names_ledger_task_and_envelope(app, broker_url):
    @app.task(base=DurableTask)
    def tick(): ...

    result = tick.delay()

    [message] = on_redis(broker_url)
    mark = message["headers"]["durable"]
    assert (mark["id"], mark["envelope"]) == (result.id, 1)
    assert len(mark["ledger"]) >= 32


def test_an_id_chosen_by_the_caller_is_kept(app, broker_url):
    @app.task(base=DurableTask)
    def tick(): ...

    assert tick.apply_async(task_id="mine").id == "mine"

    assert record(app, "mine").key == "mine"
    [message] = on_redis(broker_url)
    assert message["headers"]["id"] == "mine"


def test_the_same_id_twice_is_one_row(app, broker_url):
    @app.task(base=DurableTask)
    def tick(): ...

    tick.apply_async(task_id="mine")
    assert tick.apply_async(task_id="mine").id == "mine"

    assert (count(app), len(on_redis(broker_url))) == (1, 1)


def test_an_id_of_another_task_is_an_error_of_its_own(app, broker_url):
    @app.task(base=DurableTask)
    def tick(): ...

    @app.task(base=DurableTask)
    def tock(): ...

    tick.apply_async(task_id="mine")
    with pytest.raises(TaskIdConflict, match=r"'mine' belongs to .*tick.*tock"):
        tock.apply_async(task_id="mine")

    assert (count(app), len(on_redis(broker_url))) == (1, 1)


def test_a_bad_on_conflict_is_refused(app, broker_url):
    @app.task(base=DurableTask)
    def tick(): ...

    with pytest.raises(SubmitError, match='on_conflict is \'ignore\'; it is "return" or "raise"'):
        tick.apply_async(on_conflict="ignore")

    assert (count(app), on_redis(broker_url)) == (0, [])


def test_async_def_is_refused(app, broker_url):
    @app.task(base=DurableTask)
    async def tick(): ...

    with pytest.raises(SubmitError, match=r"'async def'.*plain function"):
        tick.delay()

    assert (count(app), on_redis(broker_url)) == (0, [])


def test_typing_of_arguments_is_checked_as_in_stock_celery(app, broker_url):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        charge.delay("o-1", 2)

    assert (count(app), on_redis(broker_url)) == (0, [])


def test_stats_and_find_see_what_was_submitted(app):
    @app.task(base=DurableTask, name="shop.charge")
    def charge(order_id): ...

    @app.task(base=DurableTask, name="shop.refund")
    def refund(order_id): ...

    charge.delay(1)
    charge.apply_async((2,), queue="bulk")
    refund.apply_async((3,), countdown=600)

    stats = ledger(app).stats()
    assert stats["states"] | {"queued": 2, "waiting": 1} == stats["states"]
    assert {(q["queue"], q["queued"]) for q in stats["queues"]} == {("celery", 1), ("bulk", 1)}
    assert len(ledger(app).find(task="shop.charge")) == 2
    assert len(ledger(app).find(state="waiting")) == 1
    assert len(ledger(app).find(queue="bulk")) == 1


def test_one_callback_linked_to_two_calls_is_two_callbacks(app, broker_url):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    @app.task(base=DurableTask)
    def tell(result): ...

    told = tell.s()
    for order_id in (1, 2):
        charge.apply_async((order_id,), link=told, link_error=[told])

    links = [payload(m)[2] for m in on_redis(broker_url)]
    ids = {signature["options"]["task_id"] for link in links for signature in (*link["callbacks"], *link["errbacks"])}
    assert (len(ids), "task_id" in told.options) == (4, False)
