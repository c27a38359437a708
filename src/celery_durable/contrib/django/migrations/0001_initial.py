"""The ledger's first revision, and the models over its tables."""

from __future__ import annotations

from django.db import migrations

from celery_durable.contrib.django.operations import LedgerRevision, models_as_they_are


class Migration(migrations.Migration):
    """Each revision of the ledger has a migration: this one line. Models need none, they follow the tables."""

    initial = True
    operations = (
        LedgerRevision("0001"),
        migrations.SeparateDatabaseAndState(state_operations=models_as_they_are()),
    )
