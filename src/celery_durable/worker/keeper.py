"""The parent's thread: renews leases, records deaths, sweeps, and pauses consumption while the ledger is away."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakValueDictionary

from celery_durable import failures, signals, states
from celery_durable.errors import LedgerError
from celery_durable.ledger import Presence
from celery_durable.worker import deaths, orphans
from celery_durable.worker.draining import Drain
from celery_durable.worker.forkgate import after_fork, before_fork, gate
from celery_durable.worker.leases import Leases
from celery_durable.worker.peers import Peers
from celery_durable.worker.sweeper import Sweeper

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.wiring import Plugin

logger = logging.getLogger(__name__)

#: How many recorded revokes are remembered, as many as Celery itself keeps.
MAX_REVOKED = 50_000
#: Seconds between two looks at whether the pool's processes live and the worker shuts down; and between two turns
#: while it does.
DEATH_WATCH = 0.2


class Keeper:
    """One per worker. Its hooks only leave word; its thread does the talking to ledger and broker."""

    def __init__(self, side: Plugin, worker: Any) -> None:
        """Open the ledger.

        Raises:
            DurableError: the settings or the ledger cannot be used.
        """
        self.side, self.worker = side, worker
        self.settings, self.ledger = side.settings, side.ledger
        self.ledger_uuid = self.ledger.uuid
        self.worker_id = f"{worker.hostname}/{uuid4().hex[:8]}"
        self.worker_time_limit: float | None = worker.time_limit
        pool = str(getattr(worker.pool_cls, "__module__", worker.pool_cls)).rpartition(".")[2]
        self.pool = {"thread": "threads"}.get(pool, pool)  # as its option is called
        self.solo, self.prefork = self.pool == "solo", self.pool == "prefork"
        self.green = bool(getattr(worker.pool_cls, "is_green", False))
        self.leases = Leases(side, timed_out=self._time_out, terminate=self._terminate)
        self.board, self.drain = self.leases.board, Drain(self, worker)
        self.consumer: Any = None
        self.paused = False
        self._reserved: Any = WeakValueDictionary()
        self._left_here: set[str] = set()
        self._told: dict[str, str] = {}
        self._revoked: dict[str, bool] = {}
        self._words: deque[Callable[[], None]] = deque()
        # A cold shutdown leaves words in a signal handler: it must not wait for what the interrupted code holds.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._beaten = float("-inf")
        self._down = False
        self.sweeper = Sweeper(side, self.worker_id, reserved=self._reserved_ids, running=self.leases.unasked)
        self.peers = Peers(side, self.worker_id, self._beat)

    # What the event loop leaves -----------------------------------------------------------------

    def reserve(self, task_id: str, request: Any) -> None:
        """Note that the message of a row sits in this process: it need not be rung."""
        self._reserved[task_id] = request

    def keep(self, request: Any) -> int:
        """Renew the lease of a delivery from now on: it goes to the pool. Returns its line on the board."""
        self._reserved.pop(request.id, None)
        return self.leases.take(request)

    def leaving(self) -> None:
        """Begin to give the work away; fit for a signal handler.

        What sits here is noted at once: Celery forgets it as soon as its consumer closes.
        """
        self._left_here.update(self._reserved.data.copy())
        self.board.drain()
        self._wake.put(None)

    def unstarted(self) -> set[str]:
        """Ids of tasks whose message is or was here, and that no pool process has begun as far as is known here."""
        waiting = [r.id for r in self.leases.requests() if r.note.recorded and not r.early]
        return {*self._left_here.copy(), *self._reserved.data.copy(), *waiting}

    def over(self, task_id: str, token: str) -> None:
        """Stop renewing a delivery that has left the pool."""
        self.leases.let_go(task_id, token)

    def told(self, task_id: str, token: str) -> None:
        """Note that an outcome reached whoever waited for it; cleared in the ledger in batches."""
        self._told[task_id] = token

    def lost(self, request: Any, kind: str, exception: str, message: str) -> None:
        """Have a death recorded at once."""
        self._leave(partial(self._record_loss, request, kind, exception, message))

    def handed_over(self, request: Any) -> None:
        """Have an attempt handed to another worker whose process is ended by a shutdown."""
        self._leave(partial(self._hand_over, request))

    def unclaimed(self, request: Any) -> None:
        """Have a row rung at once whose message was taken and not run."""
        self._leave(partial(self.sweeper.ring_unclaimed, request.id))

    def revoked(self, request: Any, *, expired: bool, reason: str) -> None:
        """Have a stock revoke, or an expiry that Celery saw, recorded as a move of the row."""
        self._reserved.pop(request.id, None)  # its message is done with: the outcome that is owed has to be rung
        self._revoked[request.id] = True
        if len(self._revoked) > MAX_REVOKED:
            self._revoked.pop(next(iter(self._revoked)))
        self._leave(partial(self._record_revoke, request, expired=expired, reason=reason))

    def has_revoked(self, task_id: str) -> bool:
        """Whether a revoke of this task was recorded here: from then on the row knows better than Celery."""
        return task_id in self._revoked

    def ledger_failed(self) -> None:
        """Stop consuming: a pool process could not reach the ledger."""
        self._leave(self._pause)

    def leave(self, word: Callable[[], None]) -> None:
        """Have something done in the keeper's thread, again and again while the ledger does not answer."""
        self._leave(word)

    def _leave(self, word: Callable[[], None]) -> None:
        self._words.append(word)
        self._wake.put(None)

    def attach(self, consumer: Any) -> None:
        """Take the consumer of a new broker connection, paused if the old one was."""
        self.consumer = consumer
        if self.paused:
            consumer.task_consumer.cancel()

    def shutting_down(self) -> bool:
        """Whether the worker is on its way out."""
        from celery.worker import state

        return self.board.draining or state.should_stop is not None or state.should_terminate is not None

    # Life -----------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Do once, in the main thread, what the thread will do: modules load here and nowhere else."""
        self.ledger.glance(self.side.broker)
        self.ledger.workers()
        self.peers.hold()
        orphans.load()
        after_fork(self._leave_to_parent)
        self._enter()
        self.ledger.db.dispose()

    def _leave_to_parent(self) -> None:
        """In a child: the lock ends with this process, unless the child may run a body for longer."""
        if orphans.mortal() or not self.prefork:
            self.peers.lock.leave_to_parent()

    def begin(self) -> None:
        """Start the thread."""
        if self._thread is None:
            before_fork(self.ledger.db.dispose)
            self._thread = threading.Thread(target=self._live, name="celery-durable", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop the thread, say what it still has to say, and sign off."""
        self._stopping.set()
        self._wake.put(None)
        if self._thread is not None:
            self._thread.join(timeout=10)
        try:
            self._speak()
            self.sweeper.sweep()  # what was handed over goes on its way now, not when somebody else sweeps
            self.ledger.beat(self.worker_id, phase="stopped", running=0)
        except Exception as exc:  # noqa: BLE001 - leases expire by themselves
            logger.warning("celery-durable could not sign off: %s", exc)
        self.peers.end()
        self.drain.end()
        self.sweeper.close()
        self.ledger.db.dispose()

    def _live(self) -> None:
        while not self._stopping.is_set():
            try:
                self._rest(self.settings.sweep_interval * random.uniform(0.8, 1.2))  # noqa: S311 - spreading
                with gate():
                    self._turn()
            except LedgerError as exc:
                if not self._down:
                    logger.error("celery-durable: %s", exc)  # noqa: TRY400 - one line per outage
                self._down = True
                self._pause()
            except Exception:
                logger.exception("celery-durable: the sweep failed; it goes on")

    def _rest(self, seconds: float) -> None:
        """Wait for the next turn; a word left, a dead process, a worker that is gone, or a shutdown ends it early."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            called = self._called(min(left, DEATH_WATCH, self.peers.until_next()))
            with gate():
                buried = self.peers.turn()
            if called or buried or self._bury() or self.board.draining:
                break

    def _called(self, seconds: float) -> bool:
        """Wait for a word so long; say whether there was one."""
        called = False
        with suppress(Empty):
            self._wake.get(timeout=seconds)
            called = True
            while True:
                self._wake.get_nowait()
        return called

    def _bury(self) -> bool:
        """Leave word of deliveries whose pool process is gone."""
        pool = getattr(self.worker.pool, "_pool", None) if self.prefork else None
        if pool is None or not self.leases or not deaths.bury(pool, self.leases.requests()):
            return False
        if self.consumer is not None:
            deaths.replace_dead(pool, self.consumer.call_soon)
        return True

    def _turn(self) -> None:
        """Do whatever is due: say what was left, renew, report, sweep."""
        now = time.monotonic()
        self._speak()
        drains = self.board.draining and self.drain.turn()
        if self.leases.due() or self._down:
            self.leases.renew()
        if drains or now - self._beaten >= self.settings.lease / 3:
            self.peers.renew()
            self._beat()
            self._beaten = now
        if self.sweeper.sweep():
            self.leases.renew()
        if self._down:
            logger.warning("celery-durable: the ledger is back")
            self._down = False
        self._resume()

    def _speak(self) -> None:
        """Carry out what the event loop left; what fails for the ledger's sake is kept for later."""
        while self._words:
            word = self._words[0]
            word()
            self._words.popleft()
        batch = dict(list(self._told.items())[:500])
        if batch:
            self.ledger.clear_continuations(batch)
            for task_id, token in batch.items():
                if self._told.get(task_id) == token:
                    del self._told[task_id]

    def _reserved_ids(self) -> list[str]:
        """Tasks whose message waits here to be run: it need not be sent again, unless nothing here runs any more."""
        return [] if self.board.draining else list(self._reserved.data.copy())

    def _time_out(self, request: Any) -> None:
        message = f"hard time limit of {request.time_limits[0]} s"
        self._record_loss(request, "timeout", "billiard.exceptions.TimeLimitExceeded", message)

    def _terminate(self, request: Any) -> None:
        """End a body's process, as Celery's own ``revoke`` with ``terminate`` does; on the event loop, as it does."""
        if not self.prefork:
            logger.warning("Task %s cannot be ended in a pool of %s: it stops at its next check", request.id, self.pool)
        elif self.consumer is not None:
            self.consumer.call_soon(self._strike, request)

    def _strike(self, request: Any) -> None:
        """On the event loop, which frees a process for its next task: it is not that one's that is ended."""
        if self.leases.holds(request):
            request.terminate(self.worker.pool)

    def _beat(self) -> None:
        phase = "stopping" if self.shutting_down() else "paused" if self.paused else "running"
        running, queues, lock = len(self.leases), self._queues(), self.peers.held
        if not self.ledger.beat(self.worker_id, phase=phase, running=running, queues=queues, lock=lock):
            self._enter()

    def _queues(self) -> list[str]:
        """What is really consumed: ``add_consumer`` and ``cancel_consumer`` change it while a worker runs."""
        consuming = getattr(self.consumer, "task_consumer", None)
        if consuming is None:  # not connected, or not yet
            return sorted(self.side.app.amqp.queues.consume_from)
        return sorted(queue.name for queue in consuming.queues)

    def _enter(self) -> None:
        tasks = sorted(n for n in self.side.app.tasks if not n.startswith("celery."))
        self.ledger.enter(
            Presence(
                self.worker_id,
                self.worker.hostname,
                os.getpid(),
                self._queues(),
                tasks,
                self.side.broker,
                self.settings.lease,
                self.pool,
                self.peers.held,
            )
        )

    # Words carried out ----------------------------------------------------------------------------

    def _record_loss(self, request: Any, kind: str, exception: str, message: str) -> None:
        failure = failures.loss(kind, exception, message, worker=self.worker_id, pid=request.worker_pid, claim=0)
        state = self.ledger.lose(request.id, request.note.token, failure, owed_token=uuid4().hex, actor=self.worker_id)
        if state is not None:
            signals.task_lost.send(sender=request.task, task_id=request.id, kind=kind, state=state)
        else:
            self.sweeper.ring_unclaimed(request.id)
        known = state is not None or request.note.recorded or self.ledger.knows(request.id)
        self._settle_message(request, known=known)

    def _hand_over(self, request: Any) -> None:
        reason = f"the worker {self.worker_id} was shut down"
        state = self.ledger.end(
            request.id, request.note.token, lambda row: states.take_over(row, reason, uuid4().hex), actor=self.worker_id
        )
        if state is None:
            self.sweeper.ring_unclaimed(request.id)
        known = state is not None or request.note.recorded or self.ledger.knows(request.id)
        self._settle_message(request, known=known)

    def _record_revoke(self, request: Any, *, expired: bool, reason: str) -> None:
        self.ledger.revoke(
            request.id,
            request.note.token,
            expired=expired,
            reason=f"Celery says: {reason}",
            actor=self.worker_id,
        )

    def _settle_message(self, request: Any, *, known: bool) -> None:
        """Acknowledge the message of a row; give one that was never adopted back to the broker."""
        if request.acknowledged or request.early or self.consumer is None:
            return
        settle = request.acknowledge if known else partial(request.reject, requeue=True)
        self.consumer.call_soon(settle)

    # Consumption ------------------------------------------------------------------------------------

    def _pause(self) -> None:
        """Stop consuming until the ledger answers; what was consumed is recorded and rung again."""
        if self.paused or self.consumer is None:
            return
        self.paused = True
        logger.warning("celery-durable: consumption pauses until the ledger answers")
        self.consumer.call_soon(self.consumer.task_consumer.cancel)

    def _resume(self) -> None:
        if not self.paused or self.consumer is None:
            return
        self.paused = False
        if self.board.draining:
            return
        logger.warning("celery-durable: consumption goes on")
        self.consumer.call_soon(self.consumer.task_consumer.consume)
