"""Durable tasks of the smoke tests. Their source is copied into the workers' containers: it imports nothing of `tests`.

What bodies do is written to the table `witness` of the ledger's database, apart from the ledger; `hold` waits for a row
of the table `gate`.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import psycopg
from celery import current_app, shared_task

from celery_durable import DurableTask


def witness(statement, *values):
    """Run one statement on a connection of its own."""
    url = os.environ["DURABLE_LEDGER_URL"].replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def saw(task, what):
    witness("INSERT INTO witness (task_id, what) VALUES (%s, %s)", task.request.id, what)


def runs(task):
    """How often this task has begun, this run included."""
    return witness("SELECT count(*) FROM witness WHERE task_id = %s AND what = 'started'", task.request.id)[0][0]


@shared_task(base=DurableTask, bind=True)
def identity(self, value):
    saw(self, "started")
    return value


@shared_task(base=DurableTask, bind=True)
def add(self, *numbers):
    saw(self, "started")
    return sum(numbers)


@shared_task(base=DurableTask, bind=True)
def total(self, numbers):
    saw(self, "started")
    return sum(numbers)


@shared_task(base=DurableTask, bind=True, max_losses=20)
def hold(self, gate, value=True):
    """Runs until the gate is opened."""
    saw(self, "started")
    while not witness("SELECT 1 FROM gate WHERE name = %s", gate):
        time.sleep(0.05)
    saw(self, "finished")
    return value


@shared_task(base=DurableTask, bind=True, idempotency_key="{order}")
def charge(self, order):
    saw(self, "started")
    return f"charged {order}"


@shared_task(base=DurableTask, bind=True, time_limit=2)
def die(self, how):
    """Its first run ends its process; `timeout` by the time limit."""
    saw(self, "started")
    if runs(self) == 1:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "exit":
            sys.exit(1)
        time.sleep(60)
    return how


@shared_task(base=DurableTask, bind=True, max_retries=3)
def again(self, times):
    """Succeeds after so many retries."""
    saw(self, "started")
    if self.request.retries < times:
        raise self.retry(countdown=0.5)
    return self.request.retries


@shared_task(base=DurableTask, bind=True)
def replaced(self, value, queue):
    saw(self, "started")
    return self.replace(current_app.tasks["tests.smoke.tasks.identity"].s(value).set(queue=queue))
