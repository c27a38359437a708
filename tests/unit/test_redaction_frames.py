"""Secrets in local variables, sealed results, and shapes of messages."""

from __future__ import annotations

import pytest

from celery_durable.redaction_frames import secrets_in
from celery_durable.redaction_shown import shape
from celery_durable.sealing import is_sealed, opened_result, sealed_result


def failing(**_: object) -> None:
    raise ValueError("no")


def caught(fail) -> Exception:
    with pytest.raises(Exception) as told:
        fail()
    return told.value


def test_local_variables_of_suspect_names_are_collected_along_the_chain():
    def inner():
        password = "hunter2hunter2"
        failing(password=password)

    def outer():
        config = {"db": [{"api_key": "key-of-the-db", "port": 5432}], "user": "shopkeeper"}
        try:
            inner()
        except ValueError as exc:
            raise RuntimeError(config["user"]) from exc

    assert secrets_in(caught(outer)) >= {"hunter2hunter2", "key-of-the-db"}
    assert "shopkeeper" not in secrets_in(caught(outer))
    assert secrets_in(None) == frozenset()


def test_short_words_and_objects_are_left_alone():
    class Session:
        def __str__(self) -> str:
            raise AssertionError("somebody's code was called")

    def fail():
        token, session, pin = "and", Session(), 1234
        failing(all=(token, session, pin))

    assert secrets_in(caught(fail)) == frozenset()


def test_much_and_nested_values_end_somewhere():
    def fail():
        tokens: list = ["the first token"]
        tokens += [tokens] * 9
        secret = dict.fromkeys(range(100_000), "another secret")
        failing(all=(tokens, secret))

    assert "the first token" in secrets_in(caught(fail))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('[["hunter2", 1234], {"card": "4111"}, {"chain": null', '[["…", …], {"…": "…"}, {"chain": …'),
        ('{"task": "shop.pay", "args": ["x y"]', '{"task": "…", "args": ["… …"]'),
        ("<html>no</html>", "…"),
        ("", ""),
    ],
)
def test_the_shape_of_a_text_has_none_of_its_values(text, shown):
    assert shape(text) == shown


@pytest.mark.parametrize("kind", ["application/json", "application/x-yaml;binary"])
def test_a_sealed_result_opens_again(kind):
    content, marked = sealed_result(b'"hunter2"', kind)
    assert b"hunter2" not in content
    assert is_sealed(marked)
    assert opened_result(content, marked) == (b'"hunter2"', kind)
    assert opened_result(b"7", kind) == (b"7", kind)
