"""The app, to be named in ``INSTALLED_APPS``."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import pre_migrate


class DurableConfig(AppConfig):
    """Durable tasks in a Django project."""

    name = "celery_durable.contrib.django"
    label = "celery_durable"
    verbose_name = "Durable tasks"

    def ready(self) -> None:
        """Add the system checks, and see to the tables where migrations are switched off."""
        from celery_durable.contrib.django import checks
        from celery_durable.contrib.django.operations import before_migrate

        checks.register()
        pre_migrate.connect(before_migrate, sender=self)
