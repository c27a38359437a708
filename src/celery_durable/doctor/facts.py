"""What the doctor looks at, collected before anything is judged. Durations are seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.overview import Count, Setup, Standing
    from celery_durable.records import Pause, Worker
    from celery_durable.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSeen:
    """A task of the app; ``durable`` says that it subclasses ``DurableTask``."""

    name: str
    durable: bool = True
    asynchronous: bool = False
    acks_late: bool = True
    reject_on_worker_lost: bool = False
    lease: float | None = None
    time_limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What the app says; nothing was connected to for it.

    ``settings`` is None when they make no sense, ``problem`` says why then; ``unimportable`` why the tasks could not
    be imported. ``hosted`` says that the ledger is in a database of a framework's. ``chords`` says how the result
    backend knows that a chord's parts are done: by their ``ids``, by how many it ``counts``, or not: it is ``polled``.
    ``once`` names entries of beat that submit one key again and again.
    """

    settings: Settings | None
    problem: str = ""
    unimportable: str = ""
    hosted: bool = False
    resolved_url: str = ""
    transport: str = "redis"
    visibility_timeout: float | None = None
    eager: bool = False
    serializer: str = "json"
    accepted: bool = True
    accept_content: Sequence[str] = ("json",)
    prefetch: int = 4
    pool: str = "prefork"
    backend: str = ""
    chords: str = "ids"
    once: Sequence[str] = ()
    tasks: Sequence[TaskSeen] = ()

    @property
    def durable(self) -> list[TaskSeen]:
        """The tasks of the user's with a row each."""
        return [t for t in self.tasks if t.durable and not t.name.startswith("celery.")]

    @property
    def stock(self) -> list[TaskSeen]:
        """Those without."""
        return [t for t in self.tasks if not t.durable and not t.name.startswith("celery.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSeen:
    """The ledger. ``problem`` says why it could not be asked; ``migrates_itself`` that whoever uses it brings it up.

    ``known`` are the revisions that this version has migrations for, the last one is what it needs. ``setup`` and
    what follows is None or empty for a ledger that is not of this revision.
    """

    name: str
    migrate: str
    known: Sequence[str]
    problem: str = ""
    migrates_itself: bool = False
    revision: str | None = None
    lease: float = 30.0
    max_message_bytes: int = 0
    broker: str = ""
    setup: Setup | None = None
    filesystem: str = ""
    workers: Sequence[Worker] = ()
    pauses: Sequence[Pause] = ()
    standing: Standing | None = None
    dead: Count | None = None

    @property
    def live(self) -> list[Worker]:
        """The workers that reported themselves lately."""
        return [w for w in self.workers if w.live]

    @property
    def ours(self) -> list[Worker]:
        """Those of them that consume from this app's broker: they sweep what this app submits."""
        return [w for w in self.live if w.broker == self.broker]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a Redis does when its memory is full; ``limit`` 0: it takes what the host has."""

    policy: str
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSeen:
    """The broker, its URL without password. ``results`` is the Redis that keeps results, where it is one."""

    url: str
    problem: str = ""
    memory: Memory | None = None
    results: Memory | None = None


__all__ = ["BrokerSeen", "Configuration", "LedgerSeen", "Memory", "TaskSeen"]
