"""Worker bootsteps: refuse a start without a usable ledger, keep leases, sweep."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.signals import worker_ready

from celery_durable.errors import DurableError
from celery_durable.wiring import plugin
from celery_durable.worker.intake import Intake
from celery_durable.worker.keeper import Keeper


class DurableStep(bootsteps.StartStopStep):
    """Holds the keeper. Starts first and stops last: leases are renewed until the pool has joined."""

    label = "Durable"

    def __init__(self, worker: Any, **options: Any) -> None:
        """Open the ledger before the pool forks.

        Raises:
            SystemExit: with one line, when the ledger cannot be used.
        """
        super().__init__(worker, **options)
        side = plugin(worker.app)
        try:
            self.keeper = Keeper(side, worker)
            # Drivers and dialects load their modules on first use: here, not in a thread that a fork
            # could interrupt while it holds an import lock.
            self.keeper.warm_up()
        except DurableError as exc:
            raise SystemExit(f"celery-durable: {exc}") from None
        side.keeper = self.keeper

    def include(self, parent: Any) -> None:
        """Put the step in front of all others: steps stop in the reverse order."""
        parent.steps.insert(0, self)

    def start(self, worker: Any) -> None:
        """Wait with the thread until the pool has forked and the worker is ready."""
        worker_ready.connect(self._ready, weak=False, dispatch_uid=f"celery-durable-{id(worker)}")

    def _ready(self, **_: Any) -> None:
        self.keeper.begin()

    def close(self, worker: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Begin to give the work away, whatever it was that stops the worker: a command, an error."""
        self.keeper.leaving()

    def stop(self, worker: Any) -> None:  # noqa: ARG002
        """Let go of what is left and sign off."""
        self.keeper.end()

    terminate = stop


class ConsumptionStep(bootsteps.StartStopStep):
    """Looks at messages before Celery does, and pauses consumption while the ledger is away.

    Both hold after the broker connection was renewed.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Durable consumption"
    intake: Intake | None = None

    def start(self, consumer: Any) -> None:
        """Stand in front of the consumer's handlers, and give the keeper the consumer that it pauses."""
        keeper = plugin(consumer.app).keeper
        if keeper is None:
            return
        if self.intake is None:
            self.intake = Intake(keeper, consumer)
        self.intake.attach()
        keeper.attach(consumer)

    def info(self, consumer: Any) -> dict[str, Any]:  # noqa: ARG002 - Celery's signature
        """What ``celery inspect stats`` shows: messages that this worker did not run, by what became of them."""
        return {"durable": dict(self.intake.counts)} if self.intake is not None else {}
