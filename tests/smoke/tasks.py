"""Durable tasks of the smoke tests. Their source is copied into the workers' containers: it imports nothing of `tests`.

What bodies do is written to the table `witness` of the ledger's database, apart from the ledger; `hold` waits for a row
of the table `gate`.
"""

from __future__ import annotations

import os
import time

import psycopg
from celery import shared_task

from celery_durable import DurableTask


def witness(statement, *values):
    """Run one statement on a connection of its own."""
    url = os.environ["DURABLE_LEDGER_URL"].replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def saw(task, what):
    witness("INSERT INTO witness (task_id, what) VALUES (%s, %s)", task.request.id, what)


@shared_task(base=DurableTask, bind=True, max_losses=20)
def hold(self, gate, value=True):
    """Runs until the gate is opened."""
    saw(self, "started")
    while not witness("SELECT 1 FROM gate WHERE name = %s", gate):
        time.sleep(0.05)
    saw(self, "finished")
    return value
