"""What a worker does with messages that it cannot run: each becomes a row before it is acknowledged.

The intake stands in front of Celery's own handler, whose process some malformed messages would end and whose log is
all that is left of others. It works on the worker's event loop, so it only looks and leaves word; the keeper's thread
talks to the ledger, and the message is settled on the event loop when that is written. Until then it is unacknowledged:
whatever crashes, the broker has it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.exceptions import NotRegistered
from celery.worker import state

from celery_durable.errors import LedgerError, SubmitError
from celery_durable.outbox import HEADER
from celery_durable.states import At
from celery_durable.task import DurableTask
from celery_durable.worker import parcels
from celery_durable.worker.checking import Flaw, Seen, check_durable, eta_of, read
from celery_durable.worker.wire import WireGuard

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.ledger import Parcel
    from celery_durable.worker.keeper import Keeper

logger = logging.getLogger(__name__)

#: Messages left to the keeper's thread before consumption pauses, and how many it takes in at a time.
BACKLOG, BATCH = 1_000, 100
#: Seconds: a task whose ETA is nearer may wait in the worker's memory.
NEAR = 1.0
#: What reading a message raises when its shape is wrong in a way that was not looked for.
SHAPE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True, eq=False)
class Left:
    """A message left to the keeper's thread: to be kept (``parcel``), or what else to do with it.

    ``work`` says whether the message is to go on to Celery's handler; None for a message that never came to be one.
    """

    message: Any
    generation: int
    parcel: Parcel | None = None
    work: Callable[[], bool] | None = None


class Intake:
    """One per consumer; attached anew to every connection."""

    def __init__(self, keeper: Keeper, consumer: Any) -> None:
        """Stand in for the consumer's handlers."""
        self.keeper, self.side, self.consumer = keeper, keeper.side, consumer
        #: What became of messages that Celery did not get: parked, known (their row stands), refused, and so on.
        self.counts: Counter[str] = Counter()
        self._left: deque[Left] = deque()
        self._generation = 0
        self._told = self._paused = False
        self._stock_handler = consumer.create_task_handler
        self._pass: Callable[[Any], Any] = _nowhere
        consumer.create_task_handler = self.create_task_handler
        consumer.on_decode_error = self.on_decode_error
        consumer.on_invalid_task = consumer.on_unknown_task = self._on_invalid
        consumer.on_unknown_message = lambda _body, message: self._bad(message, Flaw("it names no task"))

    def attach(self) -> None:
        """Take the consumer of a new connection: messages of the old one come again."""
        self._generation += 1
        self._paused = False
        self.consumer.task_consumer.on_decode_error = self.on_decode_error
        WireGuard.install(self.consumer, self._on_wire)
        if self.consumer.connection.transport.driver_type == "redis":
            from celery_durable.worker.doorbells import Doorbells  # its driver is an extra

            Doorbells.install(self.consumer, self._is_doorbell)

    # On the event loop --------------------------------------------------------------------------------

    def create_task_handler(self, **options: Any) -> Callable[[Any], Any]:
        """Return the handler of messages, in place of Celery's."""
        self._pass = self._stock_handler(**options)
        return self.on_message

    def on_message(self, message: Any) -> Any:
        """Look at a message, and pass it on to Celery if nothing speaks against that."""
        try:
            seen = read(message, self.side.app.timezone)
            answer = self._judge(message, seen)
        except Flaw as flaw:
            self._bad(message, flaw)
            return None
        except SHAPE as exc:
            self._bad(message, Flaw("it cannot be read", f"{type(exc).__name__}", exc))
            return None
        return self._passed(message) if answer else None

    def _is_doorbell(self, message: Any) -> bool:
        """Whether a message does no more than ring a row that this worker can run."""
        mark = parcels.mark_of(message, self.keeper.ledger_uuid)
        return mark is not None and mark[0] == message.headers.get("id") and self._durable(message.headers.get("task"))

    def _durable(self, name: Any) -> bool:
        known = isinstance(name, str) and name in self.consumer.strategies
        return known and isinstance(self.side.app.tasks.get(name), DurableTask)

    def _judge(self, message: Any, seen: Seen) -> bool:
        """Say whether a message that could be read is Celery's to run; see to it where not.

        Raises:
            Flaw: it could be read, but never run.
        """
        mark = parcels.mark_of(message, self.keeper.ledger_uuid)
        own = mark is not None and mark[0] == seen.id
        task = self.side.app.tasks.get(seen.task) if seen.task in self.consumer.strategies else None
        if task is not None and not isinstance(task, DurableTask):
            if mark is not None and own:
                self._leave(Left(message, self._generation, work=partial(self._hand_over, *mark)))
            return not own
        if own and task is not None:
            return True
        check_durable(seen)
        size, limit = len(parcels.raw(message)), self.side.settings.max_message_bytes
        if size > limit and not own:
            raise Flaw("the body is larger than durable_max_message_bytes", f"{size} bytes, {limit} are allowed")
        if task is None:
            self._unknown(message, seen)
            return False
        eta = eta_of(seen, self.side.app.timezone)
        if eta is not None and eta.timestamp() > time.time() + NEAR:
            wake = At(round(eta.timestamp() * 1e6))
            self._leave(Left(message, self._generation, work=partial(self._schedule, message, seen, task, wake)))
            return False
        return True

    def _passed(self, message: Any) -> Any:
        """Let Celery have a message; what its handler makes of a shape that was not looked for ends nothing."""
        try:
            return self._pass(message)
        except SHAPE as exc:
            # On some transports a KeyError counts as a lost connection: it would come back for ever.
            identity = message.headers.get("id") if isinstance(message.headers, dict) else None
            if message.acknowledged or identity in state.requests:
                raise
            return self._bad(message, Flaw("Celery cannot read it", f"{type(exc).__name__}: {str(exc)[:200]}", exc))

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Stand in for Celery's own, which acknowledges and forgets."""
        if hasattr(message, "headers"):
            self._bad(message, Flaw("the body cannot be decoded", f"{type(exc).__name__}: {str(exc)[:200]}", exc))

    def _on_invalid(self, _body: Any, message: Any, exc: Exception) -> None:
        self._bad(message, Flaw("Celery calls it invalid", f"{type(exc).__name__}: {str(exc)[:200]}", exc))

    def _on_wire(self, item: bytes, queue: str, exc: Exception) -> None:
        """Keep what lay in a queue and is no message at all: the broker has forgotten it already."""
        self._bad(parcels.Wire(item, queue), Flaw("it is no message", f"{type(exc).__name__}: {str(exc)[:200]}", exc))

    def _bad(self, message: Any, flaw: Flaw) -> None:
        parcel = parcels.undecodable(self.side, message, flaw, worker=self.keeper.worker_id)
        logger.warning("A message for %s was not run: %s", parcel.submission.task, parcel.failure and flaw)
        self._leave(Left(message, self._generation, parcel))
        if not isinstance(message, parcels.Wire):
            signals.task_rejected.send(sender=self.consumer, message=message, exc=flaw.cause)

    def _unknown(self, message: Any, seen: Seen) -> None:
        logger.warning("Task %s[%s] is not registered here: it waits for a worker that knows it", seen.task, seen.id)
        self._leave(Left(message, self._generation, parcels.unregistered(self.side, message, seen)))
        exc = NotRegistered(seen.task)
        signals.task_unknown.send(sender=self.consumer, message=message, exc=exc, name=seen.task, id=seen.id)

    def _leave(self, left: Left) -> None:
        self._left.append(left)
        if not self._told:
            self._told = True
            self.keeper.leave(self._carry_out)
        if len(self._left) >= BACKLOG and not self._paused:
            self._paused = True
            self.consumer.call_soon(self.consumer.task_consumer.cancel)

    # In the keeper's thread ---------------------------------------------------------------------------

    def _carry_out(self) -> None:
        """Write what was left, in batches; what fails for the ledger's sake is left for later."""
        self._told = False
        while self._left and not self.keeper.shutting_down():
            batch = [self._left.popleft() for _ in range(min(BATCH, len(self._left)))]
            done = 0
            try:
                kept = [x for x in batch if x.parcel is not None and self._current(x)]
                others = [x for x in batch if x.parcel is None and self._current(x)]
                batch = kept + others
                self._keep(kept)
                done = len(kept)
                for left in others:
                    self._do(left)
                    done += 1
            except LedgerError:
                self._left.extendleft(reversed(batch[done:]))
                raise
            self._resume()

    def _current(self, left: Left) -> bool:
        """Whether a message is still this connection's; if not, the broker delivers it again."""
        return left.generation == self._generation or isinstance(left.message, parcels.Wire)

    def _keep(self, kept: list[Left]) -> None:
        try:
            written = [x.parcel for x in kept if x.parcel is not None]
            outcomes = self.side.ledger.take_in(written, actor=self.keeper.worker_id) if written else []
        except LedgerError:
            raise
        except Exception as exc:  # noqa: BLE001 - one that the database refuses shall not keep the others
            if len(kept) > 1:
                for one in kept:
                    self._keep([one])
                return
            logger.critical("A message could not be kept (%s: %s): %r", type(exc).__name__, exc, kept[0].message)
            outcomes = ["refused"]
        for left, outcome in zip(kept, outcomes, strict=True):
            self.counts[outcome] += 1
            self._settle(left)

    def _do(self, left: Left) -> None:
        work = left.work
        try:
            goes_on = work is not None and work()
        except LedgerError:
            raise
        except Exception as exc:
            logger.exception("A message could not be taken in")
            flaw = Flaw("it cannot be taken in", f"{type(exc).__name__}: {str(exc)[:200]}", exc)
            parcel = parcels.undecodable(self.side, left.message, flaw, worker=self.keeper.worker_id)
            self._keep([Left(left.message, left.generation, parcel)])
            return
        if goes_on:
            self.consumer.call_soon(self._on, left)
        else:
            self._settle(left)

    def _hand_over(self, task_id: str, envelope_no: int) -> bool:
        goes_on = self.side.ledger.hand_over(task_id, envelope_no, actor=self.keeper.worker_id)
        self.counts["handed over" if goes_on else "known"] += 1
        return goes_on

    def _schedule(self, message: Any, seen: Seen, task: DurableTask, wake: At) -> bool:
        """Give a message with an ETA a row: it waits there, not in this worker's memory."""
        try:
            sub = parcels.scheduled(self.side, message, seen, task, wake)
            self.side.ledger.submit(sub, verb="adopt", actor=self.keeper.worker_id)
        except SubmitError as exc:
            flaw = Flaw("it was refused", str(exc), exc)
            parcel = parcels.undecodable(self.side, message, flaw, worker=self.keeper.worker_id)
            self.side.ledger.take_in([parcel], actor=self.keeper.worker_id)
            self.counts["parked"] += 1
        else:
            self.counts["scheduled"] += 1
        return False

    def _settle(self, left: Left) -> None:
        if not isinstance(left.message, parcels.Wire):
            self.consumer.call_soon(self._acknowledge, left)

    def _resume(self) -> None:
        if self._paused and len(self._left) < BACKLOG // 2:
            self._paused = False
            if not self.keeper.paused:
                self.consumer.call_soon(self.consumer.task_consumer.consume)

    # On the event loop again --------------------------------------------------------------------------

    def _acknowledge(self, left: Left) -> None:
        if self._current(left) and not left.message.acknowledged:
            try:
                left.message.ack_log_error(logger, self.consumer.connection_errors)
            except Exception:  # the broker delivers it again, and it is known then
                logger.exception("A message that was kept could not be acknowledged")

    def _on(self, left: Left) -> None:
        """Pass a message on to Celery, as the stock message that it is."""
        if self._current(left) and not left.message.acknowledged:
            left.message.headers.pop(HEADER, None)
            self._passed(left.message)


def _nowhere(message: Any) -> None:
    raise RuntimeError(f"{message!r} came before the worker was ready")
