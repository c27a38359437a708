"""Idempotency keys: from a template and arguments to a key, and from a key to its digest."""

from __future__ import annotations

import hashlib
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_durable import keys
from celery_durable.errors import IdempotencyKeyError


def charge(order_id, cents=100, *more, note="", **rest):
    """A task's function."""


SIGNATURE = inspect.signature(charge)


class Order:
    id = 7
    lines = ("a", "b")


def render(template, *args, **kwargs):
    return keys.render("shop.charge", template, SIGNATURE, args, kwargs)


@pytest.mark.parametrize(
    ("template", "args", "kwargs", "key"),
    [
        ("{order_id}", (7,), {}, "7"),
        ("{order_id}", (), {"order_id": "x"}, "x"),
        ("{order_id}-{cents}", (7,), {}, "7-100"),
        ("{order_id}-{note}", (7, 1, 2, 3), {"note": "n"}, "7-n"),
        ("{more}", (7, 1, 2, 3), {}, "(2, 3)"),
        ("{order_id.id}/{order_id.lines[1]}", (Order,), {}, "7/b"),
        ("{order_id[id]}", ({"id": 7},), {}, "7"),
        ("{cents:05d}", (7, 42), {}, "00042"),
        ("{order_id!r}", ("x",), {}, "'x'"),
        ("{{{order_id}}}", (7,), {}, "{7}"),
        ("{other}", (7,), {"other": 3}, "3"),
        ("fixed", (7,), {}, "fixed"),
    ],
)
def test_a_template_is_formatted_from_the_bound_arguments(template, args, kwargs, key):
    assert render(template, *args, **kwargs) == key


def test_a_callable_gets_the_arguments_as_they_are():
    assert render(lambda order_id, cents: f"{order_id}:{cents}", 7, cents=3) == "7:3"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{}", "no such argument"),
        ("{0}", "no such argument"),
        ("{order_id", "no format string"),
        ("{order_id.missing}", "AttributeError"),
        ("{order_id:q}", "ValueError"),
        ("{unknown}", "KeyError"),
        ("", "empty"),
        (lambda *_: 1 / 0, "ZeroDivisionError"),
        (lambda *_: None, "must be a string"),
        (lambda *_: 7, "a int"),
        (lambda *_: "", "empty"),
        (lambda *_: "x" * 256, "256 characters, 255 are allowed"),
    ],
)
def test_a_key_that_cannot_be_made_is_one_clear_error(template, message):
    with pytest.raises(IdempotencyKeyError, match=message) as caught:
        render(template, 7)
    assert str(caught.value).startswith("shop.charge: ")


def test_a_template_that_names_no_argument_says_which_there_are():
    def task(order_id, cents):
        """No **kwargs to hide in."""

    with pytest.raises(IdempotencyKeyError, match=r"names \{oder_id\}.*arguments are: order_id, cents"):
        keys.check_template("shop.charge", "{oder_id}", inspect.signature(task))


def test_arguments_that_do_not_fit_the_task_say_so():
    with pytest.raises(IdempotencyKeyError, match="TypeError"):
        render("{order_id}")


@pytest.mark.parametrize("template", ["{order_id.missing}", lambda *_: 1 / 0])
def test_an_error_never_shows_the_arguments(template):
    with pytest.raises(IdempotencyKeyError, match="str") as caught:
        render(template, "4111-1111-1111-1111")
    assert "4111" not in str(caught.value)


@pytest.mark.parametrize("key", ["a", "x" * 255, "ä" * 255, "🎉" * 255, " ", "ORD-a ", "\t\n"])
def test_a_key_that_can_be_stored_passes_unchanged(key):
    assert keys.checked("t", key) == key


@pytest.mark.parametrize("key", ["", "x" * 256, "a\0b", "\ud800", "\udfff", None, 7, b"k", ["k"]])  # noqa: PT014 - two halves of a pair
def test_a_key_that_cannot_be_stored_is_refused(key):
    with pytest.raises(IdempotencyKeyError):
        keys.checked("t", key)


def test_the_digest_is_sha256_of_task_nul_key():
    assert keys.digest("shop.charge", "ä") == hashlib.sha256("shop.charge\0ä".encode()).digest()


@given(st.lists(st.tuples(st.text("abcAÁá ", min_size=1, max_size=4), st.text("abcAÁá ", max_size=4)), max_size=8))
def test_digests_are_equal_only_for_equal_task_and_key(pairs):
    assert len({keys.digest(*pair) for pair in pairs}) == len(set(pairs))


@given(st.text())
def test_whatever_passes_can_be_encoded(key):
    try:
        keys.checked("t", key)
    except IdempotencyKeyError:
        assert not key or len(key) > 255 or "\0" in key or any("\ud800" <= c <= "\udfff" for c in key)
    else:
        key.encode()
