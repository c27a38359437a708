"""Observation of stock tasks (``durable_observe``): what Celery's signals tell of them becomes rows.

Rows without any promise: they are listed, grouped and explained like the others, and nothing acts on them. Nothing here
raises into Celery, and nothing here waits.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import weakref
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import current_app, signals

from celery_durable import classify, failures, observer, redaction, states, submission
from celery_durable.errors import DurableError
from celery_durable.keys import MAX_LENGTH
from celery_durable.ledger import Sighting
from celery_durable.outbox import HEADER
from celery_durable.redaction_frames import secrets_in
from celery_durable.task import DurableTask
from celery_durable.wiring import Plugin, plugin, unwrapped

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable

    from celery import Celery

    from celery_durable.observer import Observer
    from celery_durable.records import Failure

logger = logging.getLogger(__name__)

#: Deaths of a process: kinds that no classification of the exception could tell.
_DEATHS = ((WorkerLostError, "worker_lost"), (Terminated, "worker_lost"), (TimeLimitExceeded, "timeout"))

_apps: weakref.WeakSet[Celery] = weakref.WeakSet()


def install(app: Celery) -> None:
    """Let the ledger observe an app's stock tasks, as ``durable_observe`` says; call it where the app is made.

    Needed in publishers and workers alike where no task is a ``DurableTask``. It adds signal receivers and nothing
    else, once, however often it is called; the setting is read at the first task, and the ledger is opened then.
    """
    _apps.add(unwrapped(app))
    for signal, receiver in _RECEIVERS:
        signal.connect(receiver, weak=False, dispatch_uid=f"celery-durable-{receiver.__name__}")


def observer_of(app: Celery) -> Observer:
    """Return what carries an app's sightings to the ledger."""
    found: Observer = plugin(app).observer
    return found


def _quietly(receiver: Callable[..., None]) -> Callable[..., None]:
    """Keep what goes wrong in a receiver from Celery's log of every task."""

    @functools.wraps(receiver)
    def receive(*args: Any, **kwargs: Any) -> None:
        try:
            receiver(*args, **kwargs)
        except DurableError as exc:
            _once(str(exc))
        except Exception:
            logger.debug("a task could not be observed", exc_info=True)

    return receive


@functools.lru_cache(maxsize=100)
def _once(message: str) -> None:
    logger.warning("celery-durable observes nothing: %s", message)


# Which tasks ----------------------------------------------------------------------------------------------


def _side_of_name(name: str) -> Plugin | None:
    """Return the app that publishes a task: the signal does not say."""
    if not _apps:
        return None
    current = unwrapped(current_app)
    ranked = sorted(_apps, key=lambda app: (name not in app._tasks, app is not current))  # noqa: SLF001 - not finalized
    return plugin(ranked[0])


def _side_of_task(task: Any) -> Plugin | None:
    app = unwrapped(task.app)
    return plugin(app) if app in _apps else None


def _wanted(side: Plugin | None, name: Any, task: Any = None) -> bool:
    """Say whether a task is stock, and to be observed."""
    if side is None or not isinstance(name, str) or isinstance(task, DurableTask):
        return False
    globs = side.settings.observe
    if name.startswith("celery."):  # Celery's own: only when asked for by name
        globs = tuple(g for g in globs if g.startswith("celery."))
    return any(fnmatchcase(name, glob) for glob in globs)


def _saw(side: Plugin, **seen: Any) -> None:
    seen = {k: _fit(v) if isinstance(v, str) and k != "reason" else v for k, v in seen.items()}
    if seen["task_id"]:
        side.observer.saw(Sighting(broker=side.broker, pid=os.getpid(), **seen))


def _fit(text: str) -> str:
    return failures.storable(text)[:MAX_LENGTH]


# Receivers ------------------------------------------------------------------------------------------------


@_quietly
def published(sender: Any = None, headers: Any = None, body: Any = None, routing_key: Any = None, **_: Any) -> None:
    """A message was sent."""
    fields = headers if headers and "id" in headers else body
    side = _side_of_name(str(sender))
    if side is None or not isinstance(fields, Mapping) or HEADER in (headers or ()):
        return
    if not _wanted(side, sender, side.app._tasks.get(sender)):  # noqa: SLF001 - without finalizing the app
        return
    eta = fields.get("eta")
    _saw(
        side, task_id=str(fields["id"]), task=sender, state=states.QUEUED, queue=str(routing_key or ""),
        reason=f"not before {eta}" if eta else "", root_id=_text(fields.get("root_id")),
        parent_id=_text(fields.get("parent_id")), retries=int(fields.get("retries") or 0),
        submitted_by=str(fields.get("origin") or ""),
    )  # fmt: skip


@_quietly
def began(sender: Any = None, task_id: Any = None, **_: Any) -> None:
    """A task is about to run."""
    _of_task(sender, sender.request, task_id, states.RUNNING)


@_quietly
def succeeded(sender: Any = None, **_: Any) -> None:
    """A task returned."""
    _of_task(sender, sender.request, sender.request.id, states.SUCCEEDED)


@_quietly
def failed(
    sender: Any = None, task_id: Any = None, exception: Any = None, args: Any = None, kwargs: Any = None,
    einfo: Any = None, **_: Any,
) -> None:  # fmt: skip
    """A task raised, or its process died."""
    if _observed(sender):
        failure = _failure(sender, exception, args, kwargs, einfo)
        _of_task(sender, sender.request, task_id, states.DEAD, failure.headline, failure)


@_quietly
def retried(sender: Any = None, request: Any = None, reason: Any = None, einfo: Any = None, **_: Any) -> None:
    """A task asked to be run again."""
    if not _observed(sender):
        return
    cause = getattr(reason, "exc", None) or reason
    failure = _failure(sender, cause, request.args, request.kwargs, einfo) if isinstance(cause, Exception) else None
    tried = (request.retries or 0) + 1
    why = f"retry {tried} {getattr(reason, 'humanize', str)()} after {failure.headline if failure else cause}"
    kept = None if failure is None else replace(failure, retryable=True)
    _of_task(sender, request, request.id, states.WAITING, why, kept, retries=tried)


@_quietly
def revoked(sender: Any = None, request: Any = None, terminated: Any = None, expired: Any = None, **_: Any) -> None:
    """A task was revoked, or its time to start had passed."""
    if not _observed(sender):
        return
    if expired:
        name = "celery.exceptions.TaskRevokedError"
        late = failures.loss("expired", name, "expired before it was run", worker=_host(request), pid=None, claim=0)
        _of_task(sender, request, request.id, states.DEAD, late.message, replace(late, retryable=False))
        return
    reason = "revoked while it ran" if terminated else "revoked before it ran"
    _of_task(sender, request, request.id, states.CANCELLED, reason)


@_quietly
def unknown(sender: Any = None, message: Any = None, name: Any = None, id: Any = None, **_: Any) -> None:
    """A worker got a message of a task that it does not know, and rejected it."""
    _rejected(sender, message, str(id), str(name), "unregistered", "celery.exceptions.NotRegistered", str(name))


@_quietly
def rejected(sender: Any = None, message: Any = None, exc: Any = None, **_: Any) -> None:
    """A worker got a message that it cannot read, and rejected it."""
    headers = message.headers if isinstance(message.headers, Mapping) else {}
    given, name = headers.get("id"), headers.get("task")
    what = "celery_durable.Undecodable" if exc is None else failures.qualified_name(type(exc))
    task_id = given if isinstance(given, str) and given else str(uuid4())
    told = str(exc)[:200] if exc is not None else "the worker does not know what this message is"
    _rejected(sender, message, task_id, name if isinstance(name, str) else "<unknown>", "undecodable", what, told)


def _rejected(  # noqa: PLR0913, PLR0917 - one sentence about a message
    consumer: Any, message: Any, task_id: str, name: str, kind: str, exception: str, told: str
) -> None:
    side = plugin(consumer.app) if unwrapped(consumer.app) in _apps else None
    if side is None or side.keeper is not None or not side.settings.observe:
        return  # with a keeper the worker's intake keeps the message itself
    if name != "<unknown>" and not _wanted(side, name):
        return
    info = message.delivery_info if isinstance(message.delivery_info, Mapping) else {}
    text = redaction.scrub_patterns(failures.storable(told))
    failure = failures.loss(kind, exception, text, worker=str(consumer.hostname), pid=os.getpid(), claim=0)
    _saw(
        side, task_id=task_id, task=name, state=states.DEAD, reason=text, queue=str(info.get("routing_key") or ""),
        worker=str(consumer.hostname), failure=replace(failure, retryable=False),
    )  # fmt: skip


# What they have in common -----------------------------------------------------------------------------------


def _observed(task: Any) -> bool:
    return _wanted(_side_of_task(task), task.name, task)


def _of_task(  # noqa: PLR0913, PLR0917 - what is seen of a task
    task: Any, request: Any, task_id: Any, state: str, reason: str = "", failure: Failure | None = None,
    retries: int | None = None,
) -> None:  # fmt: skip
    side = _side_of_task(task)
    if side is None or not _wanted(side, task.name, task) or request.is_eager:
        return
    info = request.delivery_info or {}
    _saw(
        side, task_id=str(task_id or ""), task=task.name, state=state, reason=reason, failure=failure,
        queue=str(info.get("routing_key") or ""), priority=info.get("priority"), root_id=_text(request.root_id),
        parent_id=_text(request.parent_id), retries=(request.retries or 0) if retries is None else retries,
        worker=_host(request), submitted_by=str(getattr(request, "origin", None) or ""),
    )  # fmt: skip


def _failure(task: Any, exc: BaseException, args: Any, kwargs: Any, einfo: Any) -> Failure:
    """Describe a failure as that of a durable task, its secrets left out."""
    side = plugin(task.app)
    rules = classify.Rules(
        own=None,
        retried=tuple(getattr(task, "autoretry_for", ()) or ()),
        unretried=tuple(getattr(task, "dont_autoretry_for", ()) or ()),
        expected=tuple(task.throws or ()),
        table=side.settings.classify,
        unclassified=side.settings.unclassified,
    )
    verdict = classify.judge(exc, rules)
    kind = next((kind for cls, kind in _DEATHS if isinstance(exc, cls)), verdict.kind)
    signature = _signature(task)
    values = redaction.secrets_of(signature, args, kwargs) | secrets_in(exc)

    def scrub(said: str) -> str:
        return redaction.scrub_patterns(redaction.scrub(said, values))

    failure = failures.describe(exc, kind, worker=_host(task.request), scrub=scrub)
    text = failure.traceback
    if exc.__traceback__ is None and getattr(einfo, "traceback", None):
        text = failures.shortened(scrub(failures.storable(str(einfo.traceback))), failures.MAX_TRACEBACK)
    return replace(
        failure,
        traceback=text,
        causes=scrub(json.dumps(failures.causes(exc))),
        arguments=" ".join(redaction.shown(*redaction.arguments(signature, args, kwargs))),
        verdict=verdict.why,
        host=socket.gethostname(),
        memory_bytes=failures.memory(),
        code_version=side.settings.code_version or None,
    )


def _signature(task: Any) -> inspect.Signature | None:
    try:
        return submission.signature_of(task)
    except (TypeError, ValueError):  # a callable that has none
        return None


def _host(request: Any) -> str:
    return str(getattr(request, "hostname", None) or f"{os.getpid()}@{socket.gethostname()}")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _leaving(**_: Any) -> None:
    """A pool process or a worker ends."""
    observer.farewell()


_RECEIVERS = (
    (signals.after_task_publish, published), (signals.task_prerun, began), (signals.task_success, succeeded),
    (signals.task_failure, failed), (signals.task_retry, retried), (signals.task_revoked, revoked),
    (signals.task_unknown, unknown), (signals.task_rejected, rejected),
    (signals.worker_process_shutdown, _leaving), (signals.worker_shutdown, _leaving),
)  # fmt: skip
