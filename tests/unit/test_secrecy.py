"""What Celery logs of a delivery: secrets are taken out, and records that tell none stay as they are."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
from celery import Celery

from celery_durable import DurableTask
from celery_durable.secrecy import LogScrubber, PoolLogScrubber


@pytest.fixture
def scrub():
    """Filter a record while a delivery with these arguments is in hand."""
    app = Celery("shop", set_as_current=False)

    @app.task(base=DurableTask, shared=False)
    def pay(order, password=""): ...

    @app.task(base=DurableTask, shared=False)
    def ship(order): ...

    def filtered(kwargs, message, *args, **extra):
        task = pay if "password" in kwargs else ship
        delivery = SimpleNamespace(task=task, args=(), kwargs=kwargs)
        record = logging.LogRecord("celery.app.trace", 20, "", 0, message, args, extra.pop("exc_info", None))
        vars(record).update(extra)
        assert LogScrubber(lambda: delivery).filter(record)
        return record

    return filtered


def log_in(message):
    password = "drowssap-of-ann"
    raise ValueError(message.format(password))


def failure(message):
    try:
        log_in(message)
    except ValueError:
        return sys.exc_info()


def test_a_secret_argument_is_taken_out_of_message_traceback_and_data(scrub):
    exc_info = failure("hunter2hunter2 was refused")
    record = scrub(
        {"password": "hunter2hunter2"}, "raised %s", exc_info[1], exc_info=exc_info, data={"exc": exc_info[1]}
    )
    assert record.getMessage() == "raised [redacted] was refused"
    assert (record.exc_info, "hunter2" in record.exc_text) == (None, False)
    assert record.data == {"exc": "[redacted] was refused"}


def test_so_is_a_secret_local_variable_of_any_call(scrub):
    exc_info = failure("login as {} failed")
    record = scrub({"order": 1}, "raised %s", exc_info[1], exc_info=exc_info)
    assert record.getMessage() == "raised login as [redacted] failed"
    assert "drowssap" not in record.exc_text


def test_a_record_without_secrets_keeps_its_exception_and_its_arguments(scrub):
    exc_info = failure("order 7 is wrong")
    record = scrub({"order": 1}, "raised %s", exc_info[1], exc_info=exc_info)
    assert (record.exc_info, record.args, record.exc_text) == (exc_info, (exc_info[1],), None)


def test_a_success_is_looked_at_where_the_call_holds_secrets(scrub):
    said = {"return_value": "'hunter2hunter2'"}
    assert scrub({"password": "hunter2hunter2"}, "%(return_value)s", said, data=said).getMessage() == "'[redacted]'"
    assert scrub({"order": 1}, "%(return_value)s", said, data=said).getMessage() == "'hunter2hunter2'"


def test_what_goes_to_the_pool_is_logged_without_its_arguments():
    def logged():
        record = logging.LogRecord("celery.pool", 10, "", 0, "Apply %s (args:%s)", ("f", "hunter2"), None)
        assert PoolLogScrubber().filter(record)
        return record.getMessage()

    with PoolLogScrubber.applied("shop.pay"):
        assert logged() == "TaskPool: Apply shop.pay (its arguments are not logged)"
    assert logged() == "Apply f (args:hunter2)"
