"""Idempotency keys: where they come from and which calls they make the same."""

from __future__ import annotations

import enum
from datetime import datetime, timezone
from functools import partial

import pytest
from celery import shared_task

from celery_durable import DurableTask, IdempotencyKeyError
from tests.worker.kit import count, on_redis, record


class Colour(str, enum.Enum):
    RED = "red"


class Level(int, enum.Enum):
    HIGH = 3


@pytest.mark.parametrize(
    ("template", "args", "kwargs", "key"),
    [
        ("{order_id}", ("o-1",), {}, "o-1"),
        ("{order_id}", (), {"order_id": "o-1"}, "o-1"),
        ("{order_id}-{cents}", ("o-1",), {}, "o-1-100"),
        ("{order_id}-{cents:06d}", ("o-1", 5), {}, "o-1-000005"),
        ("{order_id[day]}", ({"day": "2026-01-01"},), {}, "2026-01-01"),
        ("{order_id[0]}", (["x", "y"],), {}, "x"),
        ("fixed", ("o-1",), {}, "fixed"),
        ("{{{order_id}}}", ("o-1",), {}, "{o-1}"),
        ("ключ-{order_id}", ("o-é",), {}, "ключ-o-é"),
    ],
)
def test_a_template_is_formatted_from_the_bound_arguments(app, template, args, kwargs, key):
    @app.task(base=DurableTask, idempotency_key=template)
    def charge(order_id, cents=100): ...

    assert record(app, charge.apply_async(args, kwargs)).key == key


def test_self_is_no_argument_of_a_bound_task(app):
    @app.task(base=DurableTask, bind=True, idempotency_key="{order_id}")
    def charge(self, order_id): ...

    assert record(app, charge.delay("o-1")).key == "o-1"


def test_keyword_arguments_that_the_task_collects_can_be_named(app):
    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(**details): ...

    assert record(app, charge.delay(order_id="o-1")).key == "o-1"


def test_autoretry_does_not_hide_the_signature(app):
    @app.task(base=DurableTask, autoretry_for=(OSError,), idempotency_key="{order_id}")
    def charge(order_id): ...

    assert record(app, charge.delay("o-1")).key == "o-1"


def by_order(order_id, cents=100):
    return f"call-{order_id}-{cents}"


@pytest.mark.parametrize("make_key", [by_order, partial(by_order, cents=100), staticmethod(by_order)])
def test_a_callable_takes_the_arguments(app, make_key):
    @app.task(base=DurableTask, idempotency_key=make_key)
    def charge(order_id): ...

    assert record(app, charge.delay("o-1")).key == "call-o-1-100"


def test_a_method_takes_self(app):
    class Charging(DurableTask):
        abstract = True

        def idempotency_key(self, order_id):
            return f"{self.name}:{order_id}"

    @app.task(base=Charging, name="shop.charge")
    def charge(order_id): ...

    assert record(app, charge.delay("o-1")).key == "shop.charge:o-1"


def test_a_class_based_task(app):
    class Charge(DurableTask):
        name = "shop.charge"
        idempotency_key = "{order_id}"

        def run(self, order_id): ...

    charge = app.register_task(Charge())

    assert record(app, charge.delay("o-1")).key == "o-1"


def test_a_shared_task_has_its_key(app):
    @shared_task(base=DurableTask, name="shop.shared", idempotency_key="{order_id}")
    def charge(order_id): ...

    assert record(app, app.tasks["shop.shared"].delay("o-1")).key == "o-1"


def test_a_key_given_with_the_call_wins(app):
    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id): ...

    assert record(app, charge.apply_async(("o-1",), idempotency_key="mine")).key == "mine"
    assert record(app, charge.s("o-2").set(idempotency_key="signed").apply_async()).key == "signed"


def test_keys_are_unique_per_task_name(app):
    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id): ...

    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def refund(order_id): ...

    assert charge.delay("o-1").id != refund.delay("o-1").id


@pytest.mark.parametrize("other", ["O-1", "o-1 ", "ó-1", "o\u20101"])
def test_keys_that_look_alike_are_two(app, other):
    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id): ...

    assert charge.delay("o-1").id != charge.delay(other).id
    assert count(app) == 2


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ((1, 2), [1, 2]),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        ({"b": 1, "a": (2,)}, {"b": 1, "a": [2]}),
        ({1: "x"}, {"1": "x"}),
    ],
)
def test_a_key_sees_arguments_as_the_worker_will(app, here, there):
    @app.task(base=DurableTask, idempotency_key="{order}")
    def charge(order): ...

    first = charge.delay(here)

    assert charge.delay(there).id == first.id
    assert record(app, first).key == str(there)


def test_a_key_sees_a_moment_as_the_worker_will(app):
    @app.task(base=DurableTask, idempotency_key="{day:%Y-%m-%d}")
    def close_books(day): ...

    assert record(app, close_books.delay(datetime(2026, 1, 2, tzinfo=timezone.utc))).key == "2026-01-02"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"idempotency_key": "{order_nr}"}, r"names \{order_nr\}.*its arguments are: order_id"),
        ({"idempotency_key": "{0}"}, r"names \{0\}"),
        ({"idempotency_key": "{order_id"}, "is no format string"),
        ({"idempotency_key": "{order_id.missing}"}, "cannot be formatted from .*str.*AttributeError"),
        ({"idempotency_key": "{order_id:d}"}, "cannot be formatted"),
        ({"idempotency_key": lambda order_id: 17}, "is 17, a int: it must be a string"),
        ({"idempotency_key": lambda order_id: 1 / 0}, "raised ZeroDivisionError"),
        ({"idempotency_key": lambda: "x"}, "raised TypeError"),
        ({"idempotency_key": 17}, "idempotency_key is 17"),
        ({"idempotency_key": classmethod(lambda cls, order_id: "x")}, "idempotency_key is <classmethod"),
    ],
)
def test_a_key_that_cannot_be_made_is_one_clear_error(app, broker_url, options, fault):
    @app.task(base=DurableTask, name="shop.charge", **options)
    def charge(order_id): ...

    with pytest.raises(IdempotencyKeyError, match="shop.charge.*" + fault):
        charge.delay("o-1")

    assert (count(app), on_redis(broker_url)) == (0, [])


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("x" * 256, "256 characters, 255 are allowed; hash its long part"),
        ("a\0b", "holds a NUL"),
        ("a\ud800", "half a surrogate pair"),
        ("", "is empty; leave it out"),
        (17, "a int: it must be a string"),
    ],
)
def test_a_key_that_cannot_be_stored_is_one_clear_error(app, broker_url, key, fault):
    @app.task(base=DurableTask, name="shop.charge")
    def charge(order_id): ...

    with pytest.raises(IdempotencyKeyError, match="shop.charge.*" + fault):
        charge.apply_async(("o-1",), idempotency_key=key)

    assert (count(app), on_redis(broker_url)) == (0, [])


@pytest.mark.parametrize("key", ["x" * 255, "😀" * 255, "a/b", "50% 'off'; --", "\t"])
def test_a_key_that_can_be_stored(app, key):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    assert record(app, charge.apply_async(("o-1",), idempotency_key=key)).key == key


def test_an_error_about_a_key_shows_no_argument(app):
    @app.task(base=DurableTask, idempotency_key="{card.number}")
    def charge(card): ...

    with pytest.raises(IdempotencyKeyError) as caught:
        charge.delay("4111-1111")

    assert "4111" not in str(caught.value)
