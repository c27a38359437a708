"""The app of a worker in a container: pytest-celery fills in the imports, the name and the settings."""

import os

from celery import Celery

imports = None

app = Celery("celery_test_app")
config = None

if config:
    app.config_from_object(config)
app.conf.durable_ledger_url = os.environ.get("DURABLE_LEDGER_URL", "")  # by its address inside
