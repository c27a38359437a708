"""Keys that are known to be done, remembered in Redis: their next submission asks the ledger for one row only.

Redis is believed nothing. What it keeps is where to look: the number of a row. The ledger is asked whether that very
row has that very key and has succeeded, and answers with its result; whatever else Redis says, or nothing, leads the
usual way. So an entry that is wrong, old, another deployment's or forged costs one look, and never a task. Entries are
written when a submission has met a key that is done: by then its success is committed, and a success never changes.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery_durable import keys
from celery_durable.errors import SettingsError

if TYPE_CHECKING:
    from celery_durable.ledger import Submitted
    from celery_durable.records import Submission
    from celery_durable.wiring import Plugin

logger = logging.getLogger(__name__)

#: Seconds: for one answer of Redis, until it is asked again after an error, and how long it keeps an entry.
TIMEOUT, PAUSE, KEPT = 0.1, 5.0, 86_400
#: Digits of the largest row number: what is longer is no entry of ours.
DIGITS = 19


class Shortcut:
    """One process's way to that Redis. It never raises: what does not answer is left alone for a while."""

    def __init__(self, url: str) -> None:
        """Take a URL; nothing connects yet.

        Raises:
            SettingsError: the client library is missing, or the URL cannot be read.
        """
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise SettingsError(
                "durable_fast_path_url is set, but the driver 'redis' is not installed: "
                'pip install "celery-durable[redis]".'
            ) from None
        options = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "retry": Retry(NoBackoff(), 1)}
        try:
            self._redis: Any = redis.Redis.from_url(url, **options)
        except ValueError as error:
            raise SettingsError(
                f"durable_fast_path_url cannot be read ({error}): it is like redis://host/0."
            ) from error
        self._errors: Any = (redis.RedisError, OSError)
        self._silent_until = 0.0

    def row_of(self, name: str) -> int | None:
        """Return the row that is remembered under a name."""
        found = self._ask("get", name)
        if not isinstance(found, bytes) or not found.isdigit() or len(found) > DIGITS:
            return None
        row = int(found)
        return row if row < 2**63 else None

    def keep(self, name: str, row_id: int) -> None:
        """Remember a row under a name."""
        self._ask("set", name, row_id, ex=KEPT)

    def _ask(self, command: str, *words: Any, **options: Any) -> Any:
        if time.monotonic() < self._silent_until:
            return None
        try:
            return getattr(self._redis, command)(*words, **options)
        except self._errors as exc:
            self._silent_until = time.monotonic() + PAUSE
            logger.warning(
                "The Redis of durable_fast_path_url does not answer (%s): the ledger is asked alone for %g s.",
                type(exc).__name__, PAUSE,
            )  # fmt: skip
            return None


def submit(side: Plugin, sub: Submission, on_conflict: str) -> Submitted:
    """Write a submission as the ledger's ``submit`` does, by the short way where its key is known to be done.

    Raises:
        what the ledger's ``submit`` raises.
    """
    shortcut = side.shortcut
    # A row of its own, or an error, is the ledger's to give; a call without a key meets nobody.
    if shortcut is None or sub.key == sub.task_id or sub.awaited or on_conflict != "return":
        return side.ledger.submit(sub, on_conflict=on_conflict)
    digest = keys.digest(sub.task, sub.key)
    name = f"durable:{side.ledger.uuid}:{digest.hex()}"
    row_id = shortcut.row_of(name)
    done = None if row_id is None else side.ledger.finished(row_id, digest)
    if done is not None:
        return done
    met = side.ledger.submit(sub, on_conflict=on_conflict)
    if met.outcome == "existing" and met.state == "succeeded":
        shortcut.keep(name, met.row_id)
    return met


__all__ = ["Shortcut", "submit"]
