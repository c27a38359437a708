"""Assertions about durable tasks; one that fails says why the task stands where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable import states
from celery_durable.explain import explain, look_up

if TYPE_CHECKING:
    from celery_durable.ledger.sandbox import SandboxLedger
    from celery_durable.records import Record


class Judging:
    """What can be asserted of a task: given its result, its task id or its idempotency key."""

    ledger: SandboxLedger

    def record(self, ref: Any) -> Record:
        """Return the record of a task.

        Raises:
            NoSuchTask: nothing fits.
        """
        return self.ledger.get(str(getattr(ref, "id", ref)))

    def why(self, ref: Any) -> str:
        """Say in a sentence why a task stands where it stands, as ``celery durable why`` does."""
        record = self.record(ref)
        return explain(record, look_up(self.ledger, record)).reason

    def assert_succeeded(self, ref: Any, result: Any = ...) -> None:
        """Assert that a task has succeeded; with ``result`` that it returned that.

        Raises:
            AssertionError: it has not; the message says why it stands where it stands.
        """
        __tracebackhide__ = True
        self._assert_state(ref, states.SUCCEEDED)
        found = self.record(ref).as_json()["result"]
        if result is not ... and found != result:
            raise AssertionError(f"{self._named(ref)} returned {found!r}, not {result!r}")

    def assert_waiting(self, ref: Any, reason: str = "", *, kind: str | None = None) -> None:
        """Assert that a task waits, with ``reason`` in its reason (and of that ``kind``).

        Raises:
            AssertionError: it does not; the message says why it stands where it stands.
        """
        __tracebackhide__ = True
        self._assert_state(ref, states.WAITING)
        record = self.record(ref)
        if reason not in (record.wait_reason or ""):
            raise AssertionError(f"{self._named(ref)} does not wait for {reason!r}: {self.why(ref)}")
        if kind is not None and record.wait_kind != kind:
            raise AssertionError(f"{self._named(ref)} waits, kind {record.wait_kind!r}, not {kind!r}: {self.why(ref)}")

    def assert_dead(self, ref: Any, kind: str | None = None) -> None:
        """Assert that a task is dead (of that ``kind``: permanent, poison, timeout, ...).

        Raises:
            AssertionError: it is not; the message says why it stands where it stands.
        """
        __tracebackhide__ = True
        self._assert_state(ref, states.DEAD)
        found = self.record(ref).failure_kind
        if kind is not None and found != kind:
            raise AssertionError(f"{self._named(ref)} is dead, kind {found!r}, not {kind!r}: {self.why(ref)}")

    def _assert_state(self, ref: Any, state: str) -> None:
        __tracebackhide__ = True
        found = self.record(ref).state
        if found != state:
            raise AssertionError(f"{self._named(ref)} is {found}, not {state}: {self.why(ref)}")

    def _named(self, ref: Any) -> str:
        record = self.record(ref)
        return f"{record.task}[{record.task_id}]"


__all__ = ["Judging"]
