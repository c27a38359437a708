"""A Django project in the tests' own process, and databases that are Django's and the ledger's alike."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import django
import pytest
import sqlalchemy as sa
from django.conf import settings
from django.db import connections
from django.test.utils import override_settings

from tests.django import settings as project

# No DJANGO_SETTINGS_MODULE: Celery would take every app that is made in this process for Django's.
if not settings.configured:
    settings.configure(**{name: value for name, value in vars(project).items() if name.isupper()})
    django.setup()

ENGINES = {"sqlite": "sqlite3", "postgresql": "postgresql", "mysql": "mysql"}


def database(url: str) -> dict[str, Any]:
    """Django's settings of the database that a URL names."""
    told = sa.make_url(url)
    server = {"HOST": told.host, "PORT": told.port, "USER": told.username} if told.host else {}
    options = {"charset": "utf8mb4"} if told.get_backend_name() == "mysql" else {}
    return {
        "ENGINE": f"django.db.backends.{ENGINES[told.get_backend_name()]}", "NAME": told.database, "OPTIONS": options,
    } | server  # fmt: skip


@pytest.fixture
def alias(ledger_url):
    """The alias of an empty database, in turn of every dialect; it is where the ledger is to be."""
    name = f"ledger_{uuid4().hex[:8]}"
    known = connections.configure_settings({"default": {}, name: database(ledger_url)})
    connections.databases[name] = known[name]
    with override_settings(CELERY_DURABLE_LEDGER_URL=f"django://{name}"):
        yield name
    connections[name].close()
    del connections[name]
    del connections.databases[name]
