"""A real worker on a sandbox, in threads of the test's process."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from celery.app import trace
from celery.contrib.testing.worker import TestWorkController, start_worker
from celery.signals import worker_ready
from celery.worker import state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.testing.sandbox import Sandbox

HOSTNAME = "worker@sandbox"


class _Controller(TestWorkController):
    """A worker that tells its signal receivers, as the real one does, that it is ready."""

    def on_consumer_ready(self, consumer: Any) -> None:
        worker_ready.send(sender=consumer)
        super().on_consumer_ready(consumer)


@contextmanager
def working(sandbox: Sandbox) -> Iterator[Any]:
    """Run a worker while the block lasts."""
    options = {"pool": "threads", "concurrency": 2, "perform_ping_check": False, "shutdown_timeout": 30.0}
    app = sandbox.app
    try:
        trace.setup_worker_optimizations(app, HOSTNAME)
        with start_worker(app, WorkController=_Controller, hostname=HOSTNAME, **options) as worker:
            try:
                yield worker
            finally:
                state.should_terminate = 0
                with suppress(Exception):  # its event loop looks only once a second whether it shall stop
                    app.control.broadcast("ping")
    finally:
        state.should_terminate = None
        trace.reset_worker_optimizations(app)


__all__ = ["working"]
