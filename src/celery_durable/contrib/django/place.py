"""Where the ledger is, as Django's settings tell it."""

from __future__ import annotations

from django.conf import settings

SCHEME = "django://"


def ledger_alias() -> str | None:
    """Return the alias of the database that holds the ledger; None when that is none of Django's."""
    url = str(getattr(settings, "CELERY_DURABLE_LEDGER_URL", None) or f"{SCHEME}default")
    return url.removeprefix(SCHEME).strip("/") or "default" if url.startswith(SCHEME) else None


def table_prefix() -> str:
    """Return what the names of the ledger's tables begin with."""
    return str(getattr(settings, "CELERY_DURABLE_TABLE_PREFIX", None) or "durable_")
