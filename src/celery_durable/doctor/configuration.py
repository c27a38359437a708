"""What can be found in an app's settings and tasks alone. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.doctor.findings import error, info, listed, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.doctor.facts import Configuration
    from celery_durable.doctor.findings import Finding

#: The transports that celery-durable is tried with.
BROKERS = ("redis", "rediss", "sentinel", "amqp", "pyamqp", "filesystem", "memory")
POOLS = ("prefork", "processes", "threads", "solo", "gevent")
#: kombu's own, in seconds.
VISIBILITY_TIMEOUT = 3600.0


def judge(c: Configuration) -> Iterator[Finding]:
    """Say what is wrong with a configuration."""
    if c.problem:
        yield error("settings", c.problem, "Correct it in the app's settings; docs/settings.md describes each.")
    if c.unimportable:
        yield error(
            "tasks-unimportable", f"The app's tasks cannot be imported: {c.unimportable}.",
            "Correct the import; a worker of this app would not start either.",
        )  # fmt: skip
    yield from _nothing_durable(c)
    yield from _submission(c)
    yield from _beat(c)
    yield from _options(c)
    yield from _place(c)
    yield from _broker(c)
    yield from _worker(c)
    yield from _results(c)


def _nothing_durable(c: Configuration) -> Iterator[Finding]:
    observed = c.settings is not None and c.settings.observe
    if c.durable or observed or c.unimportable or c.problem:
        return
    yield warning(
        "nothing-durable", f"No task of the app is a DurableTask ({len(c.stock)} stock ones): nothing is recorded.",
        "Give a task base=DurableTask, or observe stock tasks first (durable_observe = True).",
    )  # fmt: skip


def _submission(c: Configuration) -> Iterator[Finding]:
    if c.eager:
        yield warning(
            "always-eager", "task_always_eager is True: .delay() runs the task in the caller, and nothing is recorded.",
            "Leave it to tests.",
        )  # fmt: skip
    if not c.accepted:
        yield error(
            "serializer",
            f"task_serializer is {c.serializer!r}, which accept_content ({', '.join(c.accept_content)}) leaves out: "
            "every submission is refused.",
            "Use the json serializer, or add it to accept_content.",
        )
    names = [t.name for t in c.durable if t.asynchronous]
    if names:
        yield error(
            "async-task", f"{listed(names)}: async def, which Celery 5 cannot run; submissions are refused.",
            "Make it a plain function, and call asyncio.run() in it.",
        )  # fmt: skip


def _beat(c: Configuration) -> Iterator[Finding]:
    if c.once:
        yield warning(
            "beat-runs-once",
            f"{listed(c.once)} in beat_schedule: the idempotency key is the same at each tick, so it runs once and "
            "never again.",
            "Give it an argument that changes with the tick (docs/submitting.md), or the task no idempotency_key.",
        )


def _options(c: Configuration) -> Iterator[Finding]:
    early = [t.name for t in c.durable if not t.acks_late]
    if early:
        yield warning(
            "acks-early",
            f"{listed(early)}: acks_late is False, so a message without a row (send_task from another app) is "
            "acknowledged before it is recorded, and lost should the worker die in between.",
            "Leave acks_late as DurableTask has it, True.",
        )
    ignored = [t.name for t in c.durable if t.reject_on_worker_lost]
    if ignored:
        yield info(
            "reject-on-worker-lost",
            f"{listed(ignored)}: reject_on_worker_lost is True, which means nothing to a durable task: the ledger "
            "deals with its loss.",
            "Leave it out; max_losses and on_loss say what a loss leads to.",
        )
    if c.settings is None:
        return
    least = 3 * c.settings.sweep_interval
    short = [f"{t.name} ({t.lease:g} s)" for t in c.durable if t.lease is not None and t.lease < least]
    if short:
        yield error(
            "task-lease",
            f"The lease of {listed(short)} is shorter than three sweeps of durable_sweep_interval "
            f"({c.settings.sweep_interval:g} s): a worker cannot renew it in time.",
            f"Set it to {least:g} or more, or sweep more often.",
        )


def _place(c: Configuration) -> Iterator[Finding]:
    if c.settings is None or c.hosted:
        return
    given = c.settings.ledger_url
    if given.startswith("sqlite") and (given.endswith("://") or ":memory:" in given or "mode=memory" in given):
        yield error(
            "sqlite-memory", f"durable_ledger_url is {given!r}: such a ledger is gone with its process.",
            "Name a file, or a database server.",
        )  # fmt: skip
    elif given != c.resolved_url:
        yield warning(
            "sqlite-relative",
            f"durable_ledger_url is {given!r}, a relative path, here {c.resolved_url.partition(':///')[2]}: a process "
            "that is started in another folder has another ledger.",
            "Give an absolute path (four slashes).",
        )


def _broker(c: Configuration) -> Iterator[Finding]:
    if c.transport == "memory":
        yield warning(
            "broker-memory", "The broker is memory://, which no other process can reach: no worker sees a message.",
            "Use Redis, RabbitMQ or the filesystem.",
        )  # fmt: skip
    elif c.transport not in BROKERS:
        yield warning(
            "broker-untested", f"The broker's transport is {c.transport!r}, which celery-durable is not tried with.",
            "Use Redis, RabbitMQ or the filesystem, or try the crash kit on it (docs/testing.md).",
        )  # fmt: skip
    if c.transport in {"redis", "rediss", "sentinel"}:
        yield from _visibility(c)


def _visibility(c: Configuration) -> Iterator[Finding]:
    """Recorded messages are acknowledged when the pool takes them; those that wait for it, and stock ones, are not."""
    timeout = VISIBILITY_TIMEOUT if c.visibility_timeout is None else c.visibility_timeout
    if c.settings is not None:
        limit = max([t.time_limit or c.settings.time_limit for t in c.durable], default=0.0)
        lease = max([c.settings.lease, *(t.lease or 0.0 for t in c.durable)])
        if timeout < max(limit, lease):
            what = "lease" if timeout < lease else "time limit"
            yield warning(
                "visibility-timeout",
                f"visibility_timeout is {timeout:g} s, shorter than the longest {what} of a durable task "
                f"({lease if what == 'lease' else limit:g} s): messages that wait in a worker, or have no row yet, "
                "come again meanwhile. They are dropped, but each costs a look at the ledger.",
                f"Set broker_transport_options['visibility_timeout'] to {max(limit, lease):g} or more.",
            )
    late = [t.name for t in c.stock if t.acks_late and (t.time_limit is None or t.time_limit > timeout)]
    if late:
        yield warning(
            "visibility-timeout-stock",
            f"The stock tasks {listed(late)} acknowledge late, and may run for longer than visibility_timeout "
            f"({timeout:g} s): Redis then has them run a second time beside the first.",
            "Make them durable, give them a time_limit below it, or set it higher.",
        )


def _worker(c: Configuration) -> Iterator[Finding]:
    if c.pool.partition(":")[0] not in POOLS and ":" not in c.pool:
        yield warning(
            "pool-untested", f"worker_pool is {c.pool!r}, which celery-durable is not tried with.",
            "Use prefork, threads, solo or gevent.",
        )  # fmt: skip
    if c.prefetch != 1:
        told = "without limit" if c.prefetch == 0 else f"{c.prefetch} for each pool process"
        yield info(
            "prefetch",
            f"worker_prefetch_multiplier is {c.prefetch}: messages taken ahead ({told}) may wait behind a long task "
            "while another worker idles.",
            "Set it to 1 where tasks take seconds or longer; leave it where they are short.",
        )


def _results(c: Configuration) -> Iterator[Finding]:
    polling = next((t for t in c.tasks if t.name == "celery.chord_unlock"), None)
    kind = c.backend
    if kind in {"cache+memory", "memory"}:
        yield warning(
            "results-in-memory", f"result_backend is {kind}://, which no other process can read.",
            'Use "durable://", Redis or a database.',
        )  # fmt: skip
    elif kind == "rpc":
        yield info(
            "results-rpc", "result_backend is rpc://: a result is a message to its caller, and gone with it.",
            'Use "durable://" where a result is to outlive its caller.',
        )  # fmt: skip
    elif kind and c.chords == "counts":
        yield warning(
            "chord-counts-twice",
            f"result_backend is {kind}, which counts the parts of a chord without their ids: one that is told again "
            "after a crash counts twice, and the chord's body starts too early or never.",
            'Use "durable://" or Redis where chords matter.',
        )
    elif kind and c.chords == "polled" and not (polling and polling.durable):
        yield warning(
            "chord-polling",
            f"result_backend is {kind}, which cannot count: chords are polled for by celery.chord_unlock, a stock "
            "task here, and their body is lost with it.",
            'Use "durable://" or Redis, or make every task of the app durable (task_cls).',
        )


__all__ = ["judge"]
