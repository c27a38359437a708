"""The canvas that replaces a running task: collected while Celery sends it, written with the row's own move."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from celery.exceptions import Ignore

from celery_durable import submission

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.ledger import Submitted
    from celery_durable.records import Claim, Submission
    from celery_durable.wiring import Plugin


class Replacement:
    """What a body has sent to take its place, and the names of parts that it adds to its chord."""

    def __init__(self, side: Plugin, claim: Claim, worker: str) -> None:
        """Bind to an attempt."""
        self._side, self._claim, self._worker = side, claim, worker
        self._open, self._added = False, 0
        self._parts: list[Submission] = []
        self._written: list[tuple[Submitted, Submission]] = []

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._parts)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Take what is submitted in the block, which ends with Celery's Ignore; any other end drops it."""
        self._open = True
        try:
            yield
        except Ignore:
            raise
        except BaseException:
            self._parts.clear()
            raise
        finally:
            self._open = False

    def collect(self, sub: Submission) -> bool:
        """Take a part; False when it is none."""
        if self._open:
            self._parts.append(sub)
        return self._open

    def write(self, connection: Any) -> None:
        """Write the rows of the parts, within the transaction that moves the task's own."""
        submit = self._side.ledger.submit_within
        self._written = [(submit(connection, sub, actor=self._worker), sub) for sub in self._parts]

    def ring(self) -> None:
        """Send the messages of the rows that were written; another broker's are sent by its own sweep."""
        for submitted, sub in self._written:
            if submitted.publish and sub.broker == self._side.broker:
                submission.ring(self._side, self._side.publisher, submitted, sub.envelope, sub.deadline_at)

    def added(self) -> str:
        """Name the next part that the body adds to its chord: the same in every run of it."""
        self._added += 1
        claim = self._claim
        return str(uuid5(NAMESPACE_OID, f"celery-durable {claim.task_id} {claim.replaces} added {self._added}"))
