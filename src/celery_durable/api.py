"""The ledger as user code sees it: ``celery_durable.ledger(app)``."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery_durable.errors import BadRequest
from celery_durable.ledger import Casualties, Which
from celery_durable.states import After, At
from celery_durable.transactions import opened
from celery_durable.wiring import plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

    from celery_durable.ledger import Batch, Failed, FailureGroup, Ledger
    from celery_durable.records import Pause, Record
    from celery_durable.states import When

#: Longest name of an event, and the kinds of what can be paused.
MAX_EVENT_NAME, TARGETS = 255, ("task", "queue")


class LedgerView:
    """Questions and moves from anywhere: a web process, a shell, a test.

    Every method may raise ``LedgerUnavailable``. A REF is a task id, an idempotency key, or
    ``task_name/key`` where several tasks use the same key; one that fits nothing raises ``NoSuchTask``.
    Who acts, and why, stands in the history of what is moved.
    """

    def __init__(self, app: Celery) -> None:
        """Bind to an app; connects at first use."""
        self._side = plugin(app)

    @property
    def _ledger(self) -> Ledger:
        return self._side.ledger

    # Questions ----------------------------------------------------------------------------------------

    def get(self, ref: str) -> Record:
        """Return the record of a REF.

        Raises:
            NoSuchTask: nothing fits, or several tasks use that key.
        """
        return self._ledger.get(ref)

    def find(
        self, *, state: str | None = None, task: str | None = None, queue: str | None = None, limit: int = 50
    ) -> list[Record]:
        """List records, newest first, up to ``limit``."""
        return self._ledger.find(state=state, task=task, queue=queue, limit=limit)

    def waits(
        self, *, kind: str | None = None, task: str | None = None, queue: str | None = None, limit: int = 50
    ) -> list[Record]:
        """List what waits, in the order in which it is looked at again, up to ``limit``."""
        return self._ledger.waits(kind=kind, task=task, queue=queue, limit=limit)

    def failures(
        self, *, task: str | None = None, kind: str | None = None, fingerprint: str | None = None,
        since: datetime | timedelta | None = None, limit: int = 50,
    ) -> list[Failed]:  # fmt: skip
        """List failures of all tasks, newest first, up to ``limit``; ``since`` is a time, or how long ago."""
        which = Which(task=task, kind=kind, fingerprint=fingerprint, since=when(since, ago=True))
        return self._ledger.failed(which, limit)

    def failure_groups(
        self, *, task: str | None = None, kind: str | None = None, fingerprint: str | None = None,
        since: datetime | timedelta | None = None, limit: int = 50,
    ) -> list[FailureGroup]:  # fmt: skip
        """Group failures by fingerprint, kind, exception and task; the largest groups first."""
        which = Which(task=task, kind=kind, fingerprint=fingerprint, since=when(since, ago=True))
        return self._ledger.failure_groups(which, limit)

    def pauses(self) -> list[Pause]:
        """List the tasks and queues that are held back."""
        return self._ledger.pauses()

    def stats(self) -> dict[str, Any]:
        """Count tasks by state (``states``), and queued ones by queue with the oldest's age in seconds (``queues``)."""
        return self._ledger.stats()

    # Moves --------------------------------------------------------------------------------------------

    def cancel(self, ref: str, reason: str, *, terminate: bool = False) -> str:
        """Cancel a task and return the state that stands.

        A running one is told within about a second (``durable_sweep_interval``): its next ``check()`` raises, and it
        ends cancelled; one that never checks does at its next move. ``terminate`` has its process ended instead, in
        prefork pools. Cancelling what is over changes nothing. After a crash it is either cancelled or untouched.

        Raises:
            BadRequest: ``terminate``, but the task runs in a pool that cannot end one task; nothing was changed.
        """
        return self._ledger.cancel_row(self.get(ref).id, reason, actor=actor(), terminate=terminate)

    def replay(self, ref: str, reason: str = "", *, fresh: bool = False) -> bool:
        """Queue a dead or cancelled task again; False when it is in another state.

        Its retries and losses start from 0; its key, history and fence go on. It takes up where it stopped;
        ``fresh`` forgets its steps, sleeps and received events. After a crash it is either queued or untouched.

        Raises:
            BadRequest: the task was only observed: the ledger does not hold its message.
        """
        return self._ledger.replay_row(self.get(ref).id, reason, actor=actor(), fresh=fresh)

    def replay_many(  # noqa: PLR0913 - three filters and four ways
        self, *, fingerprint: str | None = None, task: str | None = None, kind: str | None = None, reason: str = "",
        limit: int | None = None, rate: float | None = None, fresh: bool = False,
    ) -> int:  # fmt: skip
        """Queue the dead tasks again that died of a fingerprint or a kind, or have a name; return how many.

        In small batches; with ``rate`` no more than that many a second, on the whole. Each is replayed once, also when
        several do this at the same time; what dies again meanwhile is left alone. After a crash some are replayed and
        the others are dead still: calling it again goes on with those.

        Raises:
            BadRequest: none of the three is given.
        """
        which = Casualties(fingerprint=fingerprint, kind=kind, task=task)
        done = replayed(self._ledger, which, reason, fresh=fresh, limit=limit, rate=rate)
        return sum(batch.replayed for batch in done)

    def send_event(self, ref: str, name: str, payload: Any = None) -> bool:
        """Store an event for a task that waits for it now or will; False when one of that name was there already.

        The first one counts. ``payload`` is anything that JSON has a form for; ``wait_for_event`` returns it.
        After a crash the event is either stored, and wakes the task, or not.

        Raises:
            BadRequest: the name or the payload cannot be stored.
            NoSuchTask: nothing fits REF, or that task is over.
        """
        content = as_payload(payload, self._side.settings.max_message_bytes)
        return self._ledger.send_event(self.get(ref).id, event_name(name), content, actor=actor())

    def pause(self, target: str, reason: str, *, until: datetime | timedelta | None = None) -> int:
        """Hold back a task (``"task:NAME"``) or a queue (``"queue:NAME"``); return how many queued rows wait now.

        What runs goes on; what is queued or arrives waits, kind ``paused``, until ``resume`` or ``until``. After a
        crash the pause stands or it does not; where it does, a worker that meets a queued task holds that back.

        Raises:
            BadRequest: the target cannot be read, or ``until`` has passed.
        """
        kind, name = self.target(target)
        return self._ledger.pause(kind, name, reason, until=when(until), actor=actor())

    def resume(self, target: str, reason: str = "") -> int:
        """End a pause and queue what it held; return how many rows that were. Calling it again goes on after a crash.

        Raises:
            BadRequest: the target cannot be read.
        """
        kind, name = self.target(target)
        return self._ledger.resume(kind, name, reason, actor=actor())

    # Submissions --------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, session_or_connection: Any) -> Iterator[None]:
        """Let what is submitted in the block be part of a transaction of the caller's, on the ledger's database.

        Takes a ``Session``, ``scoped_session`` or ``Connection`` of SQLAlchemy. Rows of durable tasks that this thread
        calls in the block are written in its transaction; task ids are there at once. The block itself neither begins
        what has begun nor commits: that is the caller's, in the block or after it. After COMMIT the messages leave,
        from a Session at once, from a Connection with the next sweep of a worker; after ROLLBACK, of a savepoint too,
        nothing is left. A process that dies in between loses nothing.

        Raises, as do the calls in the block:
            BadRequest: it takes something else.
            SubmitError: the transaction is another database's, over, or in AUTOCOMMIT.
            LedgerSchemaError: its database has no ledger.
            KeyBusy: the key is pending in another transaction that does not end.
            LedgerUnavailable: the transaction was lost.
            sqlalchemy.exc.DBAPIError: a deadlock or serialization failure; the transaction is to be tried again.
        """
        ledger = self._ledger
        with opened(self._side, ledger.lender(session_or_connection)):
            yield

    def target(self, text: str) -> tuple[str, str]:
        """Read the target of a pause: ``task:NAME``, ``queue:NAME``, or a bare name that can only mean one of them.

        Raises:
            BadRequest: nobody knows the name, or it means both.
        """
        kind, colon, name = text.partition(":")
        if colon and kind in TARGETS and name:
            return kind, name
        kinds = self._ledger.kinds_of(text)
        if not kinds and text in self._side.app.tasks:
            kinds = ["task"]
        if len(kinds) == 1:
            return kinds[0], text
        problem = "is the name of a task and of a queue" if kinds else "is no task or queue that the ledger knows"
        raise BadRequest(f"{text!r} {problem}: say task:{text} or queue:{text}.")


def ledger(app: Celery) -> LedgerView:
    """Return the ledger of an app."""
    return LedgerView(app)


def replayed(  # noqa: PLR0913 - what a bulk replay can be told
    ledger: Ledger, which: Casualties, reason: str, *, fresh: bool = False, limit: int | None = None,
    rate: float | None = None, pause: Callable[[float], None] = time.sleep,
) -> Iterator[Batch]:  # fmt: skip
    """Replay in batches, paced so that no more than ``rate`` rows a second are brought back."""
    options = {} if rate is None else {"batch": max(1, min(100, int(rate)))}
    began, done = time.monotonic(), 0
    for batch in ledger.replay_all(which, reason, actor=actor(), fresh=fresh, limit=limit, **options):
        yield batch
        done += batch.replayed
        ahead = 0.0 if rate is None else done / rate - (time.monotonic() - began)
        if ahead > 0 and (limit is None or done < limit):
            pause(ahead)


def as_payload(payload: Any, limit: int) -> str:
    """Write an event's payload as JSON.

    Raises:
        BadRequest: JSON has no form for it, or it is larger than ``limit`` bytes.
    """
    try:
        content = json.dumps(payload, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise BadRequest(f"An event's payload has to be JSON, and a {type(payload).__name__} is not: {exc}.") from exc
    if len(content) > limit:
        raise BadRequest(f"The payload has {len(content)} bytes; durable_max_message_bytes allows {limit}.")
    return content


def event_name(name: str) -> str:
    """Return an event's name.

    Raises:
        BadRequest: no database could store it, or not tell it from another.
    """
    if not name.strip() or name != name.strip() or len(name) > MAX_EVENT_NAME or not name.isprintable():
        raise BadRequest(
            f"{name!r} is no name of an event: 1 to {MAX_EVENT_NAME} printable characters, no outer blanks."
        )
    return name


def when(given: datetime | timedelta | None, *, ago: bool = False) -> When | None:
    """Turn a time, or a duration before or after now, into a time on the ledger's clock.

    Raises:
        BadRequest: a time without a time zone.
    """
    if isinstance(given, timedelta):
        return After(-given.total_seconds() if ago else given.total_seconds())
    if given is None:
        return None
    if given.tzinfo is None:
        raise BadRequest(f"{given.isoformat()} has no time zone: add one, for example tzinfo=timezone.utc.")
    return At(round(given.timestamp() * 1_000_000))


def actor() -> str:
    """Name who acts, for the history: user, host, process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a process without a passwd entry
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}:{os.getpid()}"
