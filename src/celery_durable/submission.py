"""From ``apply_async`` to a row and a rung doorbell."""

from __future__ import annotations

import inspect
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery import states as celery_states
from celery.backends.base import DisabledBackend
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.serialization import dumps, loads

from celery_durable import contents, keys, redaction, shortcut, transactions
from celery_durable.capture import checked_size, moment, uncontinued
from celery_durable.errors import LedgerUnavailable
from celery_durable.outbox import GivenPublisher
from celery_durable.records import Submission
from celery_durable.states import After, At
from celery_durable.steps import Content
from celery_durable.wiring import plugin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery import Celery
    from kombu import Producer

    from celery_durable.ledger import Submitted
    from celery_durable.outbox import Publisher
    from celery_durable.records import Envelope
    from celery_durable.task import DurableTask
    from celery_durable.wiring import Plugin

logger = logging.getLogger(__name__)

#: How many values of a call's arguments are looked at before it is taken to hold secrets.
MAX_LOOKED_AT = 2_000


class Collapsed(Exception):
    """The submission met an earlier one: no message, no sent-signal, no trail."""

    def __init__(self, submitted: Submitted) -> None:
        """Carry the row that was met."""
        super().__init__(submitted.task_id)
        self.submitted = submitted


def wake_of(app: Celery, countdown: float | None, eta: Any) -> After | At | None:
    """Turn Celery's countdown or ETA into a time for the ledger; None is "now"."""
    if eta:
        eta = maybe_iso8601(eta)
        return At(round(maybe_make_aware(eta, app.timezone).timestamp() * 1_000_000))
    return After(max(0.0, float(countdown))) if countdown else None


def owes(app: Celery, embed: Mapping[str, Any], group: object, *, ignore_result: bool) -> bool:
    """Say whether anybody has to be told the outcome: a result backend, callbacks, a chain, a chord.

    The backend that reads the ledger need not be told.
    """
    waits_for = ("callbacks", "errbacks", "chain", "chord")
    if any(embed.get(name) for name in waits_for):
        return True
    if getattr(app.backend, "reads_the_ledger", False):
        return False
    return bool(group) or (not ignore_result and not isinstance(app.backend, DisabledBackend))


@dataclass(frozen=True, slots=True)
class Call:
    """What one call says beyond its message: key, whether the caller chose the task id, when, by which broker."""

    key: object = None
    id_chosen: bool = True
    wake: After | At | None = None
    broker: str | None = None


def compose(
    task: DurableTask, envelope: Envelope, body: Any, call: Call = Call(), *, template: object = None
) -> Submission:
    """Make the submission of a captured message; ``template`` is a key template in place of the task's own.

    Raises:
        IdempotencyKeyError: the key or its template cannot be used.
        PayloadTooLarge: the message exceeds ``durable_max_message_bytes``.
    """
    app = task._get_app()
    side = plugin(app)
    headers = envelope.headers
    args, kwargs, embed = body if isinstance(body, tuple | list) else (body["args"], body["kwargs"], body)
    task_id = str(headers["id"])
    keys.checked(task.name, task_id)
    checked_size(task.name, envelope, side.settings.max_message_bytes)
    chained = any((embed or {}).get(n) for n in ("callbacks", "errbacks", "chain", "chord"))
    ignored = ignores_result(task, headers)
    envelope = sealed(task, envelope, args, kwargs, embed)
    submission = Submission(
        task_id=task_id,
        task=task.name,
        key=key_of(task, task_id, args, kwargs, call.key, template=template),
        envelope=envelope,
        queue="",
        broker=call.broker or side.broker,
        priority=envelope.properties.get("priority"),
        root_id=headers.get("root_id"),
        parent_id=headers.get("parent_id"),
        wake=call.wake,
        deadline_at=moment(headers.get("expires")),
        owes=owes(app, embed or {}, headers.get("group"), ignore_result=ignored),
        awaited=call.id_chosen or chained or bool(headers.get("group")),
        max_losses=task.max_losses or side.settings.max_losses,
        on_loss=task.on_loss,
        retries=int(headers.get("retries") or 0),
        nesting=int(headers.get("replaced_task_nesting") or 0),
        submitted_by=str(headers.get("origin") or ""),
    )
    if submission.key == task_id or not (chained or headers.get("group")):
        return submission
    alone = replace(
        submission,
        envelope=uncontinued(envelope, (args, kwargs, embed)),
        owes=owes(app, {}, None, ignore_result=ignored),
    )
    return replace(submission, alone=alone)


def sealed(
    task: DurableTask, envelope: Envelope, args: Sequence[Any], kwargs: Mapping[str, Any], embed: object = None
) -> Envelope:
    """Keep secrets among the arguments from being readable: in headers, logs and events, and in the ledger.

    ``embed`` is what the message carries of tasks that follow, with their arguments.
    """
    if not touchy(task, args, kwargs):
        return envelope.sealed() if _followers_touchy(task._get_app(), embed) else envelope
    names = redaction.arguments(signature_of(task), args, kwargs, task.redact)
    argsrepr, kwargsrepr = redaction.shown(*names)
    headers = envelope.headers | {"argsrepr": argsrepr, "kwargsrepr": kwargsrepr}
    return replace(envelope, headers=headers).sealed()


def touchy(task: DurableTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Say whether a call may hold secrets, by the names of its parameters and of whatever is nested in it."""
    return _touchy_by_itself(task) or _holds_suspects([*args, kwargs])


def _touchy_by_itself(task: Any) -> bool:
    return bool(getattr(task, "redact", ())) or any(_suspect(name) for name in signature_of(task).parameters)


def _followers_touchy(app: Celery, embed: object) -> bool:
    """Say the same of the callbacks, chain and chord in a message."""
    if not isinstance(embed, dict) or not any(embed.values()):
        return False
    followers = [embed.get(name) for name in ("callbacks", "errbacks", "chain", "chord")]
    return _holds_suspects(followers, app)


def _holds_suspects(heap: list[Any], app: Celery | None = None) -> bool:
    """Look for suspect names in nested values; with an app, for signatures of its touchy tasks as well."""
    for _ in range(MAX_LOOKED_AT):
        if not heap:
            return False
        value = heap.pop()
        if isinstance(value, dict):
            if any(_suspect(str(key)) for key in value) or (app is not None and _signs_for_touchy(app, value)):
                return True
            heap.extend(value.values())
        elif isinstance(value, list | tuple):
            heap.extend(value)
        elif not isinstance(value, str | int | float | None):
            return True  # an object of another serializer: what it holds is not known by name
    return True


def _signs_for_touchy(app: Celery, value: dict[Any, Any]) -> bool:
    """Say whether a mapping is the signature of a task whose parameters hold secrets."""
    name = value.get("task")
    task = app.tasks.get(name) if isinstance(name, str) and "args" in value else None
    return task is not None and _touchy_by_itself(task)


@lru_cache(maxsize=4096)
def _suspect(name: str) -> bool:
    return redaction.suspect(name)


def ignores_result(task: DurableTask, headers: Mapping[str, Any]) -> bool:
    """Say whether this call's result is thrown away: the message decides over the task."""
    said = headers.get("ignore_result")
    return bool(task.ignore_result if said is None else said)


def key_of(
    task: DurableTask, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: object = None, *,
    template: Any = None,
) -> str:  # fmt: skip
    """Return the idempotency key of a call: given by the caller, made by the task, or the task id."""
    if given is not None:
        return keys.checked(task.name, given)
    template = template_of(task) if template is None else template
    if template is None:
        return task_id
    args, kwargs = _as_delivered(task, args, kwargs)
    if callable(template) and next(iter(inspect.signature(template).parameters), "") == "self":
        template = template.__get__(task)
    return keys.render(task.name, template, signature_of(task), args, kwargs)


def template_of(task: DurableTask) -> Any:
    """Return a task's own key template, which may be a function."""
    found = inspect.getattr_static(type(task), "idempotency_key", None)
    return found.__func__ if isinstance(found, staticmethod) else found


def arguments(task: DurableTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of a call, defaults included."""
    bound = signature_of(task).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def signature_of(task: DurableTask) -> inspect.Signature:
    """Return the signature of a task's calls, without ``self``."""
    found: inspect.Signature | None = task.__dict__.get("_durable_signature")
    if found is None:
        found = inspect.signature(getattr(task, "_orig_run", None) or task.run)
        task.__dict__["_durable_signature"] = found
    return found


def _as_delivered(task: DurableTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the arguments as a worker will see them, so that a key is the same on both sides."""
    if all(type(v) in contents.PLAIN for v in (*args, *kwargs.values())):  # an Enum may derive from str
        return list(args), dict(kwargs)
    serializer = task.serializer or task._get_app().conf.task_serializer
    content_type, encoding, data = dumps((args, kwargs), serializer=serializer)
    seen = loads(data, content_type, encoding, accept=[content_type])
    return seen[0], seen[1]


def write_and_ring(
    side: Plugin, sub: Submission, *, on_conflict: str = "return", producer: Producer | None = None
) -> None:
    """Write the row, then ring; in the block of a transaction its commit rings.

    A broker that is down costs nothing but a later ring.

    Raises:
        Collapsed: the key or the id was there already.
        LedgerUnavailable: the database did not answer; nothing was published.
    """
    write_in(transactions.current(side, sub.task), side, sub, on_conflict=on_conflict, producer=producer)


def write_in(
    block: transactions.Block | None, side: Plugin, sub: Submission, *, on_conflict: str,
    producer: Producer | None = None,
) -> None:  # fmt: skip
    """Do the same in this block, or in no transaction but its own."""
    if block is not None:
        submitted = block.submit(sub, on_conflict=on_conflict)
    else:
        submitted = _write(side, sub, on_conflict)
        if submitted.publish:
            publisher = side.publisher if producer is None else GivenPublisher(side.app, side.ledger.uuid, producer)
            envelope = sub.envelope if submitted.task_id == sub.task_id else sub.envelope.readdressed(submitted.task_id)
            ring(side, publisher, submitted, envelope, sub.deadline_at)
    if submitted.outcome not in {"new", "alias", "replacing"}:
        raise Collapsed(submitted)


def _write(side: Plugin, sub: Submission, on_conflict: str) -> Submitted:
    try:
        return shortcut.submit(side, sub, on_conflict)
    except LedgerUnavailable as exc:
        again = f"{exc} Nothing was published; submit again with task_id={sub.task_id!r} when it is back."
        raise LedgerUnavailable(again, task_id=sub.task_id, outcome=exc.outcome) from exc


def ring(side: Plugin, publisher: Publisher, submitted: Submitted, envelope: Envelope, deadline_at: int | None) -> None:
    """Try the broker once; tell the sweep when that failed."""
    try:
        if not publisher.down:
            publisher.prepare_reply(submitted.task_id)
            publisher.ring(envelope, submitted.task_id, submitted.envelope_no, deadline_at=deadline_at)
            return
    except Exception as exc:  # noqa: BLE001 - whatever the transport raises, the row is safe
        logger.warning(
            "The broker did not take task %s (%s: %s); it is recorded and will be sent by a worker's sweep.",
            submitted.task_id, type(exc).__name__, exc,
        )  # fmt: skip
    with suppress(Exception):  # the row is due by itself after durable_republish_after
        side.ledger.unpublished(submitted.row_id, submitted.envelope_no)


def unsent(side: Plugin, row_ids: Sequence[int]) -> None:
    """Tell the sweep of rows whose messages the broker did not take."""
    with suppress(Exception):  # as above
        side.ledger.ring_again(row_ids, at_once=True)


def restore_result(app: Celery, submitted: Submitted) -> None:
    """Store a succeeded row's result again: stock backends forget theirs after a while (PROTOCOL 4)."""
    if submitted.state != "succeeded" or submitted.result_type is None:
        return
    if isinstance(app.backend, DisabledBackend) or getattr(app.backend, "reads_the_ledger", False):
        return
    with suppress(Exception):  # the ledger has it; the backend is the user's convenience
        if app.backend.get_task_meta(submitted.task_id)["status"] not in celery_states.READY_STATES:
            app.backend.store_result(submitted.task_id, decoded(submitted), celery_states.SUCCESS)


def decoded(row: Any) -> Any:
    """Decode a stored result; it was encoded by this app's own result serializer."""
    if row.result_type is None:
        return None
    return contents.decoded(Content(row.result, row.result_type))


__all__ = ["Call", "Collapsed", "compose", "decoded", "owes", "restore_result", "wake_of", "write_and_ring", "write_in"]
