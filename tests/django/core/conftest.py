"""Apps whose ledger is on a database of Django's, and a table of the project's own beside it."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import connections

from celery_durable import DurableTask
from tests.worker.kit import closed, make_app


@pytest.fixture
def place(alias):
    """The alias, with the ledger's tables and a table of orders."""
    call_command("migrate", "celery_durable", database=alias, verbosity=0)
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE orders (number VARCHAR(40) PRIMARY KEY)")
    return alias


@pytest.fixture
def app(place, redis_server):
    made = make_app(f"django://{place}", redis_server.db(), result_backend="durable://")

    @made.task(base=DurableTask, name=f"shop.charge_{place}", idempotency_key="{number}")
    def charge(number):
        return number

    made.charge = charge
    yield made
    closed(made)


@pytest.fixture
def charge(app):
    return app.charge


@pytest.fixture
def order(place):
    """Writes an order on Django's connection."""

    def write(number):
        with connections[place].cursor() as cursor:
            cursor.execute("INSERT INTO orders (number) VALUES (%s)", [number])

    return write


@pytest.fixture
def orders(place):
    """Reads them, on a connection of its own thread: what is committed."""

    def read():
        with connections[place].cursor() as cursor:
            cursor.execute("SELECT number FROM orders ORDER BY number")
            return [number for (number,) in cursor.fetchall()]

    return read
