"""What ends a run without being a failure. Celery takes most of it as its Ignore: nothing more is done for them."""

from __future__ import annotations

from celery.exceptions import Ignore


class Unclaimed(Ignore):
    """Celery shall do nothing more: the row is taken, over, or out of reach."""


class LedgerDown(Unclaimed):
    """The ledger did not answer: the worker has to stop consuming until it does."""


class NotStarted(Unclaimed):
    """The worker shuts down and starts nothing any more: the row has to be rung for another one."""


class TaskWaiting(Unclaimed):
    """The task waits: raised by ``wait``, ``sleep`` and ``wait_for_event``; let it pass.

    ``except Exception`` around them swallows it, but the run remembers: it ends waiting whatever the body returns.
    """


class Stop(BaseException):
    """Leaves a body that shall not go on; let it pass, or clean up and raise it again.

    No ``Exception``, so that ``except Exception`` does not swallow it. It never leaves the task: the run turns it into
    a move of the row before Celery's tracer sees it.
    """


class Cancelled(Stop):
    """The task was cancelled: its row ends ``cancelled``."""


class Draining(Stop):
    """The worker shuts down: the row goes to another worker, where the body begins again and finds its steps done."""


class StepRetry(Unclaimed):
    """A step is tried again after a pause too long for a worker to wait: its task waits meanwhile. Let it pass."""

    def __init__(self, cause: Exception, name: str, tried: int, pause: float, reason: str) -> None:
        """Tell what went wrong, in which step, how often so far, and the pause in seconds."""
        super().__init__(reason)
        self.cause, self.name, self.tried, self.pause, self.reason = cause, name, tried, pause, reason
