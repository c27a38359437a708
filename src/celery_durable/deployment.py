"""What those ask who look at a deployment: the app with its tasks, its settings and its ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_durable.explain import explain, look_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.explain import Explanation
    from celery_durable.ledger import Ledger
    from celery_durable.records import Record
    from celery_durable.settings import Settings


@dataclass(frozen=True, slots=True)
class Deployment:
    """An app whose tasks are imported, its settings and its ledger."""

    app: Any
    settings: Settings
    ledger: Ledger

    def redacted(self, task: str) -> Sequence[str]:
        """Return the names that a task never shows; of a task that this app does not know none can be told."""
        names: Sequence[str] = getattr(self.app.tasks.get(task), "redact", ())
        return names

    def max_retries(self, task: str) -> int | None:
        """How often Celery retries a task; None when the app does not know the task or sets no limit."""
        known = self.app.tasks.get(task)
        limit = getattr(known, "max_retries", None)
        return limit if isinstance(limit, int) else None

    def explained(self, record: Record) -> Explanation:
        """Say why a task stands where it stands."""
        limit = self.max_retries(record.task)
        return explain(record, look_up(self.ledger, record, max_retries=limit))
