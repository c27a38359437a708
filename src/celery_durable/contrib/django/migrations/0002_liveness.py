"""The ledger's second revision."""

from __future__ import annotations

from django.db import migrations

from celery_durable.contrib.django.operations import LedgerRevision


class Migration(migrations.Migration):
    """The lock by which a worker shows that it lives."""

    dependencies = (("celery_durable", "0001_initial"),)
    operations = (LedgerRevision("0002"),)
