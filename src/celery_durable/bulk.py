"""``submit_many``: calls by the chunk; a row for each, one insert and one pipelined send for all of a chunk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from celery.utils import uuid

from celery_durable import runs, submission, transactions, wiring
from celery_durable.capture import checked_size
from celery_durable.errors import LedgerUnavailable, SubmitError
from celery_durable.ledger import Ring
from celery_durable.receipts import Receipts
from celery_durable.stencil import Stencil, applies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from celery import Celery
    from kombu import Producer

    from celery_durable.ledger import Submitted
    from celery_durable.records import Envelope, Submission
    from celery_durable.task import DurableTask

#: Calls in a chunk unless the caller says so, and at most; bytes of messages after which a chunk is full.
CHUNK, MAX_CHUNK, CHUNK_BYTES = 1_000, 10_000, 4 * 1024 * 1024

#: What makes no sense for many calls at once, and why.
_REFUSED = {
    "task_id": "every call gets an id of its own",
    "idempotency_key": "give key=, a template or a function",
    "on_conflict": "each receipt tells its outcome",
    "producer": "messages leave by the app's own broker",
    "connection": "messages leave by the app's own broker",
    "chord": "send a chord instead",
    "chain": "send a chain instead",
    "group_id": "send a group instead",
}

_gathered: ContextVar[list[Captured] | None] = ContextVar("durable_gathered", default=None)


@dataclass(frozen=True, slots=True)
class Captured:
    """A call that was built and not written yet."""

    task: DurableTask
    envelope: Envelope
    body: Any
    call: submission.Call


def accept(captured: Captured, *, on_conflict: str, producer: Producer | None) -> None:
    """Write a call that Celery has built, and ring; or keep it for the chunk that it is built for.

    Raises:
        Collapsed: the key or the id was there already.
        LedgerUnavailable: the database did not answer; nothing was published.
    """
    gathered = _gathered.get()
    if gathered == []:  # a second one is what a signal's receiver submits
        gathered.append(captured)
        return
    sub = submission.compose(captured.task, captured.envelope, captured.body, captured.call)
    if not runs.collected(sub):
        side = wiring.plugin(captured.task._get_app())
        submission.write_and_ring(side, sub, on_conflict=on_conflict, producer=producer)


def submit_many(
    task: DurableTask, stock: type[DurableTask], calls: Iterable[Any], *, chunk: int, key: Any, options: dict[str, Any]
) -> Receipts:
    """Submit all calls; see ``DurableTask.submit_many``."""
    _check(task, chunk, options)
    receipts = Receipts(task.AsyncResult)
    app = task._get_app()
    if app.conf.task_always_eager:
        for args, kwargs in map(_arguments, calls):
            receipts.keep(task.apply_async(args, kwargs, **options))
        return receipts
    side = wiring.plugin(app)
    block = transactions.current(side, task.name)
    written: tuple[int, Future[list[Submitted]]] | None = None
    with ThreadPoolExecutor(1, "durable-submit-many") as thread:
        try:
            for part in _chunks(Builder(task, stock, key, options), map(_arguments, calls), chunk):
                before, written = written, None
                _receive(app, receipts, before)
                # While the databases are busy with one chunk, the next is built. A transaction stays in its thread.
                work = partial(_write, side, part) if block is None else partial(block.submit_many, part)
                written = len(part), (thread.submit(work) if block is None else _done(work))
        finally:
            _receive(app, receipts, written)
    return receipts


def _write(side: wiring.Plugin, part: list[Submission]) -> list[Submitted]:
    answers = side.ledger.submit_many(part)
    _ring(side, part, answers)
    return answers


def _done(work: Callable[[], list[Submitted]]) -> Future[list[Submitted]]:
    """Do it here and now."""
    future: Future[list[Submitted]] = Future()
    future.set_result(work())
    return future


def _receive(app: Celery, receipts: Receipts, written: tuple[int, Future[list[Submitted]]] | None) -> None:
    """Wait for a chunk, and note what became of it."""
    if written is None:
        return
    count, future = written
    try:
        answers = future.result()
    except LedgerUnavailable as exc:
        raise LedgerUnavailable(
            f"{exc} {len(receipts)} calls of submit_many are recorded, of the next {count} all or none; with "
            "idempotency keys it is safe to submit all of them again.",
            outcome=exc.outcome,
        ) from exc
    for answer in answers:
        if answer.outcome == "existing":
            submission.restore_result(app, answer)
        receipts.add(answer.task_id, "new" if answer.outcome == "own" else answer.outcome)


def _check(task: DurableTask, chunk: int, options: Mapping[str, Any]) -> None:
    for name in _REFUSED.keys() & options.keys():
        raise SubmitError(f"{task.name}: submit_many takes no {name}: {_REFUSED[name]}.")
    if not 1 <= chunk <= MAX_CHUNK:
        raise SubmitError(f"{task.name}: chunk is {chunk!r}; it is a number from 1 to {MAX_CHUNK}.")


def _arguments(call: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the positional and the keyword arguments of one item."""
    if isinstance(call, Mapping):
        return (), dict(call)
    if isinstance(call, tuple | list):
        return call, {}
    raise SubmitError(
        f"submit_many got a {type(call).__name__} for a call: each is a tuple of arguments, such as (order_id, cents), "
        "or a dict of keyword arguments. A single argument is a tuple too: (order_id,)."
    )


def _chunks(builder: Builder, calls: Iterator[Any], size: int) -> Iterator[list[Submission]]:
    """Build calls until a chunk is full."""
    for first in calls:
        part, held = [], 0
        builder.begin()
        for args, kwargs in chain([first], calls):
            part.append(builder.build(args, kwargs))
            held += len(part[-1].envelope.body)
            if len(part) >= size or held >= CHUNK_BYTES:
                break
        yield part


class Builder:
    """Builds submissions: by Celery, or from a stencil of what Celery has built."""

    def __init__(self, task: DurableTask, stock: type[DurableTask], key: Any, options: dict[str, Any]) -> None:
        """``key`` is what the caller gave in place of the task's own template."""
        self.task, self._header = task, getattr(task, "__header__", None)
        self.key = submission.template_of(task) if key is None else key
        self.options = {"add_to_parent": False} | options
        self.alike = applies(task, stock, self.options)
        side = wiring.plugin(task._get_app())
        self.limit, self.publisher = side.settings.max_message_bytes, side.publisher
        self._stencil: Stencil | None = None
        self._first: Submission | None = None

    def begin(self) -> None:
        """Begin a chunk: what follows is built anew by Celery, times and all."""
        self._stencil = None

    def build(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Submission:
        """Build one call.

        Raises:
            TypeError: the task does not take these arguments.
            SubmitError: the key, or the message, cannot be used.
            kombu.exceptions.EncodeError: an argument cannot be serialised.
        """
        if self._stencil is None or self._first is None:
            return self._by_celery(args, kwargs)
        task = self.task
        if task.typing and self._header is not None:
            self._header(*args, **kwargs)
        try:
            envelope, meta = self._stencil.filled(task_id := uuid(), args, kwargs)
        except Exception:  # noqa: BLE001 - Celery's way raises it again, and says which argument it is
            return self._by_celery(args, kwargs)
        checked_size(task.name, envelope, self.limit)
        key = task_id if self.key is None else submission.key_of(task, task_id, args, kwargs, template=self.key)
        sealed = submission.sealed(task, envelope, args, kwargs)
        return replace(
            self._first, task_id=task_id, key=key, envelope=sealed, meta="" if sealed.seal else meta,
            root_id=envelope.headers["root_id"],
        )  # fmt: skip

    def _by_celery(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Submission:
        with _gathering() as gathered:
            self.task.apply_async(args, kwargs, **self.options)
        [captured] = gathered
        # One queue for all replies to this thread: with rpc:// it has to be there before the first of them.
        self.publisher.prepare_reply_quietly(str(captured.envelope.headers["id"]))
        sub = submission.compose(self.task, captured.envelope, captured.body, captured.call, template=self.key)
        if self.alike and self._stencil is None and sub.alone is None:
            stencil = Stencil(captured.envelope, captured.body, self.task._get_app().amqp)
            self.alike = stencil.fits
            if stencil.fits:
                self._stencil, self._first = stencil, sub
        return sub


@contextmanager
def _gathering() -> Iterator[list[Captured]]:
    gathered: list[Captured] = []
    token = _gathered.set(gathered)
    try:
        yield gathered
    finally:
        _gathered.reset(token)


def _ring(side: wiring.Plugin, part: Sequence[Submission], answers: Sequence[Submitted]) -> None:
    """Send the messages of a chunk; what the broker did not take is due for the next sweep."""
    now = round(time.time() * 1e6)
    rings = []
    for sub, answer in zip(part, answers, strict=True):
        if answer.publish:
            envelope = sub.envelope if answer.task_id == sub.task_id else sub.envelope.readdressed(answer.task_id)
            rings.append(
                Ring(
                    answer.row_id, answer.task_id, answer.envelope_no, sub.retries, sub.deadline_at, now, "queued",
                    envelope,
                )
            )  # fmt: skip
    if rings:
        submission.unsent(side, side.publisher.ring_all(rings))


__all__ = ["Captured", "accept", "submit_many"]
