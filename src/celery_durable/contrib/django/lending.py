"""A transaction of Django's, lent to the ledger: rows are written on Django's own connection."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from django.db import OperationalError, transaction

from celery_durable import failpoints, states, submission
from celery_durable.errors import SubmitError
from celery_durable.ledger import Submitted, injecting
from celery_durable.ledger.driving import Driven
from celery_durable.transactions import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from celery_durable.records import Submission
    from celery_durable.wiring import Plugin

#: How many rows of one transaction its committer sends at once; sweeps send the others.
MAX_TOLD = 10_000
_ATTRIBUTE = "_celery_durable_lender"


class DjangoLender:
    """One connection of Django's, which belongs to one thread."""

    def __init__(self, connection: Any) -> None:
        """Borrow it; nothing is executed yet."""
        self._django = connection
        self._driven = _driven(connection.Database, connection.vendor)
        self._lent: tuple[Any, Any] = (None, None)
        self._waiting: dict[Callable[[list[int]], None], list[int]] = {}

    def connection(self) -> Any:
        """Return a Connection of SQLAlchemy over it, within its transaction.

        Raises:
            SubmitError: there is none.
        """
        django = self._django
        if not django.in_atomic_block:
            raise SubmitError("There is no transaction.atomic() here that a row could be written in.")
        django.validate_no_broken_transaction()
        django.ensure_connection()
        raw, lent = self._lent
        if raw is not django.connection or lent.closed or lent.invalidated:
            self._lent = raw, lent = django.connection, self._driven.over(django.connection)
        return lent

    def after_commit(self, work: Callable[[list[int]], None], row_ids: Iterable[int]) -> None:
        """Call ``work`` once, when Django's outermost block has been committed.

        Each call is told to Django, which forgets those of a savepoint that is rolled back; whichever comes first does
        the work of all.
        """
        if not self._django.run_on_commit:
            self._waiting.clear()  # of a transaction that was rolled back
        waiting = self._waiting.setdefault(work, [])
        waiting.extend(islice(row_ids, MAX_TOLD - len(waiting)))
        transaction.on_commit(self._committed, using=self._django.alias)

    def _committed(self) -> None:
        while self._waiting:
            work, row_ids = self._waiting.popitem()
            work(row_ids)

    @contextmanager
    def watched(self, work: Callable[..., Any]) -> Iterator[None]:
        """Tell failpoints, if any is armed, of statements in the block, as those of the verb that wrote ``work``."""
        if not failpoints.armed():
            yield
            return
        with injecting.during(work), self._django.execute_wrapper(_come_by):
            yield

    def commits(self, *, after: bool) -> None:
        """Tell failpoints that Django's COMMIT comes, or has come."""
        if failpoints.armed():
            (injecting.committed if after else injecting.committing)(self._lent[1])

    def told(self, error: Exception, *, lost: bool) -> Exception:
        """Make SQLAlchemy's error of Django's."""
        return self._driven.told(error, lost=lost)


def _come_by(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001 - Django's way
    """Come by the points of a statement of the ORM's."""
    try:
        injecting.come_by(sql, after=False)
        answer = execute(sql, params, many, context)
        injecting.come_by(sql, after=True)
    except failpoints.Injected as injected:
        context["connection"].close()
        raise OperationalError("the connection was cut") from injected
    return answer


@lru_cache(maxsize=8)
def _driven(module: Any, backend: str) -> Driven:
    return Driven(module, backend)


def lender(connection: Any) -> DjangoLender:
    """Return the lender of a connection of Django's."""
    found: DjangoLender | None = connection.__dict__.get(_ATTRIBUTE)
    if found is None:
        found = connection.__dict__[_ATTRIBUTE] = DjangoLender(connection)
    return found


class Joined(Block):
    """The inside of ``transaction.atomic()`` on the ledger's database: rows come and go with it."""

    def __init__(self, side: Plugin, connection: Any) -> None:
        """Belong to one connection, and so to one thread."""
        super().__init__(side, lender(connection))
        self.connection = connection

    def ring(self, row_ids: list[int]) -> None:
        """Send the messages of what was committed; in a test, of what would have been."""
        if self.connection.in_atomic_block:  # TestCase.captureOnCommitCallbacks
            self.ring_by(self.ledger, row_ids)
        else:
            self.ring_by(self.side.ledger, row_ids)


class Deferred(Block):
    """The inside of a transaction of another database: what is submitted is written once that is committed.

    A process that dies between its COMMIT and that write loses the call, as any stock task's.
    """

    def __init__(self, side: Plugin, connection: Any, joined: Callable[[Plugin], Block | None]) -> None:
        """Wait for a connection's commit; ``joined`` tells then whether the ledger's own database is in one."""
        self.side, self.connection, self._joined = side, connection, joined
        self.thread, self.open = threading.get_ident(), True

    def submit(self, sub: Submission, *, on_conflict: str) -> Submitted:
        """Write it after the commit, under the id that is returned now, and forget it with a rollback.

        Whether its key is taken is not known yet: it is somebody's who waits for this very id.
        """
        write = partial(self._write, replace(sub, awaited=True), on_conflict)
        transaction.on_commit(write, using=self.connection.alias)
        return Submitted("new", 0, sub.task_id, states.QUEUED)

    def _write(self, sub: Submission, on_conflict: str) -> None:
        with suppress(submission.Collapsed):
            submission.write_in(self._joined(self.side), self.side, sub, on_conflict=on_conflict)

    def submit_many(self, subs: Sequence[Submission]) -> list[Submitted]:
        """Write a chunk of them, as ``submit`` does."""
        return [self.submit(sub, on_conflict="return") for sub in subs]


__all__ = ["Deferred", "DjangoLender", "Joined", "lender"]
