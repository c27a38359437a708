"""``DurableTask``: what a user subclasses."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

from celery import Task
from celery.exceptions import Reject

from celery_durable import bulk, capture, runs, steps, submission, wiring
from celery_durable.capture import Recorder, quieten
from celery_durable.continuing import last_task
from celery_durable.control import TaskWaiting
from celery_durable.errors import LedgerError, SubmitError
from celery_durable.outbox import scope_of
from celery_durable.states import CONDITION, After, At, Wait
from celery_durable.steps import How
from celery_durable.waits import RETRY_IN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from celery import Celery
    from celery.result import AsyncResult

    from celery_durable.attempt import Attempt
    from celery_durable.receipts import Receipts
    from celery_durable.records import Envelope, Record
    from celery_durable.waits import Precondition


class _Traced:
    """Wraps whatever tracer Celery assigns to a task: deliveries are claimed before any user code runs.

    Celery looks ``__trace__`` up on every delivery and on nothing else: not on ``apply``, eager or
    direct calls.
    """

    def __get__(self, task: DurableTask | None, owner: type | None = None) -> Any:
        return None if task is None else task.__dict__.get("_durable_traced")

    def __set__(self, task: DurableTask, tracer: Callable[..., Any] | None) -> None:
        traced = None if tracer is None else functools.partial(runs.deliver, task, tracer)
        task.__dict__["_durable_traced"] = traced


class DurableTask(Task):
    """A Celery task that survives whatever crashes.

    Subclassing is all it takes: ``@app.task(base=DurableTask)``, or
    ``Celery(task_cls="celery_durable:DurableTask")`` for every task of an app. Celery's own options keep
    their meaning.
    """

    abstract = True
    __trace__ = _Traced()
    Request = "celery_durable.worker.request:DurableRequest"

    #: What makes two calls the same work: a template over the arguments (``"{order_id}"``), or a
    #: callable that takes them. None: every call is work of its own, its key is the task id.
    idempotency_key: str | Callable[..., str] | None = None
    #: Seconds for which a claim holds without being renewed; None: ``durable_lease``.
    lease: float | None = None
    #: How many lost attempts (dead worker, expired lease) make the task ``dead``, kind ``poison``;
    #: None: ``durable_max_losses``.
    max_losses: int | None = None
    #: What a lost attempt leads to: ``"retry"``, or ``"dead"`` for work that must not start twice.
    on_loss: str = "retry"

    #: Names of arguments that are never shown or stored readable, at any depth, besides the usual suspects
    #: (password, token, secret, card, ...).
    redact: Sequence[str] = ()
    #: Preconditions looked at before the body runs (``PathExists``, ``Reachable``, ``Predicate``): an unmet one
    #: makes the task wait.
    requires: Sequence[Precondition] = ()
    #: Seconds after which a task whose preconditions stay unmet is dead, kind ``timeout``; None: never.
    requires_within: float | None = None

    # Retries outlast an outage of hours; all of it is Celery's own machinery.
    max_retries = 20
    retry_backoff = True
    retry_backoff_max = 600
    retry_jitter = True

    # A message without a row is acknowledged only once it is adopted and settled; one with a row when
    # the pool accepts it, because the row, not the message, is the work.
    acks_late = True
    acks_on_failure = True
    acks_on_timeout = True
    acks_on_failure_or_timeout = True
    reject_on_worker_lost = False
    retry_on_worker_lost = False

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Add the worker's steps to the app; reads no setting and connects nowhere."""
        super().on_bound(app)
        wiring.install(app)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body: settled in the ledger when this is a delivery, as in stock Celery when not."""
        run = runs.entering(self)
        return super().__call__(*args, **kwargs) if run is None else run.execute(args, kwargs)

    @property
    def fence(self) -> int:
        """The number of this claim; it rises with every claim, so other systems can refuse an older one.

        0 outside a durable run. After the database lost commits (failover without synchronous
        replication) a number may repeat.
        """
        run = runs.current()
        return run.claim.claims if run is not None and run.claim is not None else 0

    def wait(
        self,
        reason: str,
        *,
        retry_in: float | None = None,
        until: datetime | None = None,
        give_up_after: float | None = None,
    ) -> NoReturn:
        """Let the task wait for a condition that it found unmet: it is run again from the start, later.

        ``reason`` is shown to people. ``retry_in`` (seconds, 30 by default) or ``until`` says when it is looked at
        again; ``give_up_after`` (seconds, from the first of consecutive waits) when the task is dead, kind
        ``timeout``. A wait burns no retry, and holds no worker and no message. What holds after a crash: either the
        row waits, or the attempt counts as lost and runs again.

        Raises:
            TaskWaiting: always, to leave the body; let it pass.
        """
        attempt = self._attempt(reason)
        wake = submission.wake_of(self._get_app(), retry_in, until) or After(0.0 if retry_in == 0 else RETRY_IN)
        attempt.wait(Wait(CONDITION, reason, wake, give_up_after))

    def sleep(self, seconds: float, reason: str) -> None:
        """Wait for a time, once: a run that comes after it goes on behind it.

        Known by ``reason`` and how often that was slept for in the run before. Holds no worker while it lasts.

        Raises:
            TaskWaiting: while it lasts, to leave the body; let it pass.
        """
        self._attempt(reason).sleep(seconds, reason)

    def wait_for_event(self, name: str, *, timeout: float) -> Any:
        """Return the payload of an event that ``ledger(app).send_event`` or ``durable send-event`` sends this task.

        One that was sent before the wait is not lost; of several under one name the first counts.

        Raises:
            TaskWaiting: while it has not arrived, to leave the body; let it pass.
            WaitTimeout: ``timeout`` seconds have passed since the task first waited for it.
        """
        return self._attempt(f"waits for event {name!r}").wait_for_event(name, timeout)

    def step(
        self,
        name: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        transaction: bool = False,
        retries: int = 0,
        backoff: float = 1.0,
        **kwargs: Any,
    ) -> Any:
        """Call ``fn(*args, **kwargs)`` once in the life of this task, and return what it returned in every run.

        The result (anything the task's serializer takes, up to ``durable_max_message_bytes``) is recorded under the
        claim as soon as ``fn`` returns. What ``fn`` raises passes through; nothing is recorded, and the next run calls
        it again. After a crash the step is either recorded, or ``fn`` is called again: pass ``step_key`` to other
        systems, or use ``transaction``.

        ``name`` tells the steps of a task apart: up to 255 characters, once in a run, in a loop ``f"page-{n}"``.
        ``transaction`` gives ``fn`` a SQLAlchemy Connection to the ledger's database as its first argument, or a
        Session where its first parameter is annotated as one or named ``session``: what it writes and the record of
        the step are committed together, or not at all.
        ``retries`` is how often it is tried again when it raises, ``backoff`` the seconds before the first retry,
        doubled each time. Over pauses of more than 5 s the task waits in the ledger, and burns no retry of its own.

        Outside a durable run (a direct call, ``apply``, eager) it calls ``fn``, every time.

        Raises:
            StepError: the name, the function or the options make no sense, or steps are nested.
            StepResultError: what ``fn`` returned cannot be recorded; the task ends dead, kind ``permanent``.
            LeaseLost: another claim has taken over; let it pass.
            LedgerUnavailable: the ledger was down for longer than a lease; let it pass.
        """
        how = How(transaction, retries, backoff)
        steps.checked(name)
        steps.check_function(name, fn)
        attempt = self._running()
        if attempt is not None:
            return attempt.step(name, fn, args, kwargs, how)
        if not transaction:
            return fn(*args, **kwargs)
        return wiring.plugin(self._get_app()).enclosure(fn).alone(lambda *given: fn(*given, *args, **kwargs))

    def step_key(self, name: str) -> str:
        """Return a token (a UUID as text) for another system's idempotency key.

        The same in every run of this task, also after a replay, even a fresh one: what was done under it stays done
        until the work is submitted anew. Another for every other task, and for every other name.
        Outside a durable run it is the same within one call of the task.
        """
        steps.checked(name)
        attempt = self._running()
        if attempt is not None:
            claim, side = attempt.claim, wiring.plugin(self._get_app())
            return steps.token(side.ledger.uuid, claim.task_id, claim.replaces, name)
        top = self.request_stack.top
        seed = uuid4().hex if top is None else top.__dict__.setdefault("_durable_seed", uuid4().hex)
        return steps.token(seed, "", 0, name)

    def checkpoint(self, value: Any) -> None:
        """Keep a value for later runs of this task: ``restore`` returns the last one.

        Anything the task's serializer takes. After a crash it is the one that was kept when this last returned, or
        the one it was just keeping. Replays keep it, a fresh one forgets it. Does nothing outside a durable run.

        Raises:
            StepError: it cannot be serialised, is too large, or a transactional step is being done.
            LeaseLost: another claim has taken over; let it pass.
            LedgerUnavailable: the ledger was down for longer than a lease; let it pass.
        """
        attempt = self._running()
        if attempt is not None:
            attempt.steps.checkpoint(value)

    def restore(self, default: Any = None) -> Any:
        """Return what ``checkpoint`` kept last, in this run or an earlier one; ``default`` when there is nothing."""
        attempt = self._running()
        return default if attempt is None else attempt.steps.restore(default)

    def check(self) -> None:
        """Stop here if the task shall not go on; cheap enough for every turn of a loop: microseconds, no statement.

        Call it where the work may be cut: behind what was recorded by a step or a checkpoint. Outside a durable run
        (unit tests, direct calls, other threads of the body) it does nothing.

        Raises:
            Cancelled: the task was cancelled (``durable cancel``, about a second ago): its row ends ``cancelled``.
            Draining: the worker shuts down: the row goes to another worker at once, no retry and no loss is counted,
                and the body begins again there.
            LeaseLost: the lease has passed without being renewed; what this attempt still does is thrown away.
        """
        attempt = runs.current()
        if attempt is not None and attempt.inside:
            attempt.check()

    @property
    def draining(self) -> bool:
        """Whether the worker shuts down: ``check()`` raises then. False outside a durable run."""
        attempt = runs.current()
        return attempt is not None and attempt.inside and attempt.draining

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the task is, for ``durable show --follow`` and the record's ``progress``.

        Call it as often as you like: at most one a second is written, and the last one when the run ends. What the
        ledger does not take is dropped. Outside a durable run it does nothing. After a crash the last second may
        be missing.

        Raises:
            ValueError: ``done`` or ``total`` is no finite number from 0 on.
        """
        attempt = runs.current()
        if attempt is not None and attempt.inside:
            attempt.progress(done, total, note)

    @property
    def record(self) -> Record | None:
        """The task's record as the ledger has it now; None outside a durable run."""
        attempt = runs.current()
        return None if attempt is None else wiring.plugin(self._get_app()).ledger.get(attempt.task_id)

    def _running(self) -> Attempt | None:
        """Return the attempt whose body asks; None in the body of another task that it calls directly."""
        attempt = runs.current()
        if attempt is None or not attempt.inside or attempt.delivery.task.name != self.name:
            return None
        return attempt if self.request.id in {attempt.task_id, None} else None

    def _attempt(self, reason: str) -> Attempt:
        """Return the attempt that runs this body; outside of one there is nothing to wait in."""
        attempt = runs.current()
        if attempt is None or not attempt.inside:
            raise TaskWaiting(reason)
        return attempt

    @property
    def backend(self) -> Any:
        """The result backend: guarded while what follows a recorded outcome is sent."""
        return runs.guarded(Task.backend.fget(self))

    @backend.setter
    def backend(self, value: Any) -> None:
        self._backend = value

    def on_replace(self, sig: Any) -> Any:
        """Replace the running task, all at once: its row moves in the transaction that writes those of the canvas."""
        run = runs.running(self.request.id)
        if run is None:
            return super().on_replace(sig)
        with run.replacing(last_task(sig)):
            return super().on_replace(sig)

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:  # noqa: FBT001, FBT002 - Celery's signature
        """Add a part to the chord that this task is a part of; with ``durable://`` the same one in every run."""
        run = runs.running(self.request.id)
        if run is not None and getattr(self.backend, "reads_the_ledger", False):
            sig.options.setdefault("task_id", run.canvas.added())
        return super().add_to_chord(sig, lazy)

    def apply_async(  # noqa: PLR0913, PLR0917 - Celery's signature
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        idempotency_key: str | None = None,
        on_conflict: str = "return",
        **options: Any,
    ) -> AsyncResult:
        """Record the call in the ledger, then send its message.

        Takes what Celery's ``apply_async`` takes, and:

        ``idempotency_key`` replaces the task's own key for this call (up to 255 characters).
        ``on_conflict`` says what happens when a live or finished call has that key: ``"return"`` gives the
        first one's ``AsyncResult``, ``"raise"`` raises. A dead or cancelled one is queued again either way.

        After a crash the call is either recorded whole, and will run, or not at all. A broker that is
        down does not fail the call.

        Raises:
            LedgerUnavailable: the ledger is down; nothing was published.
            KeyConflict: the key is taken and ``on_conflict="raise"``.
            IdempotencyKeyError: the key or its template cannot be used.
            PayloadTooLarge: the message exceeds ``durable_max_message_bytes``.
            kombu.exceptions.EncodeError: an argument cannot be serialised.
        """
        app = self._get_app()
        stock = {"producer": producer, "link": link, "link_error": link_error, "shadow": shadow}
        if on_conflict not in {"return", "raise"}:
            raise SubmitError(f'{self.name}: on_conflict is {on_conflict!r}; it is "return" or "raise".')
        if app.conf.task_always_eager:
            return super().apply_async(args, kwargs, task_id, **stock, **options)
        self._refuse_what_cannot_run(app)
        side = wiring.plugin(app)
        wake = submission.wake_of(app, options.pop("countdown", None), options.pop("eta", None))
        foreign = _foreign(app, options.pop("connection", None), producer, side.broker)

        def record(envelope: Envelope, body: Any) -> None:
            if self._moves_its_row(envelope, body, wake):
                return
            broker = scope_of(foreign.connection) if foreign is not None else None
            call = submission.Call(idempotency_key, task_id is not None, wake, broker)
            bulk.accept(bulk.Captured(self, envelope, body, call), on_conflict=on_conflict, producer=foreign)

        stock["producer"] = Recorder(app, self.name, record)
        try:
            quieten(app.backend)
            return super().apply_async(args, kwargs, task_id, **stock, **options)
        except submission.Collapsed as met:
            submission.restore_result(app, met.submitted)
            return self.AsyncResult(met.submitted.task_id)
        except LedgerError as exc:
            if runs.over() is not None:
                # The task that this one follows is over. Celery would make another failure of this; so the outcome
                # stays owed, and a later sweep has this sent.
                raise Reject(exc, requeue=True) from exc
            raise

    def submit_many(
        self,
        calls: Iterable[tuple[Any, ...] | list[Any] | dict[str, Any]],
        *,
        chunk: int = bulk.CHUNK,
        key: str | Callable[..., str] | None = None,
        **options: Any,
    ) -> Receipts:
        """Submit many calls: for each chunk one insert of many rows, and one pipelined send of their messages.

        Each of ``calls`` is a tuple (or list) of positional arguments, or a dict of keyword arguments. A generator is
        read as it goes; what is kept of a call is its receipt, 17 bytes. ``chunk`` is how many calls are written at
        once (1 to 10,000). ``key`` is an idempotency key template (``"{order_id}"``) or a function of the arguments, in
        place of the task's own. Other options are those of ``apply_async``, the same for all calls.

        Returns the receipts, ``(result, outcome)`` for each call in its order, when every call is recorded. A key that
        is taken, also by an earlier one of these calls, is no error: its outcome says ``existing``.

        After a crash each chunk is recorded as a whole or not at all; what is recorded runs. With keys, submitting
        all of it again adds only what is missing. An error leaves the chunks before it recorded, and nothing of its own
        chunk where it is raised by one of its calls.

        Raises:
            LedgerUnavailable: the ledger is down.
            SubmitError: an item that is no call, a key or option that cannot be used, a message too large.
            KeyBusy: a key is pending in a transaction that does not end.
            kombu.exceptions.EncodeError: an argument cannot be serialised.
        """
        return bulk.submit_many(self, DurableTask, calls, chunk=chunk, key=key, options=options)

    def _refuse_what_cannot_run(self, app: Celery) -> None:
        if app.conf.task_protocol == 1:
            raise SubmitError(f"{self.name}: task_protocol is 1, which carries no headers; set it to 2, the default.")
        if asyncio.iscoroutinefunction(self.run):
            raise SubmitError(f"{self.name} is an 'async def': Celery cannot run it; make it a plain function.")

    def _moves_its_row(self, envelope: Envelope, body: Any, wake: After | At | None) -> bool:
        """Take the message of ``retry()`` or ``replace()``: the row that runs is the one that moves."""
        run = runs.running(str(envelope.headers["id"]))
        if run is None:
            return False
        capture.checked_size(self.name, envelope, wiring.plugin(self._get_app()).settings.max_message_bytes)
        parts = body if isinstance(body, tuple) else (body["args"], body["kwargs"], body)
        run.capture(submission.sealed(self, envelope, *parts), wake)
        return True


def _foreign(app: Celery, connection: Any, producer: Any, scope: str) -> Any:
    """Return the caller's own producer when it belongs to another broker than the app's."""
    if connection is not None:
        return app.amqp.Producer(connection, auto_declare=False)
    if producer is None or isinstance(producer, Recorder):
        return None
    known = getattr(producer, "connection", None)
    return producer if known is not None and scope_of(known) != scope else None
