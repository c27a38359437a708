"""The parent's thread: renews leases, records deaths, sweeps, and pauses consumption while the ledger is away."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakValueDictionary

from celery_durable import failures, signals
from celery_durable.errors import LedgerError
from celery_durable.ledger import Presence
from celery_durable.worker.forkgate import before_fork, gate
from celery_durable.worker.sweeper import Sweeper

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.wiring import Plugin

logger = logging.getLogger(__name__)

#: Seconds past a time limit after which the keeper lets a lease go, whatever the pool does about it.
LIMIT_GRACE = 5.0
#: How many recorded revokes are remembered, as many as Celery itself keeps.
MAX_REVOKED = 50_000
#: Seconds between two looks at whether the pool's processes live.
DEATH_WATCH = 0.2


@dataclass(slots=True)
class Kept:
    """A delivery in the pool whose lease is renewed."""

    token: str
    lease: float
    until: float | None
    request: Any


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
        pool = str(getattr(worker.pool_cls, "__module__", worker.pool_cls))
        self.solo, self.prefork = pool.endswith("solo"), pool.endswith("prefork")
        self.consumer: Any = None
        self.paused = False
        self._kept: dict[str, Kept] = {}
        self._reserved: Any = WeakValueDictionary()
        self._told: dict[str, str] = {}
        self._revoked: dict[str, bool] = {}
        self._words: deque[Callable[[], None]] = deque()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._renewed = self._beaten = float("-inf")
        self._down = False
        self.sweeper = Sweeper(side, self.worker_id, reserved=lambda: list(self._reserved.data.copy()))

    # What the event loop leaves -----------------------------------------------------------------

    def reserve(self, task_id: str, request: Any) -> None:
        """Note that the message of a row sits in this process: it need not be rung."""
        self._reserved[task_id] = request

    def keep(self, request: Any) -> None:
        """Renew the lease of a delivery from now on: it goes to the pool."""
        lease = request.task.lease or self.settings.lease
        hard = request.time_limits[0]
        self._reserved.pop(request.id, None)
        until = time.monotonic() + hard + LIMIT_GRACE if hard else None
        self._kept[request.id] = Kept(request.note.token, lease, until, request)

    def over(self, task_id: str, token: str) -> None:
        """Stop renewing a delivery that has left the pool."""
        kept = self._kept.get(task_id)
        if kept is not None and kept.token == token:
            self._kept.pop(task_id, None)

    def told(self, task_id: str, token: str) -> None:
        """Note that an outcome reached whoever waited for it; cleared in the ledger in batches."""
        self._told[task_id] = token

    def lost(self, request: Any, kind: str, exception: str, message: str) -> None:
        """Have a death recorded at once."""
        self._leave(partial(self._record_loss, request, kind, exception, message))

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
        self._wake.set()

    def attach(self, consumer: Any) -> None:
        """Take the consumer of a new broker connection, paused if the old one was."""
        self.consumer = consumer
        if self.paused:
            consumer.task_consumer.cancel()

    def shutting_down(self) -> bool:
        """Whether the worker is on its way out."""
        from celery.worker import state

        return state.should_stop is not None or state.should_terminate is not None

    # Life -----------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Do once, in the main thread, what the thread will do: modules load here and nowhere else."""
        self.ledger.glance(self.side.broker)
        self.ledger.workers()
        self._enter()
        self.ledger.db.dispose()

    def begin(self) -> None:
        """Start the thread."""
        if self._thread is None:
            before_fork(self.ledger.db.dispose)
            self._thread = threading.Thread(target=self._live, name="celery-durable", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop the thread, say what it still has to say, and sign off."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        try:
            self._speak()
            self.ledger.beat(self.worker_id, phase="stopped", running=0)
        except Exception as exc:  # noqa: BLE001 - leases expire by themselves
            logger.warning("celery-durable could not sign off: %s", exc)
        self.sweeper.close()
        self.ledger.db.dispose()

    def _live(self) -> None:
        while not self._stopping.is_set():
            self._rest(self.settings.sweep_interval * random.uniform(0.8, 1.2))  # noqa: S311 - spreading
            try:
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
        """Wait for the next turn; a word left, or a dead pool process, ends it early."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._wake.wait(min(left, DEATH_WATCH)):
            if self._bury():
                break
        self._wake.clear()

    def _bury(self) -> bool:
        """Leave word of deliveries whose pool process is gone.

        billiard says so too, but waits ten seconds for a result that may still be in its pipe; here the
        ledger knows whether there is one.
        """
        pool = getattr(getattr(self.worker.pool, "_pool", None), "_pool", None) if self.prefork else None
        if pool is None or not self._kept:
            return False
        alive = {process.pid for process in list(pool)}
        dead = [k.request for k in list(self._kept.values()) if (k.request.worker_pid or 0) not in {0, *alive}]
        for request in dead:
            request.bury()
        return bool(dead)

    def _turn(self) -> None:
        """Do whatever is due: say what was left, renew, report, sweep."""
        now = time.monotonic()
        self._speak()
        if now - self._renewed >= self.settings.lease / 3 or self._down:
            self._renew(now)
            self._renewed = now
        if now - self._beaten >= self.settings.lease / 3:
            self._beat()
            self._beaten = now
        self.sweeper.sweep()
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

    def _renew(self, now: float) -> None:
        by_lease: dict[float, dict[str, str]] = {}
        for task_id, kept in list(self._kept.items()):
            if kept.until is not None and now > kept.until:
                # Threads and solo ignore Celery's limits, and a stuck pool may too.
                self._kept.pop(task_id, None)
                self._record_loss(
                    kept.request, "timeout", "billiard.exceptions.TimeLimitExceeded",
                    f"hard time limit of {kept.request.time_limits[0]} s",
                )  # fmt: skip
                continue
            by_lease.setdefault(kept.lease, {})[task_id] = kept.token
        for lease, tokens in by_lease.items():
            self.ledger.renew(tokens, lease)

    def _beat(self) -> None:
        phase = "paused" if self.paused else "stopping" if self.shutting_down() else "running"
        if not self.ledger.beat(self.worker_id, phase=phase, running=len(self._kept)):
            self._enter()

    def _enter(self) -> None:
        queues = sorted(self.side.app.amqp.queues.consume_from)
        tasks = sorted(n for n in self.side.app.tasks if not n.startswith("celery."))
        self.ledger.enter(
            Presence(
                self.worker_id,
                self.worker.hostname,
                os.getpid(),
                queues,
                tasks,
                self.side.broker,
                self.settings.lease,
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
        logger.warning("celery-durable: consumption goes on")
        self.consumer.call_soon(self.consumer.task_consumer.consume)
