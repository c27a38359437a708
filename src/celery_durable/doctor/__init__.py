"""``durable doctor``: what of a deployment breaks a promise, or weakens one. It looks, judges, and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.doctor import broker, configuration, database, looking, work
from celery_durable.doctor.findings import Finding, healthy, in_order, summary
from celery_durable.wiring import Plugin, unwrapped

if TYPE_CHECKING:
    from celery_durable.doctor.facts import Configuration


def examine(app: Any) -> list[Finding]:
    """Look at an app's configuration, its ledger and its broker; the worst comes first."""
    seen, found = of_configuration(app)
    return in_order([*found, *of_ledger(app, seen), *broker.judge(looking.broker(app))])


def of_configuration(app: Any) -> tuple[Configuration, list[Finding]]:
    """Look at settings and tasks only: nothing is connected to."""
    seen = looking.configuration(app)
    host = Plugin(unwrapped(app)).host if seen.settings is not None else None
    return seen, [*configuration.judge(seen), *(host.findings() if host is not None else ())]


def of_ledger(app: Any, seen: Configuration) -> list[Finding]:
    """Look at the ledger, if the configuration says where it is."""
    if seen.settings is None:
        return []
    asked = looking.ledger(Plugin(unwrapped(app)), seen.settings)
    return [*database.judge(asked), *work.judge(asked)]


__all__ = ["Finding", "examine", "healthy", "in_order", "of_configuration", "of_ledger", "summary"]
