"""What the ledger tells: frozen views of its rows, and the JSON that tools read."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery_durable.sealing import is_sealed, masked, new_seal

if TYPE_CHECKING:
    from celery_durable.states import After, At


#: Celery's JSON serializer, the only result encoding that can be shown without trusting its bytes.
JSON_CONTENT_TYPE = "application/json"
#: What is shown of a result that repeats a secret.
HIDDEN = "[redacted]"


def isotime(micros: int | None) -> str | None:
    """Microseconds since the epoch as ISO 8601 UTC."""
    if micros is None:
        return None
    return datetime.fromtimestamp(micros / 1_000_000, timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A task message as the broker gets it: enough to send the same bytes again.

    ``declare`` holds plain descriptions of the queues to declare first.
    """

    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    exchange: str
    routing_key: str
    declare: tuple[dict[str, Any], ...] = ()
    seal: str = ""

    def sealed(self) -> Envelope:
        """Return the message with its body to be stored unreadable: it holds what the task calls a secret.

        This keeps secrets out of dumps, logs and screens. It is no encryption: who has the row can undo it.
        """
        return self if self.seal else replace(self, seal=new_seal())

    def stored_body(self) -> bytes:
        """Return the body as the ledger keeps it."""
        return masked(self.body, self.seal) if self.seal else self.body

    def meta(self) -> str:
        """All but the body, as JSON."""
        return json.dumps(
            {
                "content_type": self.content_type,
                "content_encoding": self.content_encoding,
                "headers": self.headers,
                "properties": self.properties,
                "exchange": self.exchange,
                "routing_key": self.routing_key,
                "declare": list(self.declare),
                "seal": self.seal,
            },
            default=str,
            separators=(",", ":"),
        )

    def readdressed(self, task_id: str) -> Envelope:
        """Return the same message under another task id."""
        headers = self.headers | {"id": task_id}
        if self.headers.get("root_id") == self.headers.get("id"):
            headers["root_id"] = task_id
        return replace(self, headers=headers, properties=self.properties | {"correlation_id": task_id})

    @classmethod
    def load(cls, meta: str, body: bytes) -> Envelope:
        """Rebuild an envelope from its two columns."""
        fields = json.loads(meta)
        fields["declare"] = tuple(fields["declare"])
        seal = fields.get("seal", "")
        return cls(body=masked(bytes(body), seal) if seal else bytes(body), **fields)


@dataclass(frozen=True, slots=True)
class Submission:
    """One call of ``apply_async``, ready to be written."""

    task_id: str
    task: str
    key: str
    envelope: Envelope
    queue: str
    broker: str
    priority: int | None = None
    root_id: str | None = None
    parent_id: str | None = None
    wake: After | At | None = None
    deadline_at: int | None = None
    owes: bool = False
    awaited: bool = False
    max_losses: int = 3
    on_loss: str = "retry"
    retries: int = 0
    submitted_by: str = ""
    #: How many replacements (``self.replace``) came before this message.
    nesting: int = 0
    #: ``envelope.meta()`` where somebody has it already, else "".
    meta: str = ""
    #: The same call without its callbacks, chain and chord, where it has any: when it brings a dead row back,
    #: its alias drives those.
    alone: Submission | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A live claim: what every later write of this attempt has to prove."""

    row_id: int
    task_id: str
    claims: int
    token: str
    retries: int = 0
    losses: int = 0
    owes: bool = False
    #: How often another task has taken this one's place (``self.replace``).
    replaces: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed or lost attempt."""

    kind: str
    exception: str
    message: str
    traceback: str = ""
    fingerprint: str = ""
    retryable: bool = False
    retry_at: int | None = None
    worker: str = ""
    pid: int | None = None
    claim: int = 0
    occurred_at: int | None = None
    host: str | None = None
    verdict: str | None = None
    causes: str | None = None
    arguments: str | None = None
    runtime_micros: int | None = None
    memory_bytes: int | None = None
    code_version: str | None = None
    #: What the exception was made with, as JSON, so that a result backend can make it again.
    exception_args: str | None = None

    @property
    def headline(self) -> str:
        """``Type: message`` in one line."""
        name = self.exception.rpartition(".")[2]
        first = self.message.strip().partition("\n")[0]
        return f"{name}: {first}" if first else name

    def as_json(self) -> dict[str, Any]:
        """Return the contract's JSON form of a failure."""
        return {
            "claim": self.claim, "kind": self.kind, "exception": self.exception, "message": self.message,
            "traceback": self.traceback, "fingerprint": self.fingerprint, "retryable": self.retryable,
            "retry_at": isotime(self.retry_at), "worker": self.worker, "pid": self.pid,
            "occurred_at": isotime(self.occurred_at), "host": self.host, "verdict": self.verdict,
            "causes": json.loads(self.causes) if self.causes else [], "arguments": self.arguments,
            "runtime": None if self.runtime_micros is None else self.runtime_micros / 1e6,
            "memory_bytes": self.memory_bytes, "code_version": self.code_version,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the history."""

    verb: str
    at: int
    source: str | None
    target: str
    claim: int
    actor: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the contract's JSON form of an event."""
        return {
            "verb": self.verb, "at": isotime(self.at), "from": self.source, "to": self.target,
            "claim": self.claim, "actor": self.actor, "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """One task as the ledger knows it; times are microseconds since the epoch, on the database's clock."""

    id: int
    task_id: str
    task: str
    key: str
    state: str
    queue: str
    priority: int | None
    root_id: str | None
    parent_id: str | None
    claims: int
    losses: int
    max_losses: int
    retries: int
    publish_count: int
    envelope_no: int
    submitted_at: int
    submitted_by: str
    started_at: int | None
    finished_at: int | None
    lease_owner: str | None
    lease_expires_at: int | None
    lease_pid: int | None
    claim_token: str | None
    wait_kind: str | None
    wait_reason: str | None
    wait_since: int | None
    wake_at: int | None
    wait_event: str | None
    waits: int
    waiting_from: int | None
    give_up_at: int | None
    deadline_at: int | None
    publish_at: int | None
    published_at: int | None
    continuation_pending: str | None
    duplicate_of: int | None
    cancel_requested_at: int | None
    cancel_reason: str | None
    failure_kind: str | None
    result: bytes | None
    result_type: str | None
    owes: bool
    broker: str
    now: int
    observed: bool = False
    progress: str | None = None
    progress_at: int | None = None
    #: When its message, result, steps and history were forgotten.
    pruned_at: int | None = None
    failure: Failure | None = field(default=None)

    def decoded_result(self) -> Any:
        """Return the result as it may be shown: the JSON value, or a description where it is none, or is secret."""
        if self.result is None:
            return None
        if is_sealed(self.result_type or ""):
            return HIDDEN
        if self.result_type == JSON_CONTENT_TYPE:
            return json.loads(self.result)
        return {"content_type": self.result_type, "base64": base64.b64encode(self.result).decode()}

    def decoded_progress(self) -> dict[str, Any] | None:
        """Return how far the task said it is, and when: ``done``, ``total``, ``note``, ``at``."""
        return None if self.progress is None else json.loads(self.progress) | {"at": isotime(self.progress_at)}

    def as_json(self) -> dict[str, Any]:
        """Return the contract's JSON form of a record."""
        lease = wait = None
        if self.lease_owner is not None:
            lease = {"owner": self.lease_owner, "expires_at": isotime(self.lease_expires_at)}
        if self.wait_kind is not None:
            wait = {
                "kind": self.wait_kind, "reason": self.wait_reason,
                "since": isotime(self.wait_since), "wake_at": isotime(self.wake_at), "waits": self.waits,
                "give_up_at": isotime(self.give_up_at),
            }  # fmt: skip
        return {
            "id": self.id, "task_id": self.task_id, "task": self.task, "key": self.key, "state": self.state,
            "queue": self.queue, "priority": self.priority, "root_id": self.root_id, "parent_id": self.parent_id,
            "claims": self.claims, "losses": self.losses, "retries": self.retries,
            "publish_count": self.publish_count, "submitted_at": isotime(self.submitted_at),
            "submitted_by": self.submitted_by, "started_at": isotime(self.started_at),
            "finished_at": isotime(self.finished_at), "lease": lease, "wait": wait,
            "failure": self.failure.as_json() if self.failure else None,
            "result": self.decoded_result(), "progress": self.decoded_progress(), "observed": self.observed,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pause:
    """A task or queue that an operator holds back; times in microseconds."""

    kind: str
    target: str
    reason: str
    actor: str
    since: int
    until: int | None
    now: int

    @property
    def sentence(self) -> str:
        """Who holds what back, and why."""
        return f"{self.kind} '{self.target}' is paused by {self.actor}: {self.reason}"

    def concerns(self, task: str, queue: str) -> bool:
        """Whether it holds back a task of this name in this queue."""
        return self.target == (task if self.kind == "task" else queue)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form of a pause."""
        return {
            "kind": self.kind, "target": self.target, "reason": self.reason, "actor": self.actor,
            "since": isotime(self.since), "until": isotime(self.until),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker as it last reported itself."""

    id: str
    hostname: str
    pid: int
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    broker: str
    started_at: int
    heartbeat_at: int
    phase: str
    running: int
    lease: float
    now: int
    pool: str = ""
    #: Number of the lock by which it shows that it lives; None when it holds none.
    lock: int | None = None

    @property
    def live(self) -> bool:
        """Whether it reported itself within two leases, and nobody has seen since that it is gone."""
        return self.now - self.heartbeat_at <= 2 * self.lease * 1_000_000 and self.phase not in {"stopped", "gone"}

    def as_json(self) -> dict[str, Any]:
        """Return the contract's JSON form of a worker."""
        return {
            "id": self.id, "hostname": self.hostname, "pid": self.pid, "queues": list(self.queues),
            "started_at": isotime(self.started_at), "heartbeat_at": isotime(self.heartbeat_at),
            "phase": self.phase if self.live else "gone", "running": self.running, "pool": self.pool,
        }  # fmt: skip
