"""Filters of the lists; their choices come from the app and its workers, not from all rows there are."""

from __future__ import annotations

from typing import Any

from django.contrib import admin

from celery_durable import states
from celery_durable.contrib.django.admin.access import deployment

#: Kinds of failures that a task can die of or have had.
KINDS = (
    "transient", "permanent", "unclassified", "timeout", "worker_lost", "lease_expired", "poison", "undecodable",
    "unregistered", "rejected", "expired",
)  # fmt: skip


class Choice(admin.SimpleListFilter):
    """A filter by the value of one column."""

    column = ""

    def names(self) -> list[str]:
        """Return what can be chosen."""
        raise NotImplementedError

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        """Offer the names, and what is chosen already, whether it is known or not."""
        chosen = self.value()
        names = self.names()
        return [(name, name) for name in ([] if chosen is None or chosen in names else [chosen]) + names]

    def has_output(self) -> bool:
        """Be there also where there is little to choose."""
        return bool(self.lookup_choices)

    def queryset(self, _request: Any, queryset: Any) -> Any:
        """Keep the rows of the chosen value."""
        return queryset if self.value() is None else queryset.filter(**{self.column: self.value()})


class State(Choice):
    """By state."""

    title, parameter_name, column = "state", "state", "state"

    def names(self) -> list[str]:
        """All states, in the order of a task's life."""
        return list(states.STATES)


class Kind(Choice):
    """By the kind of the failure that a task died of."""

    title, parameter_name, column = "kind of failure", "failure_kind", "failure_kind"

    def names(self) -> list[str]:
        """All kinds."""
        return list(KINDS)


class FailedOf(Kind):
    """By the kind of a failure."""

    title, parameter_name, column = "kind", "kind", "kind"


class TaskName(Choice):
    """By the task's name."""

    title, parameter_name, column = "task", "task", "task"

    def names(self) -> list[str]:
        """Those that the app or a worker knows."""
        found = deployment()
        told = {name for worker in found.ledger.workers() for name in worker.tasks}
        return sorted(name for name in told | set(found.app.tasks) if not name.startswith("celery."))


class Queue(Choice):
    """By queue."""

    title, parameter_name, column = "queue", "queue", "queue"

    def names(self) -> list[str]:
        """Those that the app or a worker knows."""
        found = deployment()
        told = {name for worker in found.ledger.workers() for name in worker.queues}
        return sorted(told | set(found.app.amqp.queues))
