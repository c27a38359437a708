"""Where the ledger is, as Django's settings tell it."""

from __future__ import annotations

import sys

import pytest
from celery import Celery
from django.conf import settings
from django.db import connections
from django.test.utils import override_settings

from celery_durable.contrib.django.place import ledger_url
from celery_durable.errors import LedgerSchemaError, SettingsError
from celery_durable.hosting import host_of
from celery_durable.wiring import plugin
from tests.worker.kit import make_app

PG = "django.db.backends.postgresql"


@pytest.fixture
def database():
    """Puts a database among Django's, as its settings describe it."""
    made = []

    def make(**told):
        name = f"told_{len(made)}"
        made.append(name)
        connections.databases[name] = connections.configure_settings({"default": {}, name: told})[name]
        return name

    yield make
    for name in made:
        del connections[name]
        del connections.databases[name]


@pytest.mark.parametrize(
    ("told", "url"),
    [
        ({"ENGINE": "django.db.backends.sqlite3", "NAME": "/srv/shop.db"}, "sqlite:////srv/shop.db"),
        (
            {"ENGINE": "django.db.backends.sqlite3", "NAME": "file:memorydb_default?mode=memory&cache=shared"},
            "sqlite:///file:memorydb_default?mode=memory&cache=shared&uri=true",
        ),
        (
            {"ENGINE": PG, "NAME": "shop", "USER": "me", "PASSWORD": "p@ss/word", "HOST": "db", "PORT": "5433",
             "OPTIONS": {"sslmode": "require", "pool": True, "isolation_level": 1}},
            "postgresql+psycopg://me:p%40ss%2Fword@db:5433/shop?sslmode=require",
        ),
        (
            {"ENGINE": PG, "NAME": "shop", "HOST": "/run/postgresql", "PORT": 5433},
            "postgresql+psycopg:///shop?host=%2Frun%2Fpostgresql&port=5433",
        ),
        (
            {"ENGINE": "django.db.backends.mysql", "NAME": "shop", "USER": "me", "HOST": "/run/mysqld.sock",
             "OPTIONS": {"charset": "utf8mb4", "ssl": {"ca": "/ca.pem"}, "init_command": "SET sql_mode=''"}},
            "mysql+pymysql://me@/shop?charset=utf8mb4&ssl_ca=%2Fca.pem&unix_socket=%2Frun%2Fmysqld.sock",
        ),
    ],
    ids=["sqlite", "memory", "postgresql", "socket", "mysql"],
)  # fmt: skip
def test_the_url_says_what_django_s_settings_say(database, told, url):
    assert ledger_url(database(**told)) == url


def test_an_alias_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(
        SettingsError, match=r'"django://ledger", but DATABASES has no \'ledger\': use .*django://defau'
    ):
        plugin(make_app("django://ledger", "memory://")).settings  # noqa: B018


def test_an_app_of_django_s_has_its_ledger_in_the_default_database():
    app = Celery("of-django", set_as_current=False)
    app.config_from_object(settings, namespace="CELERY")
    assert plugin(app).settings.ledger_url == ledger_url("default")


def test_a_project_without_our_app_has_none():
    app = Celery("of-django", set_as_current=False)
    app.config_from_object(settings, namespace="CELERY")
    with override_settings(INSTALLED_APPS=["django.contrib.contenttypes"]):
        assert host_of(app, None) is None


def test_an_app_beside_django_has_none():
    assert host_of(Celery("beside", set_as_current=False), None) is None


def test_a_ledger_without_tables_names_django_s_command(alias):
    with pytest.raises(LedgerSchemaError, match=r"run 'python manage.py migrate'"):
        plugin(make_app(f"django://{alias}", "memory://")).ledger  # noqa: B018


def test_a_test_database_is_followed(alias, ledger_url, tmp_path):
    app = make_app(f"django://{alias}", "memory://")
    before = plugin(app).settings.ledger_url
    told = connections[alias].settings_dict
    kept, told["NAME"] = told["NAME"], str(tmp_path / "test.db") if "sqlite" in ledger_url else "test_other"
    try:
        assert plugin(app).settings.ledger_url != before
    finally:
        told["NAME"] = kept
    assert plugin(app).settings.ledger_url == before


def test_without_django_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "celery_durable.contrib.django.host", None)
    with pytest.raises(SettingsError, match=r'pip install "celery-durable\[django\]"'):
        host_of(None, "django://default")
