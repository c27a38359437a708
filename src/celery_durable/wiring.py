"""What an app carries once a durable task is bound to it: settings, ledger, publisher, worker steps."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery_durable import hosting
from celery_durable.ledger import Ledger
from celery_durable.observer import Observer
from celery_durable.outbox import Publisher, scope_of
from celery_durable.settings import Settings
from celery_durable.shortcut import Shortcut

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from celery_durable.hosting import Host
    from celery_durable.ledger import Enclosure
    from celery_durable.worker.keeper import Keeper

#: Where an app carries its side of the plugin.
ATTRIBUTE = "_durable_plugin"
_lock = threading.Lock()


class Plugin:
    """One app's side of the plugin. Nothing is read and nothing connects before it is used."""

    #: The lease keeper, in the parent process of a worker only.
    keeper: Keeper | None = None

    def __init__(self, app: Celery) -> None:
        """Bind to an app."""
        self.app = app

    @cached_property
    def host(self) -> Host | None:
        """The framework whose database holds the ledger, and whose transactions submissions are part of."""
        return hosting.host_of(self.app, self._given.get("durable_ledger_url"))

    @cached_property
    def settings(self) -> Settings:
        """The settings, frozen at first use.

        Raises:
            SettingsError: one of them is unknown or makes no sense.
        """
        given = self._given
        return Settings.read(given if self.host is None else given | {"durable_ledger_url": self.host.url})

    @property
    def _given(self) -> dict[str, Any]:
        conf = self.app.conf
        given: dict[str, Any] = {}
        for raw in conf:
            # In a namespace, as Django's CELERY_, the names carry its prefix, in upper case.
            name = raw.removeprefix(conf.prefix or "").lower()
            if name.startswith("durable_"):
                given[name] = conf[name] if name in conf else conf[raw]
        return given

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger; its first use may migrate SQLite.

        Raises:
            SettingsError: ``durable_ledger_url`` cannot be used.
            LedgerUnavailable: the database does not answer.
            LedgerSchemaError: its tables are missing or of another version.
        """
        ledger = Ledger.open(self.settings)
        if self.host is not None:
            ledger.migrated_by(self.host.migrate)
        _ = ledger.uuid
        return ledger

    def enclosure(self, fn: Callable[..., Any]) -> Enclosure:
        """Return the transaction that a step of this function is done in."""
        return self.ledger.enclosure(fn) if self.host is None else self.host.enclosure()

    @property
    def moved(self) -> bool:
        """Whether the host's database is another than when the settings were read, as in its tests."""
        return self.host is not None and self.host.url != self.settings.ledger_url

    @cached_property
    def publisher(self) -> Publisher:
        """The way to the broker for submissions of this process."""
        return Publisher(self.app, self.ledger.uuid)

    @cached_property
    def shortcut(self) -> Shortcut | None:
        """Where keys that are done are remembered; None without ``durable_fast_path_url``.

        Raises:
            SettingsError: that cannot be used.
        """
        return Shortcut(self.settings.fast_path_url) if self.settings.fast_path_url else None

    @cached_property
    def broker(self) -> str:
        """The scope of the app's broker: a sweeper rings only rows of its own."""
        return scope_of(self.app.connection_for_write())

    @cached_property
    def observer(self) -> Observer:
        """What carries sightings of stock tasks to the ledger."""
        return Observer(lambda: self.ledger)


def install(app: Celery) -> None:
    """Add the worker's steps to an app, once; safe to call for an app that never runs a worker."""
    from celery_durable import continuing, observing, runs  # they need the plugin, as this does

    app = unwrapped(app)
    observing.install(app)
    continuing.install(runs.follower)
    app.steps["worker"].add("celery_durable.worker.steps:DurableStep")
    app.steps["consumer"].add("celery_durable.worker.steps:ConsumptionStep")


def plugin(app: Celery) -> Plugin:
    """Return the app's side of the plugin."""
    app = unwrapped(app)
    found: Plugin | None = app.__dict__.get(ATTRIBUTE)
    if found is not None and found.host is not None and found.moved:
        app.__dict__[ATTRIBUTE] = found = Plugin(app)
    if found is None:
        with _lock:
            found = app.__dict__.setdefault(ATTRIBUTE, Plugin(app))
    return found


def unwrapped(app: Any) -> Any:
    """Return the app behind a proxy such as ``current_app``."""
    current = getattr(app, "_get_current_object", None)
    return current() if current is not None else app
