"""What Django's settings say against the ledger. Judged without a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import django
from django.db import connections

from celery_durable.doctor.findings import error, info, listed, warning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery_durable.doctor.findings import Finding

#: Since when Django can begin SQLite's transactions with the lock.
MODES_SINCE = (5, 1)
#: psycopg's IsolationLevel, an enum of integers. PostgreSQL takes the first for the second.
_PSYCOPG = {1: "read committed", 2: "read committed", 3: "repeatable read", 4: "serializable"}
_LOST = (
    "a .delay() in such a transaction is written after its commit, and lost with a process that dies between the two"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DjangoSeen:
    """What Django's settings say. ``atomic`` are those of the ``others`` with ATOMIC_REQUESTS."""

    alias: str
    vendor: str
    installed: bool = True
    version: tuple[int, int] = (5, 2)
    transaction_mode: str = ""
    isolation_level: str = ""
    autocommit: bool = True
    others: Sequence[str] = ()
    atomic: Sequence[str] = ()


def look(alias: str, *, installed: bool) -> DjangoSeen:
    """Read the settings of the ledger's database and of the others."""
    told = connections[alias].settings_dict
    options = told.get("OPTIONS") or {}
    others = [name for name in connections if name != alias]
    return DjangoSeen(
        alias=alias, vendor=connections[alias].vendor, installed=installed, version=django.VERSION[:2],
        transaction_mode=str(options.get("transaction_mode") or ""), isolation_level=_level(options),
        autocommit=bool(told.get("AUTOCOMMIT", True)), others=others,
        atomic=[name for name in others if connections.databases[name].get("ATOMIC_REQUESTS")],
    )  # fmt: skip


def _level(options: dict[str, object]) -> str:
    level = options.get("isolation_level") or ""
    level = _PSYCOPG[level] if isinstance(level, int) and level in _PSYCOPG else level
    return str(level).lower()


def judge(seen: DjangoSeen) -> Iterator[Finding]:
    """Say what is wrong with them."""
    if not seen.installed:
        yield error(
            "django-app-missing",
            f"The ledger is in Django's database '{seen.alias}', and INSTALLED_APPS has no celery_durable.contrib."
            "django: 'manage.py migrate' makes no tables for it.",
            'INSTALLED_APPS += ["celery_durable.contrib.django"].',
        )
    if seen.vendor == "sqlite" and seen.transaction_mode.upper() not in {"IMMEDIATE", "EXCLUSIVE"}:
        mode = seen.transaction_mode or "DEFERRED, the default"
        older = (
            "" if seen.version >= MODES_SINCE else f" Django {seen.version[0]}.{seen.version[1]} cannot: upgrade it."
        )
        yield warning(
            "django-sqlite-transactions",
            f"Transactions on the SQLite database '{seen.alias}' begin as {mode}: one that reads first and then writes "
            "fails with 'database is locked' when another has written, .delay() and steps in it too.",
            f"Set OPTIONS['transaction_mode'] = 'IMMEDIATE' (Django 5.1 or newer).{older}",
        )
    if seen.isolation_level not in {"", "read committed"}:
        yield warning(
            "django-isolation",
            f"Transactions on the database '{seen.alias}' begin as {seen.isolation_level}: a .delay() that meets "
            "another's key or row can fail with it, where read committed would wait.",
            "Leave isolation_level out of its OPTIONS.",
        )
    if not seen.autocommit:
        yield warning(
            "django-autocommit",
            f"The database '{seen.alias}' has AUTOCOMMIT False: outside transaction.atomic() a .delay() cannot be part "
            "of your transaction, and is sent at once.",
            "Leave AUTOCOMMIT as it is, and use transaction.atomic().",
        )
    yield from _other_databases(seen)


def _other_databases(seen: DjangoSeen) -> Iterator[Finding]:
    fix = (
        f"Keep the ledger beside the data that tasks are about, or submit in transaction.atomic(using='{seen.alias}')."
    )
    name = "django-other-database"
    if seen.atomic:
        yield warning(
            name,
            f"Requests are transactions (ATOMIC_REQUESTS) of {listed(seen.atomic)}, and the ledger is in "
            f"'{seen.alias}': {_LOST}.",
            fix,
        )
    elif seen.others:
        yield info(
            name,
            f"There are other databases ({listed(seen.others)}) than the ledger's, '{seen.alias}': {_LOST}.",
            fix,
        )


__all__ = ["DjangoSeen", "judge", "look"]
