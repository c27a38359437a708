"""``manage.py check``: what the doctor finds, told in Django's way and silenced by SILENCED_SYSTEM_CHECKS.

Settings and tasks are looked at each time, what only matters in production with ``--deploy``, the database with
``--database`` and before ``migrate``. The broker is the doctor's alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import current_app
from django.core import checks

from celery_durable import doctor
from celery_durable.contrib.django.host import DjangoHost
from celery_durable.contrib.django.place import ledger_alias
from celery_durable.doctor.findings import ERROR, INFO, LEVELS, WARNING, warning
from celery_durable.errors import SettingsError
from celery_durable.wiring import Plugin, unwrapped

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from celery_durable.doctor import Finding
    from celery_durable.doctor.facts import Configuration

#: A finding's number here: it stays, and no number is given twice.
NUMBERS = {
    "settings": 1, "tasks-unimportable": 2, "nothing-durable": 3, "always-eager": 4, "serializer": 5, "async-task": 6,
    "acks-early": 7, "reject-on-worker-lost": 8, "task-lease": 9, "sqlite-memory": 10, "sqlite-relative": 11,
    "broker-memory": 12, "broker-untested": 13, "visibility-timeout": 14, "visibility-timeout-stock": 15,
    "pool-untested": 16, "prefetch": 17, "results-in-memory": 18, "results-rpc": 19, "chord-counts-twice": 20,
    "chord-polling": 21, "django-sqlite-transactions": 22, "django-isolation": 23, "django-autocommit": 24,
    "django-other-database": 25, "django-ledger-elsewhere": 26, "django-no-app": 27, "django-app-missing": 28,
    "beat-runs-once": 29,
    "ledger-unreachable": 40, "ledger-unmigrated": 41, "ledger-older": 42, "ledger-newer": 43, "ledger-to-come": 44,
    "clock": 45, "sqlite-not-wal": 46, "sqlite-network": 47, "sqlite-several-hosts": 48, "postgresql-fsync": 49,
    "postgresql-synchronous-commit": 50, "ledger-read-only": 51, "isolation": 52, "mysql-version": 53,
    "mysql-engine": 54, "mysql-flush": 55, "mysql-strict": 56, "mysql-packet": 57,
    "no-worker": 70, "no-worker-idle": 71, "sweeps-late": 72, "queue-unconsumed": 73, "tasks-unregistered": 74,
    "lease-differs": 75, "worker-pool": 76, "pause-forgotten": 77, "dead-tasks": 78, "worker-without-lock": 79,
}  # fmt: skip
#: Told with ``--deploy`` only, as is what is good to know: tests and desks have their reasons.
DEPLOY = frozenset({"always-eager", "broker-memory", "results-in-memory", "sqlite-relative", "nothing-durable"})
#: From here on they tell how the work stands.
WORK = 70
#: What ``migrate`` is not told: that it is needed, and how the work stands.
MIGRATING = frozenset({"ledger-unmigrated", "ledger-older", *(n for n, number in NUMBERS.items() if number >= WORK)})
_MESSAGES = {ERROR: checks.Error, WARNING: checks.Warning, INFO: checks.Info}


def register() -> None:
    """Tell Django of the checks."""
    checks.register(settings)
    checks.register(deployment, deploy=True)
    checks.register(database, checks.Tags.database)


def settings(app_configs: Collection[Any] | None = None, **_: Any) -> list[Any]:  # noqa: ARG001 - Django's signature
    """Look at settings and tasks."""
    if _of_celery():
        return []
    return _told(f for f in _configuration()[1] if not _for_production(f))


def deployment(app_configs: Collection[Any] | None = None, **_: Any) -> list[Any]:  # noqa: ARG001 - as above
    """Look at what matters in production."""
    if _of_celery():
        return []
    return _told(f for f in _configuration()[1] if _for_production(f))


def database(
    app_configs: Collection[Any] | None = None, databases: Collection[str] | None = None, **_: Any  # noqa: ARG001
) -> list[Any]:  # fmt: skip
    """Look at the ledger, if its database is one of those that are asked about.

    All are warnings: errors would keep ``migrate`` from mending what it is there for.
    """
    if _of_celery() or ledger_alias() not in (databases or ()):
        return []
    app, seen = unwrapped(current_app), _configuration()[0]
    found = doctor.of_ledger(app, seen) if seen is not None else []
    not_now = set(MIGRATING) if "migrate" in sys.argv[1:] else set()
    return _told((f for f in found if f.level != INFO and f.id not in not_now), at_most=WARNING)


def _of_celery() -> bool:
    """Say whether this is a process of Celery's: it has the checks run before it imports tasks, and drops answers."""
    program = Path(sys.argv[0])
    return "celery" in {program.stem, program.parent.name}


def _for_production(finding: Finding) -> bool:
    return finding.id in DEPLOY or finding.level == INFO


def _configuration() -> tuple[Configuration | None, list[Finding]]:
    """Look at the app that the project's settings are for; there is none to look at where nobody has made one."""
    app = unwrapped(current_app)
    if not _configured(app):
        return None, [
            warning(
                "django-no-app",
                f"The current Celery app ({app.main!r}) does not take its settings from Django's.",
                "Make one as Celery's guide for Django says, and import it in the project's __init__.py.",
            )
        ]
    seen, found = doctor.of_configuration(app)
    return seen, [*found, *_elsewhere(app, seen)]


def _configured(app: Any) -> bool:
    """Say whether an app knows where the ledger is: by Django's settings, or by its own."""
    try:
        return bool(app.conf.get("durable_ledger_url")) or Plugin(app).host is not None
    except SettingsError:  # it names one that cannot be used
        return True


def _elsewhere(app: Any, seen: Configuration) -> Iterator[Finding]:
    if seen.settings is None or isinstance(Plugin(app).host, DjangoHost):
        return
    yield warning(
        "django-ledger-elsewhere",
        "durable_ledger_url names none of Django's databases: a .delay() in transaction.atomic() is sent at once, and "
        "stays when the transaction is rolled back.",
        "Keep the ledger in the database of the data (django://default), or submit by transaction.on_commit().",
    )


def _told(findings: Iterable[Finding], *, at_most: str = ERROR) -> list[Any]:
    return [_message(f, at_most) for f in findings]


def _message(finding: Finding, at_most: str) -> Any:
    level = max(finding.level, at_most, key=LEVELS.index)
    return _MESSAGES[level](
        finding.message, hint=finding.fix, id=f"celery_durable.{level[0].upper()}{NUMBERS[finding.id]:03}"
    )


__all__ = ["DEPLOY", "NUMBERS", "database", "deployment", "register", "settings"]
