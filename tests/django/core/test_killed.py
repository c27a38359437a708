"""A web process that is killed between its COMMIT and the message has lost nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from django.db import connections

from tests.worker.kit import alter, on_redis, rows, sweep, working

ROOT = Path(__file__).parents[3]

#: A project of its own, and one request to it in a process that is killed when it comes to send its message.
REQUEST = textwrap.dedent("""
    import json, os, sys
    import pymysql; pymysql.install_as_MySQLdb()
    import django
    from django.conf import settings
    told = json.loads(sys.argv[1])
    settings.configure(
        SECRET_KEY="x", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, USE_TZ=True,
        DATABASES={"default": told["database"] | {"ATOMIC_REQUESTS": True}},
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "celery_durable.contrib.django"],
        CELERY_BROKER_URL=told["broker"],
    )
    django.setup()
    from celery import Celery
    from celery_durable import DurableTask
    app = Celery("shop"); app.config_from_object("django.conf:settings", namespace="CELERY")
    @app.task(base=DurableTask, name=told["task"], idempotency_key="{number}")
    def charge(number): ...

    from django.db import connection
    from django.http import HttpResponse
    from django.urls import path
    def order(request):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders (number) VALUES (%s)", ["A-1"])
        charge.delay("A-1")
        if request.GET.get("fail"):
            raise ValueError("of the view, after its call")
        return HttpResponse("ok")
    urlpatterns = [path("order", order)]
    from django.test import Client
    print(Client(raise_request_exception=False).get("/order" + told["query"]).status_code)
""")


@pytest.fixture
def request_to(app, place):
    """Sends a request to a web process of its own; returns how that ended, and what it answered."""

    def send(query="", **environ):
        told = connections[place].settings_dict
        database = {k: told[k] for k in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")}
        given = {
            "database": database | {"NAME": str(told["NAME"])}, "broker": app.conf.broker_url, "query": query,
            "task": app.charge.name,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", REQUEST, json.dumps(given)], env=os.environ | environ, cwd=ROOT, timeout=120,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        print(done.stderr[-2000:])
        return done.returncode, done.stdout.strip()

    return send


def test_a_process_killed_between_commit_and_message_loses_nothing(app, request_to, orders):
    assert request_to(DURABLE_FAILPOINTS="publish=die") == (-signal.SIGKILL, "")
    assert (orders(), [row.key for row in rows(app)]) == (["A-1"], ["A-1"])
    assert on_redis(app.conf.broker_url) == []

    alter(app, rows(app)[0].task_id, publish_at=1)  # the time of its second ring has come
    sweep(app)
    with working(app):
        assert app.charge.AsyncResult(rows(app)[0].task_id).get(timeout=30) == "A-1"


def test_a_process_killed_before_its_commit_leaves_neither(app, request_to, orders):
    assert request_to(DURABLE_FAILPOINTS="submit.statement=execute-then-die") == (-signal.SIGKILL, "")
    assert (orders(), rows(app)) == ([], [])


def test_a_request_that_fails_takes_its_call_back(app, request_to, orders):
    assert request_to("?fail=1") == (0, "500")
    assert (orders(), rows(app), on_redis(app.conf.broker_url)) == ([], [], [])


def test_a_request_that_succeeds_has_sent(app, request_to, orders):
    assert request_to() == (0, "200")
    assert (orders(), len(on_redis(app.conf.broker_url))) == (["A-1"], 1)
