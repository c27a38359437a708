"""What ends a run without being a failure. Celery takes them as its Ignore: nothing more is done for them."""

from __future__ import annotations

from celery.exceptions import Ignore


class Unclaimed(Ignore):
    """Celery shall do nothing more: the row is taken, over, or out of reach."""


class LedgerDown(Unclaimed):
    """The ledger did not answer: the worker has to stop consuming until it does."""


class TaskWaiting(Unclaimed):
    """The task waits: raised by ``wait``, ``sleep`` and ``wait_for_event``; let it pass.

    ``except Exception`` around them swallows it, but the run remembers: it ends waiting whatever the body returns.
    """
