"""States, verbs and the table of moves: the only place that knows what may follow what.

A *move* is a verb with a reason. The functions below are pure: they look at a row and say what
shall become of it; ``ledger`` writes what they say, in one transaction with the history row.

The state diagram is drawn from this table (``docs/states.md``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from celery_durable.records import Envelope, Failure

QUEUED, RUNNING, WAITING = "queued", "running", "waiting"
SUCCEEDED, DEAD, CANCELLED = "succeeded", "dead", "cancelled"
LIVE = frozenset({QUEUED, RUNNING, WAITING})
TERMINAL = frozenset({SUCCEEDED, DEAD, CANCELLED})
STATES = (QUEUED, RUNNING, WAITING, SUCCEEDED, DEAD, CANCELLED)

#: verb -> (states it may leave, states it may reach); ``None`` is "no row yet".
MOVES: dict[str, tuple[frozenset[str | None], frozenset[str]]] = {
    "submit": (frozenset({None}), frozenset({QUEUED, WAITING})),
    "adopt": (frozenset({None}), frozenset({QUEUED, WAITING})),
    "park": (frozenset({None, QUEUED, WAITING}), frozenset({WAITING, DEAD})),
    "claim": (frozenset({QUEUED}), frozenset({RUNNING})),
    "succeed": (frozenset({RUNNING}), frozenset({SUCCEEDED})),
    "fail": (frozenset({RUNNING}), frozenset({WAITING, DEAD, CANCELLED})),
    "wait": (frozenset({RUNNING}), frozenset({WAITING, CANCELLED})),
    "replace": (frozenset({RUNNING, WAITING}), frozenset({QUEUED, WAITING, CANCELLED})),
    "lose": (frozenset({RUNNING}), frozenset({QUEUED, WAITING, DEAD, CANCELLED})),
    "release": (frozenset({WAITING}), frozenset({QUEUED})),
    "follow": (frozenset({WAITING}), frozenset({WAITING, *TERMINAL})),
    "expire": (frozenset({QUEUED, WAITING}), frozenset({DEAD})),
    "cancel": (frozenset(LIVE), frozenset({RUNNING, CANCELLED})),
    "replay": (frozenset({DEAD, CANCELLED}), frozenset({QUEUED, WAITING})),
    "pause": (frozenset({QUEUED}), frozenset({WAITING})),
    "hand_over": (frozenset({QUEUED}), frozenset({CANCELLED})),
}
#: Events that tell something without moving the row.
NOTES = frozenset({"fenced", "event", "prune"})
#: Events of rows that are merely observed: Celery moves those as it likes, no table binds them.
SIGHTINGS = frozenset({"observe"})

#: Wait kinds that only the ledger itself sets.
SCHEDULED, RETRY, DUPLICATE, PAUSED = "scheduled", "retry", "duplicate", "paused"
#: What a row waits for whose task no worker knew that got its message.
UNREGISTERED = "unregistered"
#: What a row waits for whose task replaced itself by a canvas, the last part of which comes under its id.
REPLACED = "replaced"
#: Wait kinds that a task's own code asks for.
CONDITION, EVENT, SLEEP = "condition", "event", "sleep"
#: What a row waits for, due at once, whose worker shuts down.
DRAIN = "drain"

#: What a task's code has left in the ledger for its later runs: results of steps, how often a step was tried, sleeps
#: that were begun, its checkpoint.
STEP, TRIES, SLEPT, CHECKPOINT = "step", "tries", "sleep", "checkpoint"

#: Seconds after which a row that waits for another looks again, should its waker have died.
FOLLOW_INTERVAL = 10.0
#: Seconds after which a row that an open-ended pause holds is looked at, should its release have been lost.
PAUSE_INTERVAL = 3600.0
#: Seconds after which it is looked again whether a worker knows an unregistered task.
UNREGISTERED_INTERVAL = 10.0
#: Seconds after which a row that a canvas stands in for is looked at, should the end of that have passed it by.
REPLACED_INTERVAL = 600.0

#: How the history tells that a row was replaced: by a canvas, then by the canvas' last part (or by a plain task).
STAND_IN, REPLACEMENT = "replaced by a canvas, the last part of which takes its place", "replaced by the task "


class After(NamedTuple):
    """A time on the database's clock: so many seconds after the statement that stores it."""

    seconds: float = 0.0


class At(NamedTuple):
    """An absolute time in microseconds since the epoch (UTC)."""

    micros: int


When = After | At


class Row(Protocol):
    """What a decision needs to see of a locked row."""

    state: str
    claims: int
    losses: int
    retries: int
    max_losses: int
    on_loss: str
    owes: bool
    envelope_no: int
    cancel_requested_at: int | None
    cancel_reason: str | None
    waiting_from: int | None
    wait_event: str | None
    waits: int
    progressed: int
    replaces: int
    now: int


@dataclass(frozen=True, slots=True)
class Move:
    """What shall become of a row: its new column values and the history row that tells why."""

    verb: str
    to: str
    changes: dict[str, Any]
    reason: str = ""
    failure: Failure | None = None
    envelope: Envelope | None = None
    #: The step under which a sleep is remembered: it ends when the row wakes.
    sleep: str = ""
    #: A step, and how often it has been tried so far.
    tries: tuple[str, int] | None = None


def allowed(verb: str, source: str | None, target: str) -> bool:
    """Say whether the table of moves has this one."""
    sources, targets = MOVES[verb]
    return source in sources and target in targets


_NO_LEASE = {"lease_owner": None, "lease_expires_at": None, "lease_pid": None}
_NO_WAIT = {"wait_kind": None, "wait_reason": None, "wait_since": None, "wake_at": None}
#: A row that made progress of another kind waits afresh from its next wait on.
_NOT_WAITED = {"waiting_from": None, "give_up_at": None, "wait_event": None, "waits": 0}
#: A row that has a new step: the next loss does not count, the next wait is the first (PROTOCOL 9, 17).
PROGRESS: dict[str, Any] = _NOT_WAITED | {"progressed": 1}


def into_queued(when: When = After()) -> dict[str, Any]:  # noqa: B008 - an immutable tuple
    """Columns of a queued row: every move into ``queued`` rings anew (PROTOCOL 7)."""
    return {
        "state": QUEUED, **_NO_LEASE, **_NO_WAIT, "publish_at": when, "rings": 0, "deferrals": 0,
        "finished_at": None, "failure_kind": None, "continuation_pending": None,
    }  # fmt: skip


def into_waiting(kind: str, reason: str, wake: When) -> dict[str, Any]:
    """Columns of a waiting row: kind, reason and the time at which it is looked at again."""
    return {
        "state": WAITING, **_NO_LEASE, "wait_kind": kind, "wait_reason": reason, "wait_since": After(),
        "wake_at": wake, "publish_at": None, "finished_at": None, "failure_kind": None,
        "continuation_pending": None,
    }  # fmt: skip


def into_terminal(
    state: str, *, owed: str | None, ring: float = 0.0, failure_kind: str | None = None
) -> dict[str, Any]:
    """Columns of a finished row.

    ``owed`` is the token under which its outcome still has to be told (result, callbacks, chain,
    chord), or None; ``ring`` the seconds until a sweep sees to that if nobody else has (PROTOCOL 13).
    """
    return {
        "state": state, **_NO_LEASE, **_NO_WAIT, "finished_at": After(), "failure_kind": failure_kind,
        "continuation_pending": owed, "publish_at": After(ring) if owed else None, "rings": 0, "deferrals": 0,
    }  # fmt: skip


def due(row: Row, when: When) -> int:
    """Return a time in microseconds, as the clock stood when the row was locked."""
    return when.micros if isinstance(when, At) else row.now + round(when.seconds * 1_000_000)


def fail(row: Row, failure: Failure, token: str, *, owes: bool, ring: float, retry: Retry | None) -> Move:
    """End an attempt that raised: ``waiting`` when it is retried, ``dead`` when not."""
    owed = token if owes else None
    if row.cancel_requested_at is not None:
        return Move("fail", CANCELLED, into_terminal(CANCELLED, owed=owed), "cancelled while running", failure)
    if retry is None:
        changes = into_terminal(DEAD, owed=owed, ring=ring, failure_kind=failure.kind)
        return Move("fail", DEAD, changes, failure.headline, failure)
    failure = dataclasses.replace(failure, retry_at=due(row, retry.wake))
    changes = into_waiting(retry.kind, retry.reason, retry.wake) | _NOT_WAITED | {"retries": retry.retries}
    return Move("fail", WAITING, changes, retry.reason, failure, retry.envelope)


@dataclass(frozen=True, slots=True)
class Wait:
    """What a running task waits for, and until when; ``give_up_after`` counts from the first wait in a row."""

    kind: str
    reason: str
    wake: When
    give_up_after: float | None = None
    event: str | None = None
    sleep: str = ""


def wait(row: Row, asked: Wait, given_up: Failure, *, token: str, owes: bool, ring: float) -> Move:
    """Let a running task wait: no retry is burned, no worker and no message are held.

    Consecutive waits with no retry, sleep, step or replay between are one wait, whatever their reasons say:
    ``give_up_after`` runs from the first of them (PROTOCOL 17). A wait for an event never ends dead: the
    task is woken at its timeout, and decides.
    """
    owed = token if owes else None
    if row.cancel_requested_at is not None:
        return Move("wait", CANCELLED, into_terminal(CANCELLED, owed=owed), "cancelled while running")
    if asked.kind == SLEEP:
        changes = into_waiting(SLEEP, asked.reason, asked.wake) | _NOT_WAITED
        return Move("wait", WAITING, changes, asked.reason, sleep=asked.sleep)
    again = row.waits > 0 and row.wait_event == asked.event
    first = row.waiting_from if again and row.waiting_from is not None else row.now
    give_up_at = None if asked.give_up_after is None else first + round(asked.give_up_after * 1_000_000)
    if give_up_at is not None and give_up_at <= row.now and asked.kind != EVENT:
        changes = into_terminal(DEAD, owed=owed, ring=ring, failure_kind=given_up.kind)
        return Move("fail", DEAD, changes, given_up.message, given_up)
    wake = asked.wake
    if give_up_at is not None and due(row, wake) > give_up_at:
        wake = At(give_up_at)
    changes = into_waiting(asked.kind, asked.reason, wake) | {
        "waiting_from": At(first), "give_up_at": give_up_at, "wait_event": asked.event,
        "waits": row.waits + 1 if again else 1,
    }  # fmt: skip
    return Move("wait", WAITING, changes, asked.reason)


def drain(row: Row, reason: str, *, token: str, owes: bool) -> Move:
    """Hand a running task over to another worker: due at once, no retry and no loss is counted.

    It is no wait of the task's own: how long that has waited for a condition goes on counting.
    """
    if row.cancel_requested_at is not None:
        return cancelled(row, "", token=token, owes=owes)
    return Move("wait", WAITING, into_waiting(DRAIN, reason, After()), reason)


def take_over(row: Row, reason: str, token: str) -> Move:
    """Hand an attempt over in the place of its process, which may live and go on for a while: it is fenced."""
    move = drain(row, reason, token=token, owes=row.owes)
    return dataclasses.replace(move, changes=move.changes | {"claim_token": None})


def cancelled(row: Row, reason: str, *, token: str, owes: bool) -> Move:
    """End a running task that left its body as cancelled; who asked for it has said why."""
    why = row.cancel_reason or reason or "cancelled while running"
    changes = into_terminal(CANCELLED, owed=token if owes else None) | {"cancel_reason": why}
    return Move("cancel", CANCELLED, changes, why)


def hold(sentence: str, until: int | None) -> Move:
    """Hold a queued row back while an operator's pause lasts."""
    wake = At(until) if until is not None else After(PAUSE_INTERVAL)
    return Move("pause", WAITING, into_waiting(PAUSED, sentence, wake), sentence)


def unregistered(task: str) -> Move:
    """Let a queued row wait until a worker appears that knows its task."""
    reason = f"no worker that got its message knows the task {task!r}"
    return Move("park", WAITING, into_waiting(UNREGISTERED, reason, After(UNREGISTERED_INTERVAL)), reason)


def undecodable(failure: Failure) -> Move:
    """End a row whose message no worker can read; there is nobody who could be told."""
    changes = into_terminal(DEAD, owed=None, failure_kind=failure.kind)
    return Move("park", DEAD, changes, failure.headline, failure)


def hand_over(task: str) -> Move:
    """End a row whose task has no ledger any more: Celery runs its message, from now on it is only observed."""
    reason = f"handed over to Celery: {task} is a stock task here"
    changes = into_terminal(CANCELLED, owed=None) | {"claim_token": None, "deadline_at": None, "observed": 1}
    return Move("hand_over", CANCELLED, changes | {"cancel_reason": reason}, reason)


def replace_message(row: Row, envelope: Envelope, wake: When | None, *, token: str, owes: bool) -> Move:
    """Give a row the message of the task that replaces it (``self.replace``), under the same id and key."""
    if row.cancel_requested_at is not None:
        owed = token if owes else None
        return Move("replace", CANCELLED, into_terminal(CANCELLED, owed=owed), "cancelled while running")
    nesting = int(envelope.headers.get("replaced_task_nesting") or 0)
    move = go_on_as(replacement(str(envelope.headers.get("task")), nesting), wake)
    return dataclasses.replace(move, envelope=envelope, changes=move.changes | {"replaces": row.replaces + 1})


def replacement(task: str, nesting: int) -> str:
    """Tell by what a row is replaced; ``nesting`` counts the replacements, so that each is told but once."""
    return f"{REPLACEMENT}{task} (replacement {nesting})"


def go_on_as(reason: str, wake: When | None) -> Move:
    """Let a row go on with the message of what replaces it."""
    if wake is not None:
        return Move("replace", WAITING, into_waiting(SCHEDULED, reason, wake), reason)
    return Move("replace", QUEUED, into_queued(), reason)


def stand_in(row: Row, *, token: str, owes: bool) -> Move:
    """Let a row wait for the canvas that replaces it (``self.replace``): its last part comes under the row's id."""
    if row.cancel_requested_at is not None:
        owed = token if owes else None
        return Move("replace", CANCELLED, into_terminal(CANCELLED, owed=owed), "cancelled while running")
    changes = into_waiting(REPLACED, STAND_IN, After(REPLACED_INTERVAL)) | _NOT_WAITED
    return Move("replace", WAITING, changes | {"replaces": row.replaces + 1, "deadline_at": None}, STAND_IN)


@dataclass(frozen=True, slots=True)
class Retry:
    """When and as what a failed attempt comes back."""

    wake: When
    reason: str
    retries: int
    envelope: Envelope | None = None
    kind: str = RETRY


def succeed_silently(reason: str = "the task raised Ignore") -> Move:
    """End an attempt that raised Celery's Ignore: a success without a result, owed to nobody (PROTOCOL 15)."""
    return Move("succeed", SUCCEEDED, into_terminal(SUCCEEDED, owed=None), reason)


def lose(row: Row, failure: Failure, token: str, *, counted: int = 1) -> Move:
    """End an attempt whose worker or lease is gone.

    Losses are counted apart from retries; at ``max_losses`` in a row, without a new step between, the row is dead,
    kind ``poison`` (PROTOCOL 9). A loss that will run again owes nobody anything (PROTOCOL 13). A mere sign of death is
    no loss: then ``counted`` is 0, or what an earlier one has turned out to be.
    """
    losses = 0 if row.progressed else row.losses + counted
    changed = {"losses": losses, "progressed": 0, "claim_token": None}
    owed = token if row.owes else None
    if row.cancel_requested_at is not None:
        return Move(
            "lose",
            CANCELLED,
            into_terminal(CANCELLED, owed=owed) | changed,
            "cancelled while running",
            failure,
        )
    if row.on_loss == "dead":
        changes = into_terminal(DEAD, owed=owed, failure_kind=failure.kind)
        return Move("lose", DEAD, changes | changed, f'{failure.message}; on_loss="dead"', failure)
    if losses >= row.max_losses:
        changes = into_terminal(DEAD, owed=owed, failure_kind="poison")
        reason = f"lost {losses} times, the limit is max_losses={row.max_losses}"
        return Move("lose", DEAD, changes | changed, reason, failure)
    return Move("lose", QUEUED, into_queued() | changed, failure.message, failure)


def terminate(row: Row, failure: Failure, token: str, reason: str) -> Move:
    """End an attempt whose process was ended on purpose; who asked the ledger for it has said why."""
    why = row.cancel_reason or reason
    changes = into_terminal(CANCELLED, owed=token if row.owes else None)
    return Move("lose", CANCELLED, changes | {"claim_token": None, "cancel_reason": why}, why, failure)


def cancel(row: Row, token: str, reason: str, *, terminate: bool = False) -> Move:
    """Cancel a row that nobody runs; flag one that somebody does, whose worker may be asked to end its process."""
    if row.state == RUNNING:
        flag = {"cancel_requested_at": After(), "cancel_reason": reason, "cancel_terminate": int(terminate)}
        return Move("cancel", RUNNING, flag, reason)
    changes = into_terminal(CANCELLED, owed=token if row.owes else None)
    return Move("cancel", CANCELLED, changes | {"cancel_reason": reason}, reason)


def expire(row: Row, token: str, failure: Failure) -> Move:
    """End a row whose ``expires`` passed before anybody ran it."""
    changes = into_terminal(DEAD, owed=token if row.owes else None, failure_kind="expired")
    return Move("expire", DEAD, changes, failure.message, failure)


def replay(reason: str, wake: When | None = None) -> Move:
    """Bring a dead or cancelled row back: counters of failure reset, ``claims`` never (PROTOCOL 15)."""
    fresh = _NOT_WAITED | {
        "progressed": 0, "losses": 0, "retries": 0, "cancel_requested_at": None, "cancel_reason": None,
        "cancel_terminate": 0,
        "deadline_at": None, "pruned_at": None,
    }  # fmt: skip
    if wake is not None:
        changes = into_waiting(SCHEDULED, "replayed with an ETA", wake) | fresh
        return Move("replay", WAITING, changes, reason)
    return Move("replay", QUEUED, into_queued() | fresh, reason)


def replay_alias(reason: str) -> Move:
    """Let an alias look at its first again: its own body never runs (PROTOCOL 4)."""
    changes = into_waiting(DUPLICATE, "another submission holds the same key", After())
    fresh = {"cancel_requested_at": None, "cancel_reason": None, "deadline_at": None}
    return Move("replay", WAITING, changes | fresh, reason)


def follow(first_state: str, first_failure: str | None, token: str, *, owes: bool, first: str) -> Move:
    """Let an alias take the outcome of the submission that holds its key (PROTOCOL 4)."""
    owed = token if owes else None
    changes = into_terminal(first_state, owed=owed, failure_kind=first_failure)
    return Move("follow", first_state, changes, f"same outcome as {first}")
