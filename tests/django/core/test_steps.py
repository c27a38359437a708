"""A transactional step is transaction.atomic() on Django's connection: ORM and record are one commit."""

from __future__ import annotations

import pytest
from django.db import connections, transaction
from django.db.utils import OperationalError

from celery_durable import DurableTask, ledger
from tests.worker.kit import over, working


@pytest.fixture
def booking(app, place, order):
    """A task that books in a step, and fails after it as often as it is told to."""
    fails = []

    @app.task(base=DurableTask, bind=True, name=f"shop.book_{place}", autoretry_for=(ConnectionError,),
              retry_backoff=False, default_retry_delay=0.1)  # fmt: skip
    def book(self, number):
        self.step("book", order, number, transaction=True)
        if fails:
            raise fails.pop()
        return connections[place].in_atomic_block

    book.fails = fails
    return book


def test_what_the_function_wrote_is_there_once_however_often_the_task_runs(app, booking, orders):
    booking.fails.append(ConnectionError("after the step"))
    with working(app):
        result = booking.delay("A-1")
        over(app, result)
    found = ledger(app).get(result.id)
    assert (found.state, found.claims, orders()) == ("succeeded", 2, ["A-1"])


def test_what_raises_is_rolled_back_with_its_record(app, place, order, orders):
    @app.task(base=DurableTask, bind=True, name=f"shop.wrong_{place}")
    def wrong(self, number):
        self.step("book", spoilt, number, transaction=True)

    def spoilt(number):
        order(number)
        raise ValueError(number)

    with working(app):
        result = wrong.delay("A-1")
        assert over(app, result).state == "dead"
    assert orders() == []


def test_a_step_inside_of_an_atomic_block_is_refused(app, place, order, orders):
    @app.task(base=DurableTask, bind=True, name=f"shop.nested_{place}")
    def nested(self, number):
        with transaction.atomic(using=place):
            self.step("book", order, number, transaction=True)

    with working(app):
        result = nested.delay("A-1")
        failure = over(app, result).failure
    assert "inside of transaction.atomic()" in failure.message
    assert orders() == []


def test_a_step_after_a_deadlock_is_done_again(app, place, order, orders):
    driver = connections[place].Database
    deadlocks = [_deadlock(connections[place].vendor, driver)] * 2

    @app.task(base=DurableTask, bind=True, name=f"shop.contended_{place}")
    def contended(self, number):
        self.step("book", unlucky, number, transaction=True)

    def unlucky(number):
        order(number)
        if deadlocks and deadlocks[0] is not None:
            raise OperationalError(str(deadlocks[0])) from deadlocks.pop()

    with working(app):
        assert over(app, contended.delay("A-1")).claims == 1
    assert orders() == ["A-1"]


def test_outside_of_a_run_it_is_an_atomic_block(app, place, booking, orders):
    assert booking("A-1") is False
    assert orders() == ["A-1"]


def _deadlock(vendor, driver):
    """What the driver raises."""
    if vendor == "postgresql":
        return driver.errors.DeadlockDetected("deadlock detected")
    return driver.OperationalError(1213, "Deadlock found") if vendor == "mysql" else None
