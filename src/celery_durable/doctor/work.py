"""What can be found in the ledger's rows: work that nobody does, and what somebody has to look at. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.doctor.findings import error, info, listed, warning
from celery_durable.wording import SECOND, counted, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.doctor.facts import LedgerSeen
    from celery_durable.doctor.findings import Finding
    from celery_durable.overview import Standing

#: Seconds by which a sweep may be late, and for which a pause without an end is not forgotten yet.
LATE, FORGOTTEN = 60.0, 86_400.0


def judge(seen: LedgerSeen) -> Iterator[Finding]:
    """Say what is wrong with the work of a ledger."""
    if seen.standing is not None:
        yield from _sweeps(seen, seen.standing)
        yield from _queues(seen, seen.standing)
    yield from _workers(seen)
    yield from _pauses(seen)
    if seen.dead is not None and seen.dead.number:
        one = seen.dead.number == 1 and not seen.dead.more
        yield warning(
            "dead-tasks", f"{seen.dead} {'task is' if one else 'tasks are'} dead.",
            "'durable failures --group' says of what; replay them when it is mended, or cancel them.",
        )  # fmt: skip


def _sweeps(seen: LedgerSeen, standing: Standing) -> Iterator[Finding]:
    late = standing.late > LATE
    if not seen.ours:
        others = "" if not seen.live else f" ({counted(len(seen.live), 'worker')} of other brokers live)"
        if late:
            yield error(
                "no-worker",
                f"{_due(standing)} for {span(round(standing.late * SECOND))}, and no worker of this app's broker "
                f"lives{others}: nothing runs.",
                "Start a worker; 'durable workers' tells who was there.",
            )
        else:
            yield info("no-worker-idle", f"No worker of this app's broker lives{others}; nothing is late.",
                       "Start one before there is work.")  # fmt: skip
    elif late:
        yield warning(
            "sweeps-late",
            f"{_due(standing)} for {span(round(standing.late * SECOND))}, and {counted(len(seen.ours), 'worker')} "
            "of this app's broker could sweep: they do not keep up, or fail.",
            "Look for errors of celery-durable in the workers' logs, for a broker that is down, or a slow database.",
        )


def _due(standing: Standing) -> str:
    one = standing.due.number == 1 and not standing.due.more
    return f"{standing.due} {'row is' if one else 'rows are'} due"


def _queues(seen: LedgerSeen, standing: Standing) -> Iterator[Finding]:
    if seen.ours:
        consumed = {queue for w in seen.ours for queue in w.queues}
        for queue, count in standing.queues:
            if queue not in consumed:
                yield warning(
                    "queue-unconsumed", f"{counted(count, 'task')} in queue '{queue}', which no live worker consumes.",
                    f"Start a worker with -Q {queue}, or correct the route.",
                )  # fmt: skip
    waiting = standing.unregistered
    if waiting.number:
        one = waiting.number == 1
        yield warning(
            "tasks-unregistered",
            f"{waiting} {'task waits' if one else 'tasks wait'} for a worker that knows {'it' if one else 'them'}.",
            "Start a worker of the release that has it; 'durable waits --kind unregistered' lists them.",
        )


def _workers(seen: LedgerSeen) -> Iterator[Finding]:
    other = [f"{w.hostname} ({w.lease:g} s)" for w in seen.ours if w.lease != seen.lease]
    if other:
        yield warning(
            "lease-differs", f"durable_lease is {seen.lease:g} s here, and another one for {listed(other)}.",
            "Give all processes the same settings; restart those with old ones.",
        )  # fmt: skip
    unlocked = [w.hostname for w in seen.ours if w.lock is None]
    if unlocked:
        yield info(
            "worker-without-lock", f"{listed(unlocked)}: holds no lock by which others see it killed; its tasks "
            "run again when their leases have passed.",
            "Let durable_ledger_url name the database itself, not a pooler; the worker's log says what is in the way.",
        )  # fmt: skip
    eventlet = [w.hostname for w in seen.ours if w.pool == "eventlet"]
    if eventlet:
        yield warning(
            "worker-pool", f"{listed(eventlet)}: the pool is eventlet, which celery-durable is not tried with.",
            "Use prefork, threads, solo or gevent.",
        )  # fmt: skip


def _pauses(seen: LedgerSeen) -> Iterator[Finding]:
    for p in seen.pauses:
        if p.until is None and p.now - p.since > FORGOTTEN * SECOND:
            yield warning(
                "pause-forgotten", f"{p.sentence}; that was {span(p.now - p.since)} ago, and it has no end.",
                f"'durable resume {p.kind}:{p.target}', or pause it --until a time.",
            )  # fmt: skip


__all__ = ["judge"]
