"""What a scenario plays with: pytest-celery's setup, the ledger behind it, the witness and its gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from celery_durable.wiring import plugin
from tests.waiting import wait_until

if TYPE_CHECKING:
    from celery.canvas import Signature
    from celery.result import AsyncResult
    from pytest_celery import CeleryTestSetup, CeleryTestWorker

    from celery_durable.records import Record

PATIENCE = 90.0  # seconds: a loaded machine is slow, a hang is longer


class Stage:
    """One scenario."""

    def __init__(self, setup: CeleryTestSetup, url: str) -> None:
        self.setup, self.app = setup, setup.app
        self.worker: CeleryTestWorker = setup.worker
        self.queue: str = self.worker.worker_queue
        self._witness = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        self.side = plugin(self.app)

    def close(self) -> None:
        """No invariant of the ledger is broken, whatever was struck."""
        self._witness.close()
        violations = self.side.ledger.verify(lease=self.side.settings.lease)
        self.side.ledger.db.dispose()
        self.side.publisher.close()
        self.app.close()
        assert violations == []

    # Acting --------------------------------------------------------------------------------------

    def send(self, signature: Signature, **options: Any) -> AsyncResult:
        return signature.apply_async(queue=self.queue, **options)

    def open(self, gate: str) -> None:
        self._witness.execute("INSERT INTO gate VALUES (%s) ON CONFLICT DO NOTHING", (gate,))

    def kill(self, signal: str, worker: CeleryTestWorker | None = None) -> None:
        """Send a signal to the first process of a worker's container."""
        (worker or self.worker).kill(signal=signal)

    # Looking -------------------------------------------------------------------------------------

    def record(self, result: AsyncResult) -> Record:
        return self.side.ledger.get(result.id)

    def losses(self, result: AsyncResult) -> list[str]:
        """The kinds of its failures, oldest first."""
        return [failure.kind for failure in self.side.ledger.failures(self.record(result).id)]

    def times(self, result: AsyncResult, what: str = "started") -> int:
        query = "SELECT count(*) FROM witness WHERE task_id = %s AND what = %s"
        row = self._witness.execute(query, (result.id, what)).fetchone()
        assert row is not None
        return int(row[0])

    # Waiting -------------------------------------------------------------------------------------

    def await_start(self, result: AsyncResult, times: int = 1) -> None:
        wait_until(lambda: self.times(result) >= times, PATIENCE, f"{result.id} did not start {times} times")

    def await_exit(self, worker: CeleryTestWorker | None = None) -> int:
        """The exit code of a worker's container, which ends."""
        container = (worker or self.worker).container

        def exited() -> bool:
            container.reload()
            return bool(container.status == "exited")

        wait_until(exited, PATIENCE, "the worker does not end")
        return int(container.attrs["State"]["ExitCode"])

    def result(self, result: AsyncResult) -> Any:
        return result.get(timeout=PATIENCE)
