"""Collects what the doctor judges: from the app, from its ledger, from its broker. It changes nothing anywhere."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery.backends.base import Backend
from celery.beat import BeatLazyFunc
from kombu.serialization import prepare_accept_content, registry

from celery_durable.doctor.facts import BrokerSeen, Configuration, LedgerSeen, Memory, TaskSeen
from celery_durable.errors import DurableError
from celery_durable.ledger import Ledger, migrating
from celery_durable.ledger.database import migrate
from celery_durable.outbox import BROKER_TIMEOUT, Publisher
from celery_durable.outcomes import CHORD_UNLOCK
from celery_durable.results import DurableBackend
from celery_durable.task import DurableTask
from celery_durable.wiring import Plugin, unwrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.settings import Settings

MOUNTS = Path("/proc/self/mounts")
#: Celery's own switch.
_SKIP = "CELERY_SKIP_CHECKS"


def configuration(app: Any) -> Configuration:
    """Look at settings and tasks, which are imported; nothing is connected to."""
    app = unwrapped(app)
    unimportable = _import_tasks(app)
    settings, hosted, problem = _settings(app)
    conf = app.conf
    content_type = registry.name_to_type.get(conf.task_serializer, conf.task_serializer)
    backend, chords = _backend(app)
    return Configuration(
        settings=settings,
        problem=problem,
        unimportable=unimportable,
        hosted=hosted,
        resolved_url="" if settings is None else settings.resolved_url(),
        transport=_transport(app),
        visibility_timeout=(conf.broker_transport_options or {}).get("visibility_timeout"),
        eager=bool(conf.task_always_eager),
        serializer=str(conf.task_serializer),
        accepted=content_type in prepare_accept_content(conf.accept_content),
        accept_content=tuple(map(str, conf.accept_content)),
        prefetch=int(conf.worker_prefetch_multiplier),
        pool=str(conf.worker_pool),
        backend=backend,
        chords=chords,
        once=tuple(sorted(_once(app))),
        tasks=tuple(_seen(t) for n, t in sorted(app.tasks.items()) if n == CHORD_UNLOCK or not n.startswith("celery.")),
    )


def _import_tasks(app: Any) -> str:
    """Import the tasks; say why that failed. What they print is no part of an answer."""
    try:
        with redirect_stdout(sys.stderr), _without_checks():
            app.loader.import_default_modules()
            app.finalize()
    except Exception as error:  # noqa: BLE001 - whatever user code raises
        return _told(error)
    return ""


@contextmanager
def _without_checks() -> Iterator[None]:
    """Keep Celery from running Django's checks before it imports tasks: this may be one of them."""
    before = os.environ.get(_SKIP)
    os.environ[_SKIP] = "1"
    try:
        yield
    finally:
        os.environ.pop(_SKIP)
        if before is not None:
            os.environ[_SKIP] = before


def _settings(app: Any) -> tuple[Settings | None, bool, str]:
    try:
        side = Plugin(app)  # one of our own: looking is not first use, which freezes the settings
        Ledger.open(side.settings)
    except DurableError as error:
        return None, False, str(error)
    return side.settings, side.host is not None, ""


def _seen(task: Any) -> TaskSeen:
    return TaskSeen(
        name=task.name,
        durable=isinstance(task, DurableTask),
        asynchronous=asyncio.iscoroutinefunction(task.run),
        acks_late=bool(task.acks_late),
        reject_on_worker_lost=bool(task.reject_on_worker_lost or getattr(task, "retry_on_worker_lost", False)),
        lease=getattr(task, "lease", None),
        time_limit=task.time_limit,
    )


def _transport(app: Any) -> str:
    connection = app.connection_for_write()
    name = connection.transport_cls
    return name if isinstance(name, str) else str(connection.transport.driver_type)


def _backend(app: Any) -> tuple[str, str]:
    """Name the result backend by its scheme, and how it knows that the parts of a chord are done."""
    given = app.conf.result_backend
    if not given:
        return "", "ids"
    scheme = given.partition("://")[0] if isinstance(given, str) else type(given).__name__
    try:
        backend = app.backend
    except Exception:  # noqa: BLE001 - one that cannot be loaded is Celery's to report
        return scheme, "ids"
    # By name: the module of Redis cannot be imported where its client is not installed.
    redis = any(cls.__module__ == "celery.backends.redis" for cls in type(backend).__mro__)
    if redis or isinstance(backend, DurableBackend):
        return scheme, "ids"
    polled = getattr(backend.apply_chord, "__func__", None) is Backend.apply_chord
    return scheme, "polled" if polled else "counts"


def _once(app: Any) -> Iterator[str]:
    """Name the entries of beat whose key is the same at each tick: a template over arguments that never change."""
    for name, entry in (app.conf.beat_schedule or {}).items():
        told = dict(entry) if isinstance(entry, Mapping) else {}
        task = app.tasks.get(told.get("task"))
        if not isinstance(task, DurableTask):
            continue
        key = (told.get("options") or {}).get("idempotency_key", task.idempotency_key)
        given = [*(told.get("args") or ()), *(told.get("kwargs") or {}).values()]
        if isinstance(key, str) and not any(isinstance(value, BeatLazyFunc) for value in given):
            yield str(name)


def ledger(side: Plugin, settings: Settings) -> LedgerSeen:
    """Ask the ledger; a SQLite file that is not there is not made."""
    found = Ledger.open(settings)
    if side.host is not None:
        found.migrated_by(side.host.migrate)
    seen: dict[str, Any] = {
        "name": str(found.db), "migrate": migrate(found.db), "known": migrating.revisions(), "lease": settings.lease,
        "max_message_bytes": settings.max_message_bytes, "broker": side.broker,
        "migrates_itself": found.dialect.name == "sqlite" and side.host is None,
    }  # fmt: skip
    if found.file and not Path(found.file).exists():
        return LedgerSeen(**seen)
    if found.file:
        with suppress(OSError):
            seen["filesystem"] = filesystem(str(Path(found.file).resolve()), MOUNTS.read_text(errors="replace"))
    try:
        seen["revision"] = found.revision()
        if seen["revision"] == migrating.HEAD:
            seen |= _asked(found, side.broker)
    except DurableError as error:
        seen["problem"] = str(error)
    except Exception as error:  # noqa: BLE001 - whatever a driver raises: no such rights, no database file
        seen["problem"] = f"The ledger {found.db} cannot be used: {_told(error)}."
    finally:
        found.db.dispose()
    return LedgerSeen(**seen)


def _asked(found: Ledger, broker: str) -> dict[str, Any]:
    return {
        "setup": found.setup(), "workers": found.workers(), "pauses": found.pauses(),
        "standing": found.standing(broker), "dead": found.count_live()["dead"],
    }  # fmt: skip


def filesystem(path: str, mounts: str) -> str:
    """Return the type of the file system that holds a path, as ``/proc/self/mounts`` tells it; "" when it does not."""
    best, kind = "", ""
    for row in mounts.splitlines():
        _, point, fstype, *_ = (*row.split(" "), "", "", "")
        point = point.replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fstype
    return kind


def broker(app: Any) -> BrokerSeen:
    """Ask the broker, each wait bounded; and the Redis that keeps results."""
    app = unwrapped(app)
    connection = Publisher(app, "").connection()
    url = connection.as_uri() if connection.password else connection.as_uri().replace("//:**@", "//")
    results = _memory_of_results(app)
    try:
        with connection:
            channel = connection.default_channel
            memory = _memory(channel.client) if connection.transport.driver_type == "redis" else None
    except Exception as error:  # noqa: BLE001 - whatever the transport raises
        return BrokerSeen(url=url, problem=_told(error), results=results)
    return BrokerSeen(url=url, memory=memory, results=results)


def _memory_of_results(app: Any) -> Memory | None:
    if not str(app.conf.result_backend or "").startswith(("redis", "sentinel")):
        return None
    with suppress(Exception):  # a result store that does not answer says so to whoever asks for a result
        client = app.backend.client
        limits = {"socket_timeout": 2 * BROKER_TIMEOUT, "socket_connect_timeout": BROKER_TIMEOUT}
        client.connection_pool.connection_kwargs.update(limits)
        return _memory(client)
    return None


def _memory(client: Any) -> Memory | None:
    """Ask for the memory settings by INFO, which managed servers allow where they do not CONFIG."""
    told = client.info("memory")
    policy = told.get("maxmemory_policy")
    return None if policy is None else Memory(policy=str(policy), limit=int(told.get("maxmemory") or 0))


def _told(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text.removesuffix(".")


__all__ = ["broker", "configuration", "filesystem", "ledger"]
