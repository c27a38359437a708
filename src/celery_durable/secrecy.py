"""One delivery's secrets: taken out of whatever is stored or logged about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_durable import redaction, submission

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.delivery import Delivery

#: Celery's logger of outcomes: what it says of a task quotes exceptions and results.
TRACE_LOGGER = "celery.app.trace"


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secret values among the arguments of a delivery."""

    delivery: Delivery
    values: frozenset[str]

    @classmethod
    def of(cls, delivery: Delivery) -> Secrets:
        """Collect them; costs nothing for a call that holds none."""
        task, args, kwargs = delivery.task, delivery.args, delivery.kwargs
        if not submission.touchy(task, args, kwargs):
            return cls(delivery, frozenset())
        values = redaction.secrets_of(submission.signature_of(task), args, kwargs, task.redact)
        return cls(delivery, values)

    def scrub(self, text: str) -> str:
        """Remove the values, and what looks like a secret anyway, from a text."""
        return redaction.scrub_patterns(redaction.scrub(text, self.values))

    def shown(self) -> str:
        """Return the arguments as people may see them."""
        task, args, kwargs = self.delivery.task, self.delivery.args, self.delivery.kwargs
        hidden = redaction.arguments(submission.signature_of(task), args, kwargs, task.redact)
        return " ".join(redaction.shown(*hidden))


class LogScrubber(logging.Filter):
    """Takes the secrets of the delivery in hand out of what Celery logs about it."""

    def __init__(self, in_hand: Callable[[], Delivery | None]) -> None:
        """``in_hand`` returns the delivery of this thread, or None."""
        super().__init__()
        self._in_hand = in_hand

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; never drop it."""
        delivery = self._in_hand()
        if delivery is not None:
            secret = Secrets.of(delivery)
            if secret.values:
                record.msg, record.args = secret.scrub(record.getMessage()), ()
                if record.exc_info:
                    record.exc_text = secret.scrub(logging.Formatter().formatException(record.exc_info))
                    record.exc_info = None
                if isinstance(getattr(record, "data", None), dict):
                    record.data = {k: secret.scrub(str(v)) for k, v in record.data.items()}  # type: ignore[attr-defined]
        return True
