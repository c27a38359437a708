"""The ledger as its documentation tells it, in memory: what each verb must answer, and what must stand afterwards.

Written from docs/states.md and docs/protocol.md. It imports nothing of the product, but its author had read that:
what both misread alike would not show. Times are microseconds on a clock that stands still until `now` is changed.
`?` is a token that the ledger makes itself: the machine fills it in as it sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

SECOND = 1_000_000
REPUBLISH, LONGEST, FOLLOW, DEFERRALS = 30 * SECOND, 600 * SECOND, 10 * SECOND, 3
LIVE = ("queued", "running", "waiting")
FENCED = "LeaseLost"
OURS = "?"


class Call(NamedTuple):
    """A submission."""

    task_id: str
    key: str
    owes: bool = False
    awaited: bool = False
    eta: int | None = None
    expires: int | None = None
    max_losses: int = 3
    on_loss: str = "retry"


class Held(NamedTuple):
    """What an attempt proves its claim with."""

    task_id: str
    claims: int
    token: str


@dataclass
class Row:
    """One task; names as in the table, except that rows are known by their task id."""

    task_id: str
    idempotency_key: str
    owes: bool
    max_losses: int
    on_loss: str
    submitted_at: int
    deadline_at: int | None
    state: str = "new"
    duplicate_of: str | None = None
    aliases: int = 0
    envelope_no: int = 1
    claims: int = 0
    losses: int = 0
    retries: int = 0
    progressed: bool = False
    publish_at: int | None = None
    published_at: int | None = None
    publish_count: int = 0
    rings: int = 0
    deferrals: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    claim_token: str | None = None
    lease_owner: str | None = None
    lease_expires_at: int | None = None
    wait_kind: str | None = None
    wake_at: int | None = None
    waits: int = 0
    waiting_from: int | None = None
    give_up_at: int | None = None
    failure_kind: str | None = None
    continuation_pending: str | None = None
    cancel_requested_at: int | None = None
    result: bytes | None = None
    #: (verb, from, to, claim) of its history; (claim, kind) of its failures; step -> claim.
    events: list[tuple[str, str | None, str, int]] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)

    def move(self, verb: str, to: str, **changes: Any) -> None:
        """Enter a state: what belongs to another one is gone."""
        self.events.append((verb, None if self.state == "new" else self.state, to, self.claims))
        self.state = to
        self.lease_owner = self.lease_expires_at = self.wait_kind = self.wake_at = None
        self.publish_at = self.finished_at = self.failure_kind = self.continuation_pending = None
        if to != "waiting":
            self.rings = self.deferrals = 0
        for name, value in changes.items():
            setattr(self, name, value)

    def wait_afresh(self) -> None:
        self.waits, self.waiting_from, self.give_up_at = 0, None, None


class Reference:
    """All rows, and the verbs."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.rows: dict[str, Row] = {}
        #: Aliases that were told to look at once: a hint, which a lost reply may swallow (task id -> time without it).
        self.hinted: dict[str, int | None] = {}

    # Submissions --------------------------------------------------------------------------------------

    def submit(self, call: Call, *, strict: bool = False) -> tuple[str, str]:
        """Return the outcome and the task id that answers."""
        own = self.rows.get(call.task_id)
        if own is not None:
            return ("own" if own.idempotency_key == call.key else "TaskIdConflict"), own.task_id
        holders = [r for r in self.rows.values() if r.idempotency_key == call.key and r.duplicate_of is None]
        if not holders:
            row = self._add(call)
            if call.eta is None:
                self._queue(row, "submit")
                self._rung(row)
            else:
                row.move("submit", "waiting", wait_kind="scheduled", wake_at=self.now + call.eta)
            return "new", call.task_id
        (first,) = holders
        over = first.state not in LIVE
        outcome = "existing"
        if first.state in {"dead", "cancelled"}:
            self._resubmit(first, call)
            outcome = "replayed"
        elif strict:
            return "KeyConflict", first.task_id
        if not call.awaited:
            return outcome, first.task_id
        row = self._add(call)
        wake = self.now if over else self.now + FOLLOW
        row.move("submit", "waiting", wait_kind="duplicate", wake_at=wake, duplicate_of=first.task_id)
        first.aliases += 1
        return "alias", call.task_id

    def _add(self, call: Call) -> Row:
        row = self.rows[call.task_id] = Row(
            call.task_id, call.key, call.owes, call.max_losses, call.on_loss, self.now, call.expires
        )
        return row

    def _resubmit(self, first: Row, call: Call) -> None:
        if call.eta is None:
            self._queue(first, "replay")
            if not call.awaited:
                self._rung(first)
        else:
            first.move("replay", "waiting", wait_kind="scheduled", wake_at=self.now + call.eta)
        self._reset(first)
        first.envelope_no += 1
        first.owes, first.max_losses, first.on_loss = call.owes, call.max_losses, call.on_loss
        first.deadline_at = call.expires

    def _queue(self, row: Row, verb: str) -> None:
        row.move(verb, "queued", publish_at=self.now)

    def _rung(self, row: Row) -> None:
        """The submitter sends the message itself; the sweep, should that not be enough."""
        row.publish_at, row.published_at, row.rings = self.now + REPUBLISH, self.now, 1
        row.publish_count += 1

    def _reset(self, row: Row) -> None:
        row.losses = row.retries = 0
        row.progressed, row.cancel_requested_at, row.deadline_at = False, None, None
        row.wait_afresh()

    def unpublished(self, row: Row, number: int) -> None:
        if row.state == "queued" and row.envelope_no == number and row.rings == 1:
            row.publish_at, row.rings, row.publish_count = self.now, 0, row.publish_count - 1

    # Attempts -----------------------------------------------------------------------------------------

    def claim(self, row: Row, token: str, owner: str, lease: int, number: int | None) -> str:
        if row.state not in LIVE:
            return "owing" if row.continuation_pending else "done"
        if row.state != "queued":
            return "busy"
        if number is not None and number != row.envelope_no:
            return "stale"
        if row.deadline_at is not None and row.deadline_at <= self.now:
            return "expired"
        row.claims += 1
        row.move("claim", "running", claim_token=token, lease_owner=owner, lease_expires_at=self.now + lease)
        row.started_at = self.now
        return "granted"

    def live(self, held: Held) -> bool:
        row = self.rows[held.task_id]
        return row.state == "running" and (row.claims, row.claim_token) == (held.claims, held.token)

    def renew(self, held: Held, lease: int) -> bool | None:
        """Whether its cancellation was asked for; None when the claim is over."""
        if not self.live(held):
            return None
        row = self.rows[held.task_id]
        row.lease_expires_at = self.now + lease
        return row.cancel_requested_at is not None

    def succeed(self, held: Held, result: bytes, grace: int) -> str:
        row = self.rows[held.task_id]
        if not self.live(held):
            return self._own_or_fenced(row, held)
        self._end(row, "succeed", "succeeded", held.token, ring=grace)
        row.result = result
        return row.state

    def fail(self, held: Held, kind: str, ring: int, retry: int | None, *, changed: bool = False) -> str:
        """``retry`` is when it comes back, ``changed`` with another message."""
        row = self.rows[held.task_id]
        if not self.live(held):
            return self._own_or_fenced(row, held)
        row.failures.append((row.claims, kind))
        if row.cancel_requested_at is not None:
            self._end(row, "fail", "cancelled", held.token)
        elif retry is None:
            self._end(row, "fail", "dead", held.token, ring=ring, failure_kind=kind)
        else:
            row.move("fail", "waiting", wait_kind="retry", wake_at=self.now + retry)
            row.wait_afresh()
            row.retries += 1
            row.envelope_no += changed
        return row.state

    def wait(self, held: Held, kind: Literal["condition", "sleep", "drain"], wake: int, give_up: int | None) -> str:
        row = self.rows[held.task_id]
        if not self.live(held):
            return self._own_or_fenced(row, held)
        if row.cancel_requested_at is not None:
            self._end(row, "cancel" if kind == "drain" else "wait", "cancelled", held.token)
            return row.state
        if kind == "condition":
            first = row.waiting_from if row.waits else self.now
            end = None if give_up is None or first is None else first + give_up
            if end is not None and end <= self.now:
                row.failures.append((row.claims, "permanent"))
                self._end(row, "fail", "dead", held.token, ring=REPUBLISH, failure_kind="permanent")
                return row.state
            row.waits, row.waiting_from, row.give_up_at = row.waits + 1, first, end
            row.move("wait", "waiting", wait_kind=kind, wake_at=min(self.now + wake, end or self.now + wake))
        else:
            if kind == "sleep":
                row.wait_afresh()
            row.move("wait", "waiting", wait_kind=kind, wake_at=self.now if kind == "drain" else self.now + wake)
        return row.state

    def leave_cancelled(self, held: Held) -> str:
        """The body was told, and left."""
        row = self.rows[held.task_id]
        if not self.live(held):
            return self._own_or_fenced(row, held)
        self._end(row, "cancel", "cancelled", held.token)
        return row.state

    def step(self, held: Held, name: str) -> str:
        row = self.rows[held.task_id]
        if not self.live(held):
            self._own_or_fenced(row, held)
            return FENCED
        if name not in row.steps:
            row.steps[name] = held.claims
            row.progressed = True
            row.wait_afresh()
        return "done"

    def lose(self, held: Held, kind: str) -> str | None:
        """Its parent knows that the process is gone. By token: parents do not know the number."""
        row = self.rows[held.task_id]
        if row.state != "running" or row.claim_token != held.token:
            return None
        self._lose(row, kind)
        self._wake_aliases(row)
        return row.state

    def _lose(self, row: Row, kind: str) -> None:
        row.losses = 0 if row.progressed else row.losses + 1
        row.progressed = False
        row.failures.append((row.claims, kind))
        if row.cancel_requested_at is not None:
            self._end(row, "lose", "cancelled", hint=False)
        elif row.on_loss == "dead":
            self._end(row, "lose", "dead", failure_kind=kind, hint=False)
        elif row.losses >= row.max_losses:
            self._end(row, "lose", "dead", failure_kind="poison", hint=False)
        else:
            self._queue(row, "lose")
        row.claim_token = None

    def _end(
        self, row: Row, verb: str, to: str, owed: str = OURS, *, ring: int = 0, hint: bool = True, **changes: Any
    ) -> None:
        """Whoever waits for the outcome is owed it, under a fresh token, and rung again in a while."""
        row.move(verb, to, finished_at=self.now, **changes)
        if row.owes:
            row.continuation_pending, row.publish_at = owed, self.now + ring
        if hint:
            self._wake_aliases(row)

    def _wake_aliases(self, first: Row) -> None:
        if first.state in LIVE:
            return
        for row in self.rows.values():
            if row.duplicate_of == first.task_id and row.wait_kind == "duplicate":
                self.hinted[row.task_id] = row.wake_at
                row.wake_at = self.now

    def _own_or_fenced(self, row: Row, held: Held) -> str:
        if row.state != "running" and (row.claims, row.claim_token) == (held.claims, held.token):
            return row.state  # its own, asked again
        row.events.append(("fenced", row.state, row.state, held.claims))
        return FENCED

    # The sweep ----------------------------------------------------------------------------------------

    def release(self) -> None:
        for row in self._due("wake_at"):
            if row.state == "waiting" and row.wait_kind != "duplicate":
                self._queue(row, "release")

    def expire_leases(self) -> list[str]:
        lost = self._due("lease_expires_at")
        for row in lost:
            self._lose(row, "lease_expired")
        return [row.task_id for row in lost]

    def expire_deadlines(self) -> None:
        for row in self._due("deadline_at"):
            if row.state in {"queued", "waiting"}:
                self._expire(row)

    def _expire(self, row: Row) -> None:
        row.failures.append((row.claims, "expired"))
        self._end(row, "expire", "dead", failure_kind="expired", hint=False)

    def follow(self) -> None:
        for row in self._due("wake_at"):
            if row.wait_kind != "duplicate" or row.duplicate_of is None:
                continue
            first = self.rows[row.duplicate_of]
            if first.state in LIVE:
                row.wake_at = self.now + FOLLOW
                continue
            if first.state == "dead":
                row.failures.append(first.failures[-1])
            self._end(row, "follow", first.state, failure_kind=first.failure_kind, hint=False)
            row.result = first.result

    def take_rings(self, *, busy: bool) -> list[str]:
        """Return the task ids whose message is to be sent; ``busy``: the queue holds messages."""
        sent = []
        for row in self._due("publish_at"):
            row.publish_at = self.now + min(LONGEST, REPUBLISH * 2**row.rings)
            if busy and row.rings and row.deferrals < DEFERRALS:
                row.deferrals += 1
                continue
            row.rings, row.deferrals, row.published_at = row.rings + 1, 0, self.now
            row.publish_count += 1
            sent.append(row.task_id)
        return sent

    def ring_again(self, rows: Collection[Row]) -> None:
        """The broker did not take these."""
        for row in rows:
            if row.publish_at is not None and row.rings:
                row.publish_at, row.rings, row.publish_count = self.now, row.rings - 1, row.publish_count - 1

    def tell(self, tokens: Mapping[str, str]) -> int:
        told = [r for r in self.rows.values() if r.continuation_pending and r.continuation_pending in tokens.values()]
        for row in told:
            row.continuation_pending = row.publish_at = None
        return len(told)

    def _due(self, column: str) -> list[Row]:
        return [r for r in self.rows.values() if getattr(r, column) is not None and getattr(r, column) <= self.now]

    # Operators ----------------------------------------------------------------------------------------

    def cancel(self, row: Row) -> str:
        if row.state not in LIVE or row.cancel_requested_at is not None:
            return row.state
        self._cancel(row, hint=True)
        return row.state

    def _cancel(self, row: Row, *, hint: bool) -> None:
        if row.state == "running":  # a flag
            row.events.append(("cancel", "running", "running", row.claims))
            row.cancel_requested_at = self.now
        else:
            self._end(row, "cancel", "cancelled", hint=hint)

    def revoke(self, row: Row, token: str, *, expired: bool) -> str:
        """Celery's own decision about a delivery."""
        if row.state not in LIVE:
            return row.state
        if row.state == "running" and row.claim_token == token:
            row.failures.append((row.claims, "worker_lost"))
            self._end(row, "lose", "cancelled", hint=False)
            row.claim_token = None
        elif expired:
            if row.state != "running":
                self._expire(row)
        elif row.cancel_requested_at is None:
            self._cancel(row, hint=False)
        return row.state

    def replay(self, row: Row, *, fresh: bool) -> bool:
        if row.state not in {"dead", "cancelled"}:
            return False
        if fresh:
            row.steps.clear()
        if row.duplicate_of is None:
            self._queue(row, "replay")
            self._reset(row)
        else:  # it looks at its first again: its own body never runs
            row.move("replay", "waiting", wait_kind="duplicate", wake_at=self.now)
            row.cancel_requested_at = row.deadline_at = None
        return True
