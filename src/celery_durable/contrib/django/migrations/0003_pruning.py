"""The ledger's third revision."""

from __future__ import annotations

from django.db import migrations

from celery_durable.contrib.django.operations import LedgerRevision


class Migration(migrations.Migration):
    """What is pruned."""

    dependencies = (("celery_durable", "0002_liveness"),)
    operations = (LedgerRevision("0003"),)
