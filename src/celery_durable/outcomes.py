"""What becomes of an attempt whose body did not simply return: from an exception to a move and what Celery sees."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject, Retry
from celery.utils.time import get_exponential_backoff_interval

from celery_durable import classify, failures, states, submission
from celery_durable.secrecy import Secrets

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.control import StepRetry
    from celery_durable.delivery import Delivery
    from celery_durable.records import Claim, Envelope, Failure

    Decision = Callable[[Any], states.Move]

#: Celery's own task that waits for the parts of a chord, where the result backend cannot count them.
CHORD_UNLOCK = "celery.chord_unlock"
_SOON = states.After(1.0)
#: Seconds before a task that was rejected with requeue is tried again.
REQUEUE_DELAY = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a row moves, and the exception that Celery's tracer sees instead of the body's, if another."""

    decide: Decision
    shown: Exception | None = None
    #: Whether the canvas that replaces the task is written together with the move.
    replaces: bool = False

    def tried(self, step: str, count: int) -> Outcome:
        """Return the same with a note of how often a step has been tried."""
        return Outcome(lambda row: replace(self.decide(row), tries=(step, count)), self.shown)


class Outcomes:
    """Judges what one attempt's body raised."""

    def __init__(self, delivery: Delivery, claim: Claim, *, owes: bool) -> None:
        """Bind to an attempt; ``owes`` says that somebody waits for its outcome."""
        self._side, self._task, self._note = delivery.side, delivery.task, delivery.note
        self._claim, self._owes = claim, owes
        self._delivery = delivery
        self._began = time.monotonic()
        self._last: str | None = None

    def of(self, exc: Exception, captured: tuple[Envelope, states.When | None] | None) -> Outcome:
        """Judge an exception; ``captured`` is the message of a ``retry()`` or ``replace()`` before it."""
        if isinstance(exc, Retry):
            return self._asked_for(exc, captured)
        if isinstance(exc, Reject):
            return self._rejected(exc)
        if isinstance(exc, Ignore):
            return self._ignored(captured)
        return self._judged(exc)

    def replaced_by(self, last: str) -> None:
        """Note that a canvas replaces the task, and by which task it ends."""
        self._last = last

    def permanent(self, exc: Exception, why: str) -> Outcome:
        """Give up without a judgement."""
        return self._failed(exc, classify.Verdict("permanent", retryable=False, why=why))

    def step_retried(self, asked: StepRetry) -> Outcome:
        """Let a task wait until one of its steps is tried again; that is no retry of the task."""
        verdict = classify.judge(asked.cause, self._rules())
        verdict = replace(verdict, retryable=True, why=f"{asked.reason}; {verdict.why}")
        reason = f"{asked.reason} after {self._described(asked.cause, verdict).headline}"
        retry = states.Retry(states.After(asked.pause), reason, self._claim.retries)
        shown = Retry(exc=asked.cause, when=asked.pause)
        return self._failed(asked.cause, verdict, retry, shown).tried(asked.name, asked.tried)

    def lost(self, exc: BaseException) -> Outcome:
        """Count a process that cannot go on (out of memory) as a loss."""
        failure = failures.loss(
            "worker_lost", failures.qualified_name(type(exc)), "the process ran out of memory",
            worker=self._note.worker, pid=os.getpid(), claim=self._claim.claims,
        )  # fmt: skip
        failure = self._located(failure)
        return Outcome(lambda row: states.lose(row, failure, self._note.token))

    def waits(self, wait: states.Wait) -> Outcome:
        """Let the task wait, or give up if it has waited long enough."""
        wait = replace(wait, reason=Secrets.of(self._delivery).scrub(wait.reason))
        given_up = failures.loss(
            "timeout", "celery_durable.errors.WaitTimeout", f"gave up waiting: {wait.reason}",
            worker=self._note.worker, pid=os.getpid(), claim=self._claim.claims,
        )  # fmt: skip
        given_up = replace(self._located(given_up), retryable=False, verdict="give_up_after has passed")
        told: dict[str, Any] = {"token": self._note.token, "owes": self._owes, "ring": self._ring}
        return Outcome(lambda row: states.wait(row, wait, given_up, **told))

    def cancelled(self, reason: str) -> Outcome:
        """End as cancelled."""
        return Outcome(lambda row: states.cancelled(row, reason, token=self._note.token, owes=self._owes))

    def drains(self, reason: str) -> Outcome:
        """Go to another worker."""
        return Outcome(lambda row: states.drain(row, reason, token=self._note.token, owes=self._owes))

    @property
    def _ring(self) -> float:
        return self._side.settings.republish_after

    def _judged(self, exc: Exception) -> Outcome:
        """Classify, and try again what another try may help."""
        verdict = classify.judge(exc, self._rules())
        limit: int | None = self._task.max_retries
        tried = self._claim.retries
        if verdict.retryable and (limit is None or tried < limit):
            seconds = self._pause(tried, verdict.retry_after)
            reason = f"retry {tried + 1} after {self._described(exc, verdict).headline}"
            retry = states.Retry(states.After(seconds), reason, tried + 1)
            return self._failed(exc, verdict, retry, Retry(exc=exc, when=seconds))
        if verdict.retryable:
            verdict = replace(verdict, retryable=False, why=f"{verdict.why}; all {limit} retries are used up")
        return self._failed(exc, verdict)

    def _rules(self) -> classify.Rules:
        task, settings = self._task, self._side.settings
        return classify.Rules(
            own=getattr(task, "classify", None),
            retried=tuple(getattr(task, "autoretry_for", ())),
            unretried=tuple(getattr(task, "dont_autoretry_for", ())),
            expected=tuple(task.throws or ()),
            table=settings.classify,
            unclassified=settings.unclassified,
        )

    def _pause(self, tried: int, asked: float | None) -> float:
        """Exponential backoff with full jitter, as Celery's own; what the other side asked for is the least.

        Beyond that the jitter counts still: else all that were turned away at once would come back at once.
        """
        factor, most = self._task.retry_backoff, float(self._task.retry_backoff_max)
        if factor:
            jitter = bool(self._task.retry_jitter)
            seconds = get_exponential_backoff_interval(int(max(1.0, factor)), tried, int(most), jitter)
        else:
            seconds = self._task.default_retry_delay
        if asked is None or asked < seconds:
            return float(seconds)
        return asked + (seconds if factor and self._task.retry_jitter else 0.0)

    def _asked_for(self, exc: Retry, captured: tuple[Envelope, states.When | None] | None) -> Outcome:
        """Take ``self.retry()``: when, and with which message, the task itself has said."""
        cause = exc.exc if isinstance(exc.exc, BaseException) else exc
        retries = self._claim.retries + 1
        envelope, wake = captured or (None, None)
        if self._task.name == CHORD_UNLOCK and cause is exc:  # it asks again and again: that is no failure
            return self.waits(states.Wait(states.CONDITION, "the parts of its chord are not all over", wake or _SOON))
        if envelope is not None:
            retries = int(envelope.headers.get("retries") or retries)
        else:  # a Retry of the user's own making, without self.retry()
            seconds = isinstance(exc.when, int | float)
            wake = submission.wake_of(
                self._side.app, exc.when if seconds else None, None if seconds else exc.when
            ) or states.After(float(self._task.default_retry_delay))
        verdict = classify.Verdict("transient", retryable=True, why="the task asked for a retry")
        reason = f"retry {retries} after {self._described(cause, verdict).headline}"
        return self._failed(cause, verdict, states.Retry(wake or states.After(), reason, retries, envelope))

    def _rejected(self, exc: Reject) -> Outcome:
        if not exc.requeue:
            return self._failed(exc, classify.Verdict("rejected", retryable=False, why="the task rejected its message"))
        verdict = classify.Verdict("rejected", retryable=True, why="the task asked for a requeue")
        reason = f"rejected with requeue: {self._described(exc, verdict).message}"
        retry = states.Retry(states.After(REQUEUE_DELAY), reason, self._claim.retries, kind="requeue")
        return self._failed(exc, verdict, retry)

    def _ignored(self, captured: tuple[Envelope, states.When | None] | None) -> Outcome:
        """Take Ignore as a success without a result, or as the row's new message (replace)."""
        told: dict[str, Any] = {"token": self._note.token, "owes": self._owes}
        if captured is None and self._last is not None:
            if hasattr(self._side.app.tasks.get(self._last), "fence"):
                return Outcome(lambda row: states.stand_in(row, **told), replaces=True)
            reason = f"{states.REPLACEMENT}{self._last}, which has no row"
            return Outcome(lambda _: states.succeed_silently(reason), replaces=True)
        if captured is None:
            return Outcome(lambda _: states.succeed_silently())
        envelope, wake = captured
        return Outcome(lambda row: states.replace_message(row, envelope, wake, **told))

    def _failed(
        self,
        exc: BaseException,
        verdict: classify.Verdict,
        retry: states.Retry | None = None,
        shown: Exception | None = None,
    ) -> Outcome:
        failure = self._described(exc, verdict)
        # What a rejected message came to is told by no release of Celery before 5.7: by a sweep, at once.
        ring = 0.0 if verdict.kind == "rejected" else self._ring
        told: dict[str, Any] = {"token": self._note.token, "owes": self._owes, "ring": ring}
        return Outcome(lambda row: states.fail(row, failure, retry=retry, **told), shown)

    def _described(self, exc: BaseException, verdict: classify.Verdict) -> Failure:
        secret = Secrets.of(self._delivery, exc)
        failure = failures.describe(
            exc, verdict.kind, worker=self._note.worker, claim=self._claim.claims, scrub=secret.scrub
        )
        return replace(
            self._located(failure),
            retryable=verdict.retryable,
            verdict=verdict.why,
            causes=json.dumps([{k: secret.scrub(v) for k, v in cause.items()} for cause in failures.causes(exc)]),
            arguments=secret.shown(),
        )

    def _located(self, failure: Failure) -> Failure:
        """Add where, how long and how large the attempt was, and which code it ran."""
        return replace(
            failure,
            host=socket.gethostname(),
            runtime_micros=round((time.monotonic() - self._began) * 1e6),
            memory_bytes=failures.memory(),
            code_version=self._side.settings.code_version or None,
        )
