"""A project whose ledger is in Django's database, with tasks in every state, and users who may more or less."""

from __future__ import annotations

import pytest
from celery import Celery, _state
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.test import Client

from celery_durable import DurableTask
from celery_durable.wiring import plugin
from tests.django.admin.kit import seed
from tests.ledger.kit import empty


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """The project's app; its ledger is the default database."""
    call_command("migrate", verbosity=0)
    folder = tmp_path_factory.mktemp("broker")
    app = Celery("shop", broker="filesystem://", set_as_current=False)
    app.conf.broker_transport_options = {"data_folder_in": str(folder), "data_folder_out": str(folder)}
    app.conf.durable_ledger_url = "django://default"

    @app.task(base=DurableTask, name="shop.charge", redact=["voucher"], shared=False)
    def charge(order, card):
        raise NotImplementedError

    @app.task(base=DurableTask, name="shop.invoice", shared=False)
    def invoice(order):
        raise NotImplementedError

    return app


@pytest.fixture
def ledger(shop, monkeypatch):
    """The project's empty ledger."""
    monkeypatch.setattr(_state, "default_app", shop)
    monkeypatch.setattr(_state._tls, "current_app", None)
    found = plugin(shop).ledger
    empty(found)
    User.objects.all().delete()
    return found


@pytest.fixture
def told(ledger):
    """A ledger with a story: name -> row id."""
    return seed(ledger)


def user(name, *codenames):
    made = User.objects.create_user(name, password=name, is_staff=True)
    made.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return made


LOOK = ("view_task", "view_failure", "view_worker")
MOVE = ("replay_task", "cancel_task", "pause_task")


@pytest.fixture
def ann(ledger):
    """Somebody who may do everything."""
    client = Client()
    client.force_login(user("ann", *LOOK, *MOVE))
    return client


@pytest.fixture
def bob(ledger):
    """Somebody who may look."""
    client = Client()
    client.force_login(user("bob", *LOOK))
    return client


@pytest.fixture
def eve(ledger):
    """Somebody who may enter the admin, and nothing else."""
    client = Client()
    client.force_login(user("eve"))
    return client
