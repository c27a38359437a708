"""The shop's app in a sandbox: a SQLite file for Django and the ledger, no broker, no worker."""

import os
import tempfile

import django
import pytest

os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
os.environ["SHOP_STATE"] = tempfile.mkdtemp(prefix="shop-")
os.environ.pop("SHOP_DATABASE", None)
os.environ.pop("SHOP_BROKER", None)
django.setup()


@pytest.fixture
def durable_app():
    """The app that the fixtures of celery-durable use."""
    from shop.celery import app

    return app
