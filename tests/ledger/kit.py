"""What the ledger's tests share: rows in every state, races, locks held by others, statements as sent."""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as sa

from celery_durable import failures, states
from celery_durable.ledger import Ledger
from celery_durable.records import Claim, Envelope, Failure, Submission
from celery_durable.settings import Settings
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from celery_durable.ledger import Submitted

TASK, BROKER, QUEUE = "shop.charge", "broker-a", "celery"
SECOND = 1_000_000
REPUBLISH = 30.0
_numbers = itertools.count(1)


def opened(url: str, **settings: Any) -> Ledger:
    """A ledger on a database; nothing connects yet."""
    return Ledger.open(Settings(ledger_url=url, **settings))


def empty(ledger: Ledger) -> None:
    """Delete every row."""
    t = ledger.t
    tables = (t.task, t.failure, t.event, t.step, t.signal, t.pause, t.worker)
    ledger.db.run(lambda c: [c.execute(sa.delete(t)) for t in tables])


# Submissions and rows in every state.


def envelope(task_id: str, task: str = TASK, *, body: bytes = b"[[],{},{}]", queue: str = QUEUE) -> Envelope:
    headers = {"id": task_id, "root_id": task_id, "task": task}
    properties = {"correlation_id": task_id}
    return Envelope(body, "application/json", "utf-8", headers, properties, "", queue, ({"name": queue},))


def submission(
    key: str | None = None, *, task: str = TASK, task_id: str | None = None, body: bytes = b"[[],{},{}]", **options: Any
) -> Submission:
    task_id = task_id or f"id-{next(_numbers)}-{uuid4().hex[:8]}"
    given = {"queue": QUEUE, "broker": BROKER, "submitted_by": "shop"} | options
    sent = envelope(task_id, task, body=body, queue=given["queue"])
    return Submission(task_id, task, key or task_id, sent, **given)


def queued(ledger: Ledger, key: str | None = None, **options: Any) -> Submitted:
    return ledger.submit(submission(key, **options))


def running(ledger: Ledger, key: str | None = None, *, lease: float = 30, **options: Any) -> Claim:
    """A row under a live claim."""
    return claimed(ledger, queued(ledger, key, **options).task_id, lease=lease)


def claimed(ledger: Ledger, task_id: str, *, token: str | None = None, lease: float = 30) -> Claim:
    answer = ledger.claim(task_id, token or uuid4().hex, owner="worker-1", pid=101, lease=lease)
    assert answer.claim is not None, answer.why
    return answer.claim


def waiting(ledger: Ledger, key: str | None = None, *, seconds: float = 3600, **options: Any) -> Submitted:
    return queued(ledger, key, wake=states.After(seconds), **options)


def succeeded(ledger: Ledger, key: str | None = None, *, owes: bool = False, **options: Any) -> Claim:
    claim = running(ledger, key, owes=owes, **options)
    succeed(ledger, claim, owes=owes)
    return claim


def dead(ledger: Ledger, key: str | None = None, *, owes: bool = False, **options: Any) -> Claim:
    claim = running(ledger, key, owes=owes, **options)
    ledger.settle(claim, fails(owes=owes), actor="worker-1")
    return claim


def cancelled(ledger: Ledger, key: str | None = None, **options: Any) -> Submitted:
    row = queued(ledger, key, **options)
    ledger.cancel_row(row.row_id, "not wanted", actor="ann")
    return row


def succeed(ledger: Ledger, claim: Claim, result: bytes = b"42", *, owes: bool = False, grace: float = 30) -> None:
    ledger.succeed(claim, result, "application/json", owes=owes, actor="worker-1", continuation_grace=grace)


def boom(message: str = "card refused", kind: str = "permanent") -> Failure:
    return failures.describe(ValueError(message), kind, worker="worker-1", claim=1)


def gone(kind: str = "worker_lost") -> Failure:
    return failures.loss(kind, "billiard.WorkerLostError", "signal 9", worker="worker-1", pid=101, claim=1)


def fails(
    *, owes: bool = False, retry: states.Retry | None = None, token: str = "owed-by-fail"
) -> Callable[[Any], states.Move]:
    return lambda row: states.fail(row, boom(), token, owes=owes, ring=30, retry=retry)


def waits(reason: str = "rates are late", seconds: float = 3600) -> Callable[[Any], states.Move]:
    changes = states.into_waiting("condition", reason, states.After(seconds))
    return lambda _row: states.Move("wait", states.WAITING, changes, reason)


def retry(seconds: float = 3600, retries: int = 1, sent: Envelope | None = None) -> states.Retry:
    return states.Retry(states.After(seconds), "retry 1 of 20", retries, sent)


# Looking, and moving time on without waiting for it.


def row_of(ledger: Ledger, ref: int | str) -> sa.Row[Any]:
    """The row with this row id or task id, as stored."""
    c = ledger.t.task.c
    query = sa.select(ledger.t.task).where((c.id if isinstance(ref, int) else c.task_id) == ref)
    return ledger.db.run(lambda connection: connection.execute(query).one(), read_only=True)


def rows(ledger: Ledger) -> Sequence[sa.Row[Any]]:
    query = sa.select(ledger.t.task).order_by(ledger.t.task.c.id)
    return ledger.db.run(lambda connection: connection.execute(query).all(), read_only=True)


def history(ledger: Ledger, row_id: int) -> list[tuple[str, str | None, str, str]]:
    """Verb, from, to and actor of each event."""
    return [(e.verb, e.source, e.target, e.actor) for e in ledger.events(row_id)]


def verbs(ledger: Ledger, row_id: int) -> list[str]:
    return [e.verb for e in ledger.events(row_id)]


def now(ledger: Ledger) -> int:
    """The database's clock."""
    query = sa.select(ledger.dialect.clock_sql)
    return int(ledger.db.run(lambda connection: connection.execute(query).scalar_one(), read_only=True))


def change(ledger: Ledger, row_id: int, **values: Any) -> None:
    update = sa.update(ledger.t.task).where(ledger.t.task.c.id == row_id).values(values)
    ledger.db.run(lambda connection: connection.execute(update))


def make_due(ledger: Ledger, row_id: int, *columns: str) -> None:
    """Let the time in these columns have passed a second ago."""
    change(ledger, row_id, **dict.fromkeys(columns, ledger.dialect.clock_sql - SECOND))


def seconds_ahead(ledger: Ledger, micros: int) -> float:
    return (micros - now(ledger)) / SECOND


# Others who act at the same time.


def race(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(number)` in threads that start together; their answers, or the exceptions they raised."""
    barrier = threading.Barrier(count)
    answers: list[Any] = [None] * count

    def run(number: int) -> None:
        barrier.wait(30)
        try:
            answers[number] = work(number)
        except Exception as error:  # noqa: BLE001 - an answer like any other
            answers[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(t.is_alive() for t in threads), "a thread hangs"
    return answers


class Background:
    """One call in a thread of its own."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._answer: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self._answer.append(work())
        except Exception as error:  # noqa: BLE001 - handed to whoever asks
            self._answer.append(error)

    def answer(self, timeout: float = 30) -> Any:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the call does not return"
        if isinstance(self._answer[0], Exception):
            raise self._answer[0]
        return self._answer[0]


@contextmanager
def transaction(ledger: Ledger) -> Iterator[sa.Connection]:
    """Somebody else's transaction, open until the block ends."""
    with ledger.db.engine.connect() as connection, connection.begin():
        yield connection


def lock(ledger: Ledger, connection: sa.Connection, *row_ids: int) -> None:
    c = ledger.t.task.c
    connection.execute(sa.select(c.id).where(c.id.in_(row_ids)).with_for_update()).all()


_WAITERS = {
    "postgresql": (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ),
    "mysql": (
        "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status"
        " WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'"
    ),
}


def until_blocked(ledger: Ledger) -> None:
    """Return when a statement waits for a lock. SQLite does not tell: whoever waits there waits in any case."""
    query = _WAITERS.get(ledger.dialect.name)
    if query is None:
        return

    def blocked() -> bool:
        return bool(ledger.db.run(lambda connection: connection.exec_driver_sql(query).scalar(), read_only=True))

    wait_until(blocked, message="nobody waits for a lock")


@contextmanager
def captured(ledger: Ledger) -> Iterator[list[tuple[str, Any]]]:
    """The statements that are sent in the block, with their parameters."""
    sent: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    engine = ledger.db.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
