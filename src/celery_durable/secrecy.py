"""One delivery's secrets: taken out of whatever is stored or logged about it."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_durable import redaction, sealing, submission
from celery_durable.redaction_frames import secrets_in
from celery_durable.steps import Content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.delivery import Delivery

#: Celery's loggers of outcomes, which quote exceptions and results, and of what goes to the pool, which quotes bodies.
TRACE_LOGGER, POOL_LOGGER = "celery.app.trace", "celery.pool"


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secret values among the arguments of a delivery, and among the local variables where it failed."""

    delivery: Delivery
    values: frozenset[str]

    @classmethod
    def of(cls, delivery: Delivery, exc: BaseException | None = None) -> Secrets:
        """Collect them; costs little for a call that holds none, and did not fail."""
        task, args, kwargs = delivery.task, delivery.args, delivery.kwargs
        values = secrets_in(exc)
        if submission.touchy(task, args, kwargs):
            values |= redaction.secrets_of(submission.signature_of(task), args, kwargs, task.redact)
        return cls(delivery, values)

    def scrub(self, text: str) -> str:
        """Remove the values, and what looks like a secret anyway, from a text."""
        return redaction.scrub_patterns(redaction.scrub(text, self.values) if self.values else text)

    def shown(self) -> str:
        """Return the arguments as people may see them."""
        task, args, kwargs = self.delivery.task, self.delivery.args, self.delivery.kwargs
        hidden = redaction.arguments(submission.signature_of(task), args, kwargs, task.redact)
        return " ".join(redaction.shown(*hidden))

    def stored(self, content: Content) -> Content:
        """Return a result as the ledger keeps it: sealed if it repeats a secret."""
        if not self.values:
            return content
        text = content.data.decode("utf-8", "backslashreplace")
        clean = redaction.scrub(text, self.values) == text
        return content if clean else Content(*sealing.sealed_result(*content))


class LogScrubber(logging.Filter):
    """Takes the secrets of the delivery in hand out of what Celery logs about it."""

    def __init__(self, in_hand: Callable[[], Delivery | None]) -> None:
        """``in_hand`` returns the delivery of this thread, or None."""
        super().__init__()
        self._in_hand = in_hand

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record where it tells a secret; never drop it."""
        delivery = self._in_hand()
        if delivery is not None:
            secret = Secrets.of(delivery, record.exc_info[1] if record.exc_info else None)
            # A success of a call without secrets is logged for every task, and quotes no exception.
            if secret.values or "return_value" not in (getattr(record, "data", None) or ()):
                self._scrub(record, secret)
        return True

    @staticmethod
    def _scrub(record: logging.LogRecord, secret: Secrets) -> None:
        said = record.getMessage()
        clean = secret.scrub(said)
        if clean != said:
            record.msg, record.args = clean, ()
        if record.exc_info:
            told = logging.Formatter().formatException(record.exc_info)
            clean = secret.scrub(told)
            if clean != told:  # else it stays for handlers that want the exception itself
                record.exc_text, record.exc_info = clean, None
        if isinstance(getattr(record, "data", None), dict):
            record.data = {k: secret.scrub(str(v)) for k, v in record.data.items()}  # type: ignore[attr-defined]


class PoolLogScrubber(logging.Filter):
    """Leaves the bodies of durable tasks out of what Celery's pool logs, at level DEBUG, of all that it is given."""

    _here = threading.local()

    @classmethod
    @contextmanager
    def applied(cls, name: str) -> Iterator[None]:
        """What this thread gives to the pool meanwhile is a durable task of this name."""
        cls._here.name = name
        try:
            yield
        finally:
            cls._here.name = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; never drop it."""
        name = getattr(self._here, "name", None)
        if name is not None and record.args:
            record.msg, record.args = "TaskPool: Apply %s (its arguments are not logged)", (name,)
        return True


logging.getLogger(POOL_LOGGER).addFilter(PoolLogScrubber())
