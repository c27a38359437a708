"""``manage.py check``: what the doctor finds, with Django's ids, hints, levels and ways to silence it."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from celery import Celery, _state
from django.conf import settings
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.test.utils import override_settings

from celery_durable import DurableTask
from celery_durable.contrib.django import checks
from celery_durable.contrib.django.findings import DjangoSeen, judge, look
from celery_durable.doctor import work
from celery_durable.wiring import plugin
from tests.worker.kit import make_app

WELL = DjangoSeen(alias="default", vendor="postgresql")


@pytest.fixture
def project(alias, monkeypatch):
    """The project's app, as Django's checks find it; its ledger is in an empty database."""
    app = make_app(f"django://{alias}", "filesystem://")

    @app.task(base=DurableTask, name=f"shop.pay_{alias}", shared=False)
    def pay():
        raise NotImplementedError

    monkeypatch.setattr(_state, "default_app", app)
    monkeypatch.setattr(_state._tls, "current_app", None)
    return app


def ids(**options):
    return {m.id.removeprefix("celery_durable.") for m in run_checks(**options) if m.id.startswith("celery_durable.")}


@pytest.fixture
def others(alias, ledger_url):
    """What is found in any case: SQLite's transactions as Django makes them, and that there are other databases."""
    return {"W022"} if ledger_url.startswith("sqlite") else set()


def test_settings_are_looked_at_each_time(project, others):
    assert ids() == others
    project.conf.broker_url = "sqs://"
    assert ids() == others | {"W013"}


@pytest.mark.parametrize("program", ["/usr/bin/celery", "/lib/celery/__main__.py", r"celery.exe"])
def test_a_process_of_celery_s_own_looks_at_nothing(project, alias, program, monkeypatch):
    project.conf.broker_url = "sqs://"
    monkeypatch.setattr("sys.argv", [program, "-A", "shop", "worker"])
    assert ids(databases=[alias], include_deployment_checks=True) == set()


def test_deploy_tells_what_matters_in_production(project, others):
    project.conf.task_always_eager = True
    assert ids() == others
    assert ids(include_deployment_checks=True) == others | {"W004", "I017", "I025"}


def test_the_database_is_looked_at_when_it_is_asked_about(project, others, alias, monkeypatch):
    opened = []
    monkeypatch.setattr(checks.doctor, "of_ledger", lambda app, seen: opened.append(app) or [])
    ids(), ids(include_deployment_checks=True), ids(databases=["default"])
    assert opened == []
    ids(databases=[alias])
    assert opened == [project]


def test_a_ledger_without_tables(project, others, alias, monkeypatch):
    assert ids(databases=[alias]) == others | {"W041"}
    monkeypatch.setattr("sys.argv", ["manage.py", "migrate"])
    assert ids(databases=[alias]) == others
    call_command("migrate", "celery_durable", database=alias, verbosity=0)
    # The tests' own servers trade safety for speed.
    unsafe = others | {"W049", "W050", "W055"}
    assert ids(databases=[alias]) <= unsafe
    plugin(project).ledger.pause("queue", "celery", "", until=None, actor="ann")
    monkeypatch.setattr(work, "FORGOTTEN", -1.0)
    assert ids(databases=[alias]) <= unsafe
    monkeypatch.setattr("sys.argv", ["manage.py", "check"])
    assert "W077" in ids(databases=[alias])


def test_messages_have_hints_and_are_silenced_in_django_s_way(project, alias):
    project.conf.broker_url = "sqs://"
    told = next(m for m in run_checks() if m.id == "celery_durable.W013")
    assert told.msg == "The broker's transport is 'sqs', which celery-durable is not tried with."
    assert told.hint.startswith("Use Redis, RabbitMQ")
    said = StringIO()
    with pytest.raises(SystemCheckError, match=r"celery_durable\.W013"):
        call_command("check", fail_level="WARNING", stderr=said)
    with override_settings(SILENCED_SYSTEM_CHECKS=["celery_durable.W013", "celery_durable.W022"]):
        call_command("check", fail_level="WARNING", stdout=said)


def test_a_setting_that_makes_no_sense_stops_every_command(project):
    project.conf.durable_lease = -1
    with pytest.raises(SystemCheckError, match=r"E001\) durable_lease is -1.0: it must be greater than 0"):
        call_command("check")


@pytest.mark.parametrize("url", ["django://nowhere", "oracle://db/shop"])
def test_a_ledger_that_cannot_be(project, url):
    project.conf.durable_ledger_url = url
    for _ in range(2):
        assert "E001" in ids()


def test_a_ledger_elsewhere(project, tmp_path, monkeypatch):
    project.conf.durable_ledger_url = f"sqlite:///{tmp_path / 'l.db'}"
    assert ids() == {"W026"}


def test_a_project_without_a_celery_app(monkeypatch):
    monkeypatch.setattr(_state, "default_app", Celery("stock", set_as_current=False))
    monkeypatch.setattr(_state._tls, "current_app", None)
    assert ids() == {"W027"}
    assert ids(databases=["default"]) == {"W027"}


def test_a_project_with_its_settings_in_the_namespace(monkeypatch):
    app = Celery("of-django", set_as_current=False, broker="filesystem://")
    app.config_from_object(settings, namespace="CELERY")
    monkeypatch.setattr(_state, "default_app", app)
    monkeypatch.setattr(_state._tls, "current_app", None)
    assert ids() == {"W022"}
    with override_settings(CELERY_DURABLE_LEDGER_URL="sqlite:////tmp/elsewhere.db"):
        app = Celery("elsewhere", set_as_current=False, broker="filesystem://")
        app.config_from_object(settings, namespace="CELERY")
        monkeypatch.setattr(_state, "default_app", app)
        assert ids() == {"W026"}


# --- what Django's settings say -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        ({}, []),
        ({"vendor": "sqlite"}, [("django-sqlite-transactions", "warning", "DEFERRED")]),
        ({"vendor": "sqlite", "version": (4, 2)}, [("django-sqlite-transactions", "warning", "DEFERRED")]),
        ({"vendor": "sqlite", "transaction_mode": "immediate"}, []),
        ({"isolation_level": "read committed"}, []),
        ({"isolation_level": "repeatable read"}, [("django-isolation", "warning", "repeatable read")]),
        ({"autocommit": False}, [("django-autocommit", "warning", "AUTOCOMMIT False")]),
        ({"installed": False}, [("django-app-missing", "error", "INSTALLED_APPS has no")]),
        ({"others": ["logs"]}, [("django-other-database", "info", "lost with a process that dies")]),
        ({"others": ["logs"], "atomic": ["logs"]}, [("django-other-database", "warning", "(ATOMIC_REQUESTS) of logs")]),
    ],
)
def test_what_django_s_settings_say(seen, told):
    found = list(judge(DjangoSeen(**({"alias": "default", "vendor": "postgresql"} | seen))))
    assert [(f.id, f.level) for f in found] == [(name, level) for name, level, _ in told]
    for finding, (_, _, text) in zip(found, told, strict=True):
        assert text in finding.message
    if seen.get("version") == (4, 2):
        assert "Django 4.2 cannot" in found[0].fix


@pytest.mark.parametrize(
    ("options", "level"),
    [({}, ""), ({"isolation_level": 4}, "serializable"), ({"isolation_level": 2}, "read committed")],
)
def test_the_settings_of_a_database_are_read(alias, options, level, monkeypatch):
    told = connections.databases[alias]
    told["OPTIONS"] = told["OPTIONS"] | options
    seen = look(alias, installed=True)
    assert (seen.isolation_level, seen.others, seen.atomic) == (level, ["default"], [])
    monkeypatch.setitem(connections.databases["default"], "ATOMIC_REQUESTS", True)
    assert look(alias, installed=True).atomic == ["default"]


def test_the_host_tells_them(alias, ledger_url):
    found = {f.id for f in plugin(make_app(f"django://{alias}", "memory://")).host.findings()}
    assert found - {"django-sqlite-transactions"} == {"django-other-database"}


# --- numbers ------------------------------------------------------------------------------------------


def test_no_number_is_given_twice_and_each_is_documented():
    assert len(set(checks.NUMBERS.values())) == len(checks.NUMBERS)
    docs = Path(__file__).parents[3] / "docs/doctor.md"
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| ([EWI])(\d{3}) \|", docs.read_text(), re.MULTILINE)
    assert {name: int(number) for name, _, _, number in rows} == checks.NUMBERS
    for name, level, letter, _ in rows:
        most = "W" if checks.NUMBERS[name] >= 40 else "E"
        assert letter == max(level[0].upper(), most, key="EWI".index), name
