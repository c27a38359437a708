"""Django as the host of an app: its database holds the ledger, its transactions hold submissions and steps."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from django.conf import settings
from django.db import Error, connections, transaction

from celery_durable.contrib.django import findings
from celery_durable.contrib.django.lending import Deferred, Joined, lender
from celery_durable.contrib.django.place import alias_of, ledger_url
from celery_durable.contrib.django.sandbox import DjangoSandbox
from celery_durable.errors import StepError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from celery_durable.doctor.findings import Finding
    from celery_durable.hosting import Host
    from celery_durable.ledger import Enclosure
    from celery_durable.transactions import Block
    from celery_durable.wiring import Plugin

T = TypeVar("T")

APP = "celery_durable.contrib.django"


def host(url: str) -> Host:
    """Make the host that a URL names."""
    return DjangoHost(alias_of(url) or "default")


def installed() -> bool:
    """Say whether the project has the app."""
    return any(name == APP or name.startswith(f"{APP}.apps.") for name in settings.INSTALLED_APPS)


class DjangoHost:
    """One database of Django's."""

    migrate = "python manage.py migrate"

    def __init__(self, alias: str) -> None:
        """Take its alias."""
        self.alias = alias
        self._seen: tuple[Any, str] = (None, "")
        self._enclosure = Atomic(alias)
        self._blocks = threading.local()

    @property
    def url(self) -> str:
        """Where it is, for SQLAlchemy."""
        name = connections[self.alias].settings_dict["NAME"] if self.alias in connections else None
        if self._seen[0] != name or not self._seen[1]:
            self._seen = (name, ledger_url(self.alias))
        return self._seen[1]

    def block(self, side: Plugin) -> Block | None:
        """Return what takes a submission into ``transaction.atomic()``, where that is open.

        In a transaction of another database only, the submission waits for its commit.
        """
        joined = self._joined(side)
        if joined is not None:
            return joined
        other = next((c for c in connections.all(initialized_only=True) if c.in_atomic_block), None)
        return None if other is None else Deferred(side, other, self._joined)

    def _joined(self, side: Plugin) -> Joined | None:
        connection = connections[self.alias]
        if not connection.in_atomic_block:
            return None
        kept: Joined | None = getattr(self._blocks, "it", None)
        if kept is None or kept.side is not side or kept.connection is not connection:
            self._blocks.it = kept = Joined(side, connection)
        return kept

    def enclosure(self) -> Enclosure:
        """Return ``transaction.atomic()``."""
        return self._enclosure

    def findings(self) -> list[Finding]:
        """Return what Django's settings say against the ledger."""
        return list(findings.judge(findings.look(self.alias, installed=installed())))

    def sandbox(self, path: Path) -> DjangoSandbox:
        """Return what has Django use a SQLite file."""
        return DjangoSandbox(self.alias, path)


class Atomic:
    """A step's ``transaction.atomic()``: what its function writes by the ORM is committed together with its row."""

    def __init__(self, alias: str) -> None:
        """Take the alias of the ledger's database."""
        self.alias = alias

    def run_once(self, work: Callable[[Any], T], task_id: str | None) -> T:  # noqa: ARG002 - as for the ledger's own
        """Run it in a transaction of Django's; what goes wrong with the database is SQLAlchemy's error.

        Raises:
            StepError: a transaction is open already, which the step could not commit.
        """
        connection = connections[self.alias]
        if connection.in_atomic_block:
            raise StepError(
                "A transactional step was called inside of transaction.atomic(): it could not be committed there. "
                "Call it outside of the block, which its function is given anyway."
            )
        lent = lender(connection)
        try:
            with lent.watched(work):
                with transaction.atomic(using=self.alias):
                    result = work(lent.connection())
                    lent.commits(after=False)
                lent.commits(after=True)
            return result  # noqa: TRY300 - what is raised above is the database's
        except Error as error:  # of BEGIN or COMMIT: what the function raises comes as something else
            lost = not connection.is_usable() if connection.connection is not None else True
            connection.close()
            raise lent.told(error, lost=lost) from error

    @contextmanager
    def lend(self, connection: Any) -> Iterator[tuple[Any, ...]]:  # noqa: ARG002 - the function uses the ORM
        """Give the function nothing: it uses the ORM."""
        yield ()

    def alone(self, call: Callable[..., T]) -> T:
        """Call it in ``transaction.atomic()``, or in the one that is open."""
        with transaction.atomic(using=self.alias):
            return call()


__all__ = ["Atomic", "DjangoHost", "host", "installed"]
