"""Rows 1, 4, 5, 9, 13: what becomes of a message between a broker and a worker."""

from __future__ import annotations

from tests.crash.kit import QUEUE
from tests.pains.kit import Seen, Side, pain, seen
from tests.services import Postgres, RabbitMQ, Redis
from tests.waiting import wait_until


@pain(
    1,
    "Redis: long and ETA tasks run again every `visibility_timeout`",
    *("celery#2481", "celery#5935", "celery#3270", "celery#2599", "celery#3312", "celery#7009", "celery#4400"),
    setting="Redis, `task_acks_late`, `visibility_timeout` 2 s for a task and an ETA of about 8 s; "
    "`unacked_restore_interval` and `unacked_restore_throttle` 1 (by default kombu looks every 100 s)",
    cure="a `visibility_timeout` above the longest task and ETA; what a dead worker held is then invisible for as long",
    task_acks_late=True,
    broker_transport_options={"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1},
)
def visibility_timeout(side: Side) -> Seen:
    side.worker(concurrency=4)
    eta = side.submit("work", 1, countdown=8).id
    long = side.submit("held", "end").id
    side.await_run(long)
    side.hurts(lambda: side.runs(long) >= 3, watch=7)
    side.open("end")
    side.await_end(eta)
    side.hurts(lambda: side.ends(eta) >= 2, watch=3)
    side.settle(long, eta, workers=4)
    return seen(
        (side.ends(long) > 1, f"one long task ran {side.ends(long)}x"),
        (side.ends(eta) > 1, f"one ETA ran {side.ends(eta)}x"),
    )


def popped_by_the_dead(side: Side) -> str:
    """Submit a task whose message Redis hands to a worker on a host that has just died."""
    for _ in range(10):
        worker = side.worker()
        side.await_end(side.submit("work", "warm").id)
        worker.freeze()
        task = side.submit("work", "gone").id
        try:
            wait_until(lambda task=task: not any(task in ids for ids in side.in_redis()), 3)
        except AssertionError:  # it was not listening in that moment
            worker.kill()
            side.settle(task, workers=0)
            continue
        worker.kill()
        return task
    raise AssertionError("no frozen worker was listening")


@pain(
    4,
    "Shutdown, deploy or reconnect loses Redis tasks, ETA above all",
    *("celery#4354", "celery#7950", "celery#3802", "celery#6465", "kombu#305", "kombu#533", "kombu#1836"),
    setting="Redis, Celery's defaults; a host that dies idle (stopped, then killed), then a worker with "
    "prefetched and ETA tasks that gets SIGKILL",
    cure="a warm shutdown gives messages back; after a kill a short `visibility_timeout` (see row 1) for what was "
    "prefetched, nothing for what Redis had just handed out",
    broker="",
)
def shutdown(side: Side) -> Seen:
    # A process that is stopped in the middle of a write to SQLite would keep the file locked, for everybody.
    side.set_up(side.servers.shared(Redis).db(), ledger_url=side.servers.shared(Postgres).database())
    gone = popped_by_the_dead(side)
    leaving = side.worker()
    side.await_run(side.submit("held", "busy").id)
    eta = side.submit("work", "eta", countdown=3).id
    taken = [side.submit("work", n).id for n in range(2)]
    awaited = taken if side.durable else [*taken, eta]
    side.await_(lambda: all(f"[{i}] received" in leaving.output for i in awaited), "they are not prefetched")
    leaving.kill()
    side.open("busy")
    side.worker()
    side.outlast(4)  # past the ETA
    side.settle(gone, eta, *taken)
    queued, unacked = side.in_redis()
    undone = [i for i in (gone, eta, *taken) if not side.ends(i)]
    stuck = [i for i in undone if i in unacked]
    lost = [i for i in undone if i not in queued | unacked]
    if not undone:
        return seen((False, "all 4 ran on the next worker"))
    return seen(
        (lost == [gone], f"{len(lost)} of 1 handed to a dying host is nowhere any more"),
        (len(stuck) == 3, f"{len(stuck)} of 3 prefetched or ETA tasks lie in `unacked`, for an hour by default"),
    )


@pain(
    5,
    "A worker is alive and does not consume",
    *("celery#8030", "celery#8091", "celery#8384", "celery#10205", "celery#4185"),
    setting="Redis, Celery's defaults; brought about by `cancel_consumer`, not by the reconnect bugs that are reported",
    cure="`inspect active_queues` shows it to who thinks of asking",
)
def not_consuming(side: Side) -> Seen:
    side.worker()
    side.app.control.cancel_consumer(QUEUE, reply=True, timeout=20, limit=1)
    task = side.submit("work", 1).id
    alive = bool(side.app.control.inspect(timeout=20, limit=1).ping())
    if not side.durable:
        side.outlast(5)
        unexplained = side.state(task) == "PENDING" and not side.runs(task)
        return seen(
            (alive and unexplained, f"ping answers; 5 s later the result says {side.state(task)}, and nothing why")
        )
    told = side.hurts(lambda: "no live worker consumes" in side.why(task), watch=60)
    return seen((not told, f"`why`: {side.why(task)}"))


@pain(
    9,
    "RabbitMQ's `consumer_timeout` closes the channel of long tasks",
    *("celery#6760", "celery#6954"),
    setting="RabbitMQ, `task_acks_late`, `consumer_timeout` 3 s for a task of about 10 s",
    cure="a `consumer_timeout` above the longest task (by default 30 min); early acknowledgement, which loses what "
    "dies (row 2)",
    broker="",
    task_acks_late=True,
)
def consumer_timeout(side: Side) -> Seen:
    rabbit = side.own(RabbitMQ, "consumer_timeout = 3000")
    rabbit.eval("application:set_env(rabbit, channel_tick_interval, 1000).")
    side.set_up(rabbit.vhost())
    worker = side.worker(concurrency=2)
    task = side.submit("held", "end").id
    side.await_run(task)
    closed = side.hurts(lambda: "PRECONDITION_FAILED" in worker.output, watch=10)
    if closed:  # it takes nothing more, and ends once its task has
        side.worker()
        side.await_run(task, 2)
    side.open("end")
    side.await_end(task, 2 if closed else 1)
    side.settle(task)
    ended = side.hurts(lambda: not worker.running, watch=1)
    how = "the worker stops consuming and ends" if ended else "the worker goes on"
    return seen((closed and ended, how), (side.ends(task) > 1, f"one task ran to its end {side.ends(task)}x"))


@pain(
    13,
    "Finished work runs again because its acknowledgement failed",
    *("celery#3773", "celery#6951", "celery#7185", "celery#9250"),
    setting="RabbitMQ, `task_acks_late`; its connections are closed while a task runs",
    cure="`worker_deduplicate_successful_tasks`, with a result backend that keeps the result",
    broker="rabbitmq",
    task_acks_late=True,
)
def acknowledgement(side: Side) -> Seen:
    worker = side.worker()
    task = side.submit("held", "end").id
    side.await_run(task)
    vhost = side.conf["broker_url"].rpartition("/")[2]
    before = worker.output.count("Connected to amqp")
    side.servers.shared(RabbitMQ).ctl("close_all_connections", "--vhost", vhost, "cut by the test")
    side.await_(lambda: worker.output.count("Connected to amqp") > before, "it does not connect again")
    side.open("end")
    side.await_end(task)
    side.hurts(lambda: side.ends(task) >= 2, watch=4)
    side.settle(task)
    return seen((side.ends(task) > 1, f"one task finished {side.ends(task)}x"))
