"""The framework that an app lives in, where that has databases and transactions of its own: Django.

A host is known by the scheme of ``durable_ledger_url``, as in ``django://default``; its room is entered by name when it
is asked for, so that nobody who has no Django needs one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from celery_durable.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from celery_durable.doctor.findings import Finding
    from celery_durable.ledger import Enclosure
    from celery_durable.ledger.sandbox import HostSandbox
    from celery_durable.transactions import Block
    from celery_durable.wiring import Plugin

_ROOMS = {"django": "celery_durable.contrib.django.host"}


class Host(Protocol):
    """What a framework does for an app."""

    #: The command that makes the ledger's tables.
    migrate: str

    @property
    def url(self) -> str:
        """Where the ledger is, for SQLAlchemy; it may change while tests run.

        Raises:
            SettingsError: the framework has no such database, or one that no ledger can be in.
        """

    def block(self, side: Plugin) -> Block | None:
        """Return what takes a submission into the transaction that is open here; None where none is."""

    def enclosure(self) -> Enclosure:
        """Return the transaction of the framework's own that a step is done in."""

    def findings(self) -> list[Finding]:
        """Return what the framework's settings say against the ledger; nothing is connected to."""

    def sandbox(self, path: Path) -> HostSandbox:
        """Return what has the framework use a SQLite file in place of the ledger's database, for crash tests."""


def host_of(app: Any, url: object) -> Host | None:
    """Return the host of an app whose ``durable_ledger_url`` is ``url``; None for an app that has none.

    An app that takes its settings from Django and says no URL has its ledger in Django's default database, if
    celery-durable is one of the installed apps.

    Raises:
        SettingsError: the host is not installed.
    """
    scheme = str(url).partition("://")[0] if url else ""
    if scheme in _ROOMS:
        found: Host = _room(scheme, url).host(str(url))
        return found
    if url or not _of_django(app):
        return None
    room = _room("django", url)
    default: Host | None = room.host("django://default") if room.installed() else None
    return default


def _of_django(app: Any) -> bool:
    source = getattr(app, "_config_source", None)
    return "django.conf" in f"{source if isinstance(source, str) else type(source).__module__}"


def _room(scheme: str, url: object) -> Any:
    try:
        return importlib.import_module(_ROOMS[scheme])
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"durable_ledger_url is {url!r}, but {error.name!r} is not installed: "
            f'pip install "celery-durable[{scheme}]".'
        ) from None


__all__ = ["Host", "host_of"]
