"""A Django project in the tests' own process, and databases that are Django's and the ledger's alike."""

from __future__ import annotations

from uuid import uuid4

import django
import pytest
from django.conf import settings
from django.db import connections
from django.test.utils import override_settings

from tests.django import settings as project
from tests.django.databases import database

# No DJANGO_SETTINGS_MODULE: Celery would take every app that is made in this process for Django's.
if not settings.configured:
    settings.configure(**{name: value for name, value in vars(project).items() if name.isupper()})
    django.setup()


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
