"""A call inside transaction.atomic() is part of it: there with its commit, gone with its rollback."""

from __future__ import annotations

import unittest
from contextlib import contextmanager, suppress

import pytest
from django.db import connections, transaction
from django.test import TestCase

from celery_durable import KeyConflict, ledger
from tests.worker.kit import on_redis, rows, working


class Undone(Exception):
    """What rolls a block back."""


@contextmanager
def undone(place):
    """A transaction that is rolled back."""
    with suppress(Undone), transaction.atomic(using=place):
        yield
        raise Undone


def keys(app):
    return sorted(row.key for row in rows(app))


def sent(app):
    return sorted(m["headers"]["durable"]["id"] for m in on_redis(app.conf.broker_url))


def test_a_call_outside_of_a_transaction_is_one_of_its_own(app, charge):
    result = charge.delay("A-1")
    assert (keys(app), sent(app)) == (["A-1"], [result.id])


def test_a_commit_brings_order_and_task_and_then_the_message(app, place, charge, order, orders):
    with transaction.atomic(using=place):
        order("A-1")
        result = charge.delay("A-1")
        assert result.id
        assert (keys(app), sent(app)) == ([], []), "told before the commit"
    assert (orders(), keys(app), sent(app)) == (["A-1"], ["A-1"], [result.id])
    with working(app):
        assert result.get(timeout=30) == "A-1"


def test_a_rollback_takes_both(app, place, charge, order, orders):
    with undone(place):
        order("A-1")
        charge.delay("A-1")
    assert (orders(), keys(app), sent(app)) == ([], [], [])


def test_a_savepoint_that_is_rolled_back_takes_what_was_called_in_it(app, place, charge, order, orders):
    with transaction.atomic(using=place):
        order("A-1")
        with undone(place):
            charge.delay("A-2")
        with transaction.atomic(using=place):
            third = charge.delay("A-3")
        first = charge.delay("A-1")
    assert (keys(app), sent(app)) == (["A-1", "A-3"], sorted([first.id, third.id]))


def test_what_a_transaction_left_behind_is_not_sent_by_the_next(app, place, charge):
    with undone(place):
        charge.delay("A-1")
    with transaction.atomic(using=place):
        second = charge.delay("A-2")
    assert sent(app) == [second.id]


def test_a_key_means_what_it_means_elsewhere(app, place, charge):
    first = charge.delay("A-1")
    with transaction.atomic(using=place):
        assert charge.delay("A-1").id == first.id
        with pytest.raises(KeyConflict):
            charge.apply_async(("A-1",), on_conflict="raise")
        charge.delay("A-2")
    assert keys(app) == ["A-1", "A-2"]


def test_many_calls_are_part_of_it(app, place, charge):
    with undone(place):
        charge.submit_many([(f"A-{n}",) for n in range(10)])
    assert keys(app) == []
    with transaction.atomic(using=place):
        receipts = charge.submit_many([(f"A-{n}",) for n in range(10)])
    assert receipts.counts == {"new": 10}
    assert (len(keys(app)), len(sent(app))) == (10, 10)


def test_a_broker_that_is_down_costs_a_commit_nothing(app, place, charge, order, orders):
    broker = app.conf.broker_url
    with transaction.atomic(using=place):
        order("A-1")
        app.conf.broker_url = app.conf.broker_write_url = "redis://127.0.0.1:1/0"
        result = charge.delay("A-1")
    app.conf.broker_url = app.conf.broker_write_url = broker
    assert (orders(), keys(app), sent(app)) == (["A-1"], ["A-1"], [])
    assert ledger(app).get(result.id).state == "queued"


def test_a_broken_transaction_says_so(app, place, charge):
    connection = connections[place]
    if connection.vendor != "postgresql":
        pytest.skip("elsewhere a statement that fails breaks no transaction")
    with undone(place):
        connection.needs_rollback = True
        with pytest.raises(transaction.TransactionManagementError):
            charge.delay("A-1")


def test_another_database_s_commit_is_waited_for(app, charge, other):
    with undone(other):
        charge.delay("A-1")
    with transaction.atomic(using=other):
        result = charge.delay("A-2")
        assert (keys(app), sent(app)) == ([], [])
    assert (keys(app), sent(app)) == (["A-2"], [result.id])


def test_another_database_s_commit_meets_a_key_under_the_id_that_was_promised(app, charge, other):
    first = charge.delay("A-1")
    with transaction.atomic(using=other):
        second = charge.delay("A-1")
    assert second.id != first.id
    with working(app):
        assert second.get(timeout=30) == "A-1"


@pytest.fixture
def other():
    """A database that holds no ledger."""
    return "default"


# Django's test cases ----------------------------------------------------------------------------------------


def run(case, place):
    """Run a test case on the place, as Django's runner does."""
    case.databases = {place}
    result = unittest.TestResult()
    unittest.TestSuite([case("test")]).run(result)
    assert result.testsRun == 1
    assert not result.errors, result.errors[0][1]
    assert not result.failures, result.failures[0][1]


def test_a_test_case_takes_back_what_it_called(app, place, charge):
    class Case(TestCase):
        def test(self):
            charge.delay("A-1")

    run(Case, place)
    assert (keys(app), sent(app)) == ([], [])


def test_a_test_case_that_captures_callbacks_sends(app, place, charge):
    class Case(TestCase):
        def test(self):
            with self.captureOnCommitCallbacks(using=place) as none:
                pass
            with self.captureOnCommitCallbacks(using=place, execute=True) as callbacks:
                self.id = charge.delay("A-1").id
            assert (len(none), len(callbacks)) == (0, 1)
            assert sent(app) == [self.id]

    run(Case, place)
    assert keys(app) == []
