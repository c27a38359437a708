"""The exceptions that users can meet.

::

    DurableError
    ├── SettingsError           a durable_* setting is unknown or makes no sense
    ├── SubmitError             nothing was written, nothing was published
    │   ├── IdempotencyKeyError     the key template or the key itself is wrong
    │   ├── KeyConflict             the key is taken and on_conflict="raise"
    │   ├── KeyBusy                 the key is pending in a transaction that does not end
    │   ├── TaskIdConflict          the task id belongs to another task or key
    │   ├── PayloadTooLarge         the message exceeds durable_max_message_bytes
    │   └── PayloadRefused          a serializer the app does not accept
    ├── LedgerError
    │   ├── LedgerUnavailable       the database did not answer
    │   └── LedgerSchemaError       no tables, or those of another version
    ├── BadRequest              what was asked of the ledger cannot be done as it was asked
    ├── StepError               a step cannot be done as it was asked for
    │   └── StepResultError         what it returned cannot be recorded
    ├── WaitTimeout             what a task waited for did not come in time
    ├── LeaseLost               another claim took over; this attempt changes nothing
    └── NoSuchTask              a REF that names no row, or more than one
"""

from __future__ import annotations


class DurableError(Exception):
    """Base of every error that celery-durable raises."""


class SettingsError(DurableError, ValueError):
    """A ``durable_*`` setting is unknown, malformed or inconsistent with another."""


class SubmitError(DurableError):
    """A submission was refused before anything was written or published."""


class IdempotencyKeyError(SubmitError, ValueError):
    """The key template does not fit the task, or the key it gave cannot be stored."""


class KeyConflict(SubmitError):
    """The idempotency key is taken and the caller asked for ``on_conflict="raise"``.

    ``task_id`` is the id of the submission that holds the key.
    """

    def __init__(self, task: str, key: str, task_id: str, state: str) -> None:
        """Name the holder of the key."""
        super().__init__(
            f"{task} was already submitted with idempotency key {key!r}: it is {state} as task {task_id}. "
            'Use on_conflict="return" to get its result instead.'
        )
        self.task, self.key, self.task_id, self.state = task, key, task_id, state

    def __reduce__(self) -> tuple[type[KeyConflict], tuple[str, str, str, str]]:
        """Pickle by the four facts, so that the error survives a trip between processes."""
        return type(self), (self.task, self.key, self.task_id, self.state)


class KeyBusy(SubmitError):
    """Another transaction holds the idempotency key and has not ended for five seconds.

    It may be an open transaction of the same process, even of the same thread: no database can see that it waits
    for itself. Submitting again is safe, once that transaction has ended.
    """

    def __init__(self, task: str, key: str) -> None:
        """Name the key."""
        super().__init__(
            f"{task}: the idempotency key {key!r} is pending in another transaction that has not ended for 5 s. "
            "Submit again when it has; where it is a transaction of your own, submit in it or after its end."
        )
        self.task, self.key = task, key

    def __reduce__(self) -> tuple[type[KeyBusy], tuple[str, str]]:
        """Pickle by the two facts."""
        return type(self), (self.task, self.key)


class TaskIdConflict(SubmitError):
    """The task id is already in the ledger under another task name or key."""


class PayloadTooLarge(SubmitError, ValueError):
    """The serialised message exceeds ``durable_max_message_bytes``."""


class PayloadRefused(SubmitError, ValueError):
    """The message uses a serializer that the app itself does not accept."""


class LedgerError(DurableError):
    """The ledger cannot be used."""


class LedgerUnavailable(LedgerError):
    """The ledger's database did not answer, after bounded retries.

    ``outcome`` says what became of the write: ``"not recorded"`` (the database was never
    reached) or ``"unknown"`` (the reply was lost). Either way nothing was published, and
    submitting again with the same ``task_id`` is safe: it finds its own row if there is one.
    """

    def __init__(self, message: str, *, task_id: str | None = None, outcome: str = "not recorded") -> None:
        """Keep the id to try again with."""
        super().__init__(message)
        self.task_id, self.outcome = task_id, outcome


class LedgerSchemaError(LedgerError):
    """The ledger's tables are missing or belong to another version of celery-durable."""


class BadRequest(DurableError, ValueError):
    """What was asked of the ledger makes no sense: an event's payload, what to pause, which tasks to replay."""


class StepError(DurableError, ValueError):
    """A step cannot be done as it was asked for: nothing of it was done, or what it wrote was rolled back."""


class StepResultError(StepError):
    """A step was done, and its result cannot be recorded: the task is dead, for a retry would do the step again."""


class WaitTimeout(DurableError, TimeoutError):
    """What a task waited for did not come in time (``give_up_after``, or the timeout of an event)."""


class LeaseLost(DurableError):
    """The claim is no longer the live one: nothing this attempt says is recorded."""


class NoSuchTask(DurableError, LookupError):
    """No row, or more than one, fits the REF."""
