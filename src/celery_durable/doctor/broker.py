"""What can be found at the broker, and at a Redis that keeps results. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.doctor.findings import error, info, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.doctor.facts import BrokerSeen, Memory
    from celery_durable.doctor.findings import Finding

_FIX = "Set maxmemory-policy to noeviction, and give caches a Redis of their own."


def judge(seen: BrokerSeen) -> Iterator[Finding]:
    """Say what is wrong with the broker."""
    if seen.problem:
        yield error(
            "broker-unreachable",
            f"The broker {seen.url} does not answer ({seen.problem}). Submissions are recorded, and run when it is "
            "back.",
            "See that it runs, and that broker_url names it with a user who may use it.",
        )
    if seen.memory is not None:
        yield from _broker(seen.memory)
    if seen.results is not None:
        yield from _results(seen.results)


def _broker(memory: Memory) -> Iterator[Finding]:
    name, told = "redis-eviction", f"The Redis of the broker has maxmemory-policy {memory.policy}"
    if memory.policy == "noeviction":
        return
    if not memory.limit:
        yield info(name, f"{told}; it has no memory limit (maxmemory 0), so nothing is evicted yet.", _FIX)
    elif memory.policy.startswith("allkeys"):
        yield error(
            name,
            f"{told}: with {memory.limit} bytes full it drops queues. Recorded tasks are rung again late; messages "
            "without a row (stock tasks, other apps) are lost.",
            _FIX,
        )
    else:
        yield warning(name, f"{told}: with {memory.limit} bytes full it drops keys that expire, results first.", _FIX)


def _results(memory: Memory) -> Iterator[Finding]:
    if memory.policy != "noeviction" and memory.limit:
        yield warning(
            "redis-eviction-results",
            f"The Redis of the result backend has maxmemory-policy {memory.policy}: with {memory.limit} bytes full it "
            "drops results and counts of chords.",
            'Set it to noeviction, or let rows be the results: result_backend = "durable://".',
        )


__all__ = ["judge"]
