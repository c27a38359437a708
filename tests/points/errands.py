"""What the clients of a tour do. Each errand is a process, which may be struck: then another one does it again.

So errands name their tasks themselves, as users do who want to submit twice and have it done once. Each says of which
verbs of the ledger it is the reason; together they are the reason of all.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from kombu import Producer
from kombu.exceptions import OperationalError
from sqlalchemy.orm import Session

from celery_durable import keys, ledger
from celery_durable.errors import NoSuchTask
from celery_durable.ledger import Aged, Presence
from celery_durable.outbox import Publisher
from celery_durable.records import Envelope
from celery_durable.states import After
from celery_durable.wiring import plugin
from tests.points.tasks import LOOK_AGAIN
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from celery import Celery

    from celery_durable.records import Record

QUEUE, NOWHERE = "crash", "nowhere"  # what workers consume, and what nobody does
PATIENCE = 90.0
OVER = ("succeeded", "dead", "cancelled")


class Errand(NamedTuple):
    """A function that a client runs, and what it brings about: verbs of the ledger, publish, acknowledge."""

    do: Callable[[Client], None]
    verbs: frozenset[str]


ERRANDS: dict[str, Errand] = {}


def errand(verbs: str) -> Callable[[Callable[[Client], None]], Callable[[Client], None]]:
    """Register an errand."""

    def named(do: Callable[[Client], None]) -> Callable[[Client], None]:
        ERRANDS[do.__name__] = Errand(do, frozenset(verbs.split()))
        return do

    return named


@dataclass
class Client:
    """One errand's hands: an app of its own, and names that are the same when it is begun again."""

    app: Celery
    folder: Path
    name: str
    #: Whether the broker forgets a message that was delivered to a process which dies, as kombu's filesystem does.
    forgetful: bool

    @property
    def side(self) -> Any:
        return plugin(self.app)

    @property
    def view(self) -> Any:
        return ledger(self.app)

    def ref(self, what: str) -> str:
        return f"{self.name}-{what}"

    def expect(self, ref: str, *states: str, rows: int = 1, optional: bool = False) -> str:
        """Say how a task may end, and how many rows it leaves; written down before it is submitted."""
        line = {"ref": ref, "states": states, "rows": rows, "optional": optional}
        with (self.folder / "expected").open("a") as out:
            out.write(json.dumps(line) + "\n")
        return ref

    def submit(
        self, task: str, what: str, *args: Any, states: tuple[str, ...] = ("succeeded",), rows: int = 1, **options: Any
    ) -> str:
        ref = self.expect(self.ref(what), *states, rows=rows)
        self.app.tasks[task].apply_async(args, task_id=ref, **options)
        return ref

    def send(self, task: str, what: str, *args: Any, states: tuple[str, ...] = ("succeeded",)) -> str:
        """Call a task by its name: no row is there before a worker sees the message."""
        ref = self.expect(self.ref(what), *states, optional=self.forgetful)
        self.app.send_task(task, args, task_id=ref)
        return ref

    def raw(self, ref: str, body: bytes, **headers: Any) -> None:
        """Put a message into the queue as it is."""
        with self.app.connection_for_write() as connection:
            channel = connection.default_channel
            self.app.amqp.queues[QUEUE](channel).declare()
            headers = {"lang": "py", "id": ref, "root_id": ref, "retries": 0} | headers
            Producer(channel).publish(
                body, exchange=QUEUE, routing_key=QUEUE, headers=headers, content_type="application/json",
                content_encoding="utf-8",
            )  # fmt: skip

    def look(self, ref: str) -> Record | None:
        try:
            found: Record = self.view.get(ref)
        except NoSuchTask:
            return None
        return found

    def until(self, ref: str, *states: str) -> Record:
        """Wait until a task is in one of these states."""

        def there() -> Record | None:
            record = self.look(ref)
            return record if record is not None and record.state in states else None

        return wait_until(there, PATIENCE, f"{ref} is not {' or '.join(states)}")

    def touch(self, *names: str) -> None:
        for name in names:
            (self.folder / name).touch()

    @contextmanager
    def broker_down(self) -> Iterator[None]:
        """No message leaves this process."""

        def refuse(*_: Any) -> None:
            raise OperationalError("the broker is down, as planned")

        stock, Publisher._send = Publisher._send, refuse  # type: ignore[method-assign]
        try:
            yield
        finally:
            Publisher._send = stock  # type: ignore[method-assign]


@errand(
    "publish acknowledge submit claim succeed record_step transact_step write_checkpoint progress step_stands enter "
    "beat glance workers renew ask take_rings rung_before strangers_return"
)
def work(c: Client) -> None:
    """Steps and transactions; what a worker does as long as it lives."""
    refs = [c.submit("works", str(n), n) for n in range(4)]
    for n, ref in enumerate(refs):
        assert c.until(ref, *OVER).state == "succeeded"
        assert c.app.AsyncResult(ref).get(timeout=PATIENCE) == n


@errand("own_or_fenced expire_leases")
def be_overruled(c: Client) -> None:
    """Claims that are over before their bodies are."""
    for ref in [c.submit("overruled", str(n)) for n in range(2)]:
        c.until(ref, *OVER)


@errand("bury")
def vanish(c: Client) -> None:
    """A worker that takes a task, and whose lock is free from then on: the others bury it."""
    ref = c.submit("works", "left", states=("cancelled",), queue=NOWHERE)
    name, side = f"vanished-{os.getpid()}", c.side
    lock = side.ledger.liveness_lock()
    held = lock.acquire()
    side.ledger.enter(Presence(name, name, os.getpid(), [QUEUE], [], side.broker, 1e6, lock=held))
    claim = side.ledger.claim(ref, uuid4().hex, owner=name, pid=os.getpid(), lease=1e6)
    lock.leave_to_parent()  # as if the process had died: nothing is said to anybody
    if claim.claim is not None:
        wait_until(lambda: c.view.get(ref).lease_owner != name, PATIENCE, f"{name} is not buried")
    c.view.cancel(ref, "enough")


@errand("end due_now")
def die(c: Client) -> None:
    """Pool processes that die in a body, and after its outcome was recorded."""
    for ref in [c.submit(task, f"{task}-{n}") for n in range(2) for task in ("dies", "unlucky")]:
        c.until(ref, *OVER)


@errand("settle release waited slept event send_event")
def wait(c: Client) -> None:
    """A retry, a condition, a sleep, an event."""
    refs = [c.submit("waits", str(n)) for n in range(2)]
    for ref in refs:
        wait_until(lambda ref=ref: c.view.get(ref).wait_kind == "event" or c.view.get(ref).state in OVER, PATIENCE)
        if c.view.get(ref).state not in OVER:
            c.view.send_event(ref, "go", {"by": "me"})
    for ref in refs:
        c.until(ref, *OVER)


@errand("wake_aliases follow")
def follow(c: Client) -> None:
    """Two calls with one key, each with an id that somebody waits for."""
    gate = c.ref("gate")
    first = c.submit("held", "first", gate, idempotency_key=c.ref("key"))
    second = c.submit("held", "second", gate, idempotency_key=c.ref("key"))
    c.touch(gate)
    for ref in (first, second):
        c.until(ref, *OVER)


@errand("replay_row replay_batch")
def replay(c: Client) -> None:
    """Tasks that die of an error which is mended."""
    mended = c.ref("mended")
    refs = [c.submit("fails", str(n), mended) for n in range(3)]
    if not (c.folder / mended).exists():
        for ref in refs:
            c.until(ref, "dead")
        c.touch(mended)
    c.view.replay(refs[0], "mended")

    def replayed() -> bool:
        c.view.replay_many(task="fails", reason="mended")
        return all(c.view.get(ref).state == "succeeded" for ref in refs)

    wait_until(replayed, PATIENCE, "not everything was replayed")


@errand("cancel_row asked")
def cancel(c: Client) -> None:
    """A queued task, and one that runs."""
    queued = c.submit("works", "queued", states=("cancelled",), queue=NOWHERE)
    running = c.submit("held", "running", c.ref("never"), states=("cancelled",))
    c.view.cancel(queued, "no longer wanted")
    c.until(running, "running", *OVER)
    c.view.cancel(running, "no longer wanted")
    for ref in (queued, running):
        c.until(ref, "cancelled")


@errand("pause pauses ids hold resume")
def pause(c: Client) -> None:
    """A queue that is held back, with what lies in it."""
    queue = c.ref("paused")
    refs = [c.submit("works", str(n), states=("cancelled",), queue=queue) for n in range(2)]
    c.view.pause(f"queue:{queue}", "maintenance")
    assert c.view.pauses()
    for ref in refs:
        c.until(ref, "waiting", *OVER)
    c.view.resume(f"queue:{queue}")
    for ref in refs:
        c.view.cancel(ref, "enough")


@errand("frontiers expire_deadlines unpublished")
def lie_about(c: Client) -> None:
    """Messages that nobody takes, or that the broker did not take."""
    lying = c.submit("works", "lying", states=("cancelled",), queue=NOWHERE)
    overdue = c.submit("works", "overdue", states=("dead",), queue=NOWHERE, expires=0.3)
    with c.broker_down():
        unsent = c.submit("works", "unsent")
    wait_until(lambda: c.side.ledger.get(lying).publish_count > 1, PATIENCE, "nothing was rung")
    c.view.cancel(lying, "enough")
    for ref in (lying, overdue, unsent):
        c.until(ref, *OVER)


@errand("submit_many ring_again")
def submit_many(c: Client) -> None:
    """Chunks of calls, with keys that are taken."""
    keys = [c.expect(c.ref(f"many-{n}"), "succeeded") for n in range(5)]
    task = c.app.tasks["keyed"]
    task.submit_many([(key,) for key in keys[:3]])
    with c.broker_down():
        task.submit_many([(key,) for key in keys])
    for key in keys:
        c.until(key, *OVER)


@errand("finished")
def meet_again(c: Client) -> None:
    """A key that is done, and somebody remembers its row."""
    key = c.expect(c.ref("done"), "succeeded")
    c.app.tasks["keyed"].delay(key)
    record = c.until(key, *OVER)
    assert c.side.ledger.finished(record.id, keys.digest("keyed", key)).task_id == record.task_id


@errand("met_many")
def lend(c: Client) -> None:
    """Submissions in a transaction of the client's, with keys that are taken."""
    keys = [c.expect(c.ref(f"many-{n}"), "succeeded") for n in range(4)]
    task = c.app.tasks["keyed"]
    task.submit_many([(key,) for key in keys[:2]])
    with Session(c.side.ledger.db.engine) as session, session.begin(), c.view.transaction(session):
        task.submit_many([(key,) for key in keys])
        ref = c.submit("works", "lent")
    for each in (ref, *keys):
        c.until(each, *OVER)


@errand("begin_chord size_chord part_returned close_chord add_part end_replaced clear_continuations")
def replace(c: Client) -> None:
    """Tasks that canvases stand in for, whole and broken."""
    whole = [c.submit("replaced", f"whole-{n}", "chord", rows=4) for n in range(2)]
    broken = ("succeeded", "dead")
    refs = [c.submit("replaced", f"torn-{n}", how, states=broken, rows=3) for n, how in enumerate(
        ("broken chord", "broken chain", "broken chain")
    )]  # fmt: skip
    for ref in whole:
        assert c.until(ref, *OVER).state == "succeeded"
        assert c.app.AsyncResult(ref).get(timeout=PATIENCE) == [1, 2, 2]
    for ref in refs:
        c.until(ref, "dead")


@errand("keep_result drop_result forget_result expire_results hint")
def keep_results(c: Client) -> None:
    """Results with and without rows."""
    ref = c.submit("works", "told")
    c.until(ref, *OVER)
    result, backend = c.app.AsyncResult(ref), c.app.backend
    backend.store_result(c.ref("rowless"), 1, "SUCCESS")
    group = c.app.GroupResult(c.ref("group"), [result])
    group.save()
    group.delete()
    c.app.AsyncResult(c.ref("rowless")).forget()
    result.forget()
    backend.cleanup()


@errand("ask_all")
def survey(c: Client) -> None:
    """Counts, as a page of all tasks shows them."""
    ref = c.submit("works", "counted")
    assert c.side.ledger.count_all().number
    c.until(ref, *OVER)


@errand("prune_batch forget_batch")
def prune(c: Client) -> None:
    """Tasks that are over are forgotten, in part and then altogether; a message left of one is parked."""
    refs = [c.expect(c.ref(f"pruned-{n}"), "succeeded", "dead", optional=True) for n in range(3)]
    for ref in refs:
        if c.look(ref) is None:
            c.app.tasks["pruned"].apply_async(task_id=ref)
        c.until(ref, *OVER)

    def forgotten() -> bool:
        list(c.side.ledger.prune(Aged(before=After(1), task="pruned"), batch=2))
        list(c.side.ledger.forget_keys(-1, batch=2))
        left = [c.look(ref) for ref in refs]
        return all(record is None or record.state == "dead" for record in left)

    wait_until(forgotten, PATIENCE, "something was not forgotten")


@errand("observe")
def be_observed(c: Client) -> None:
    """Stock tasks: no promise is made of them, and none is judged."""
    for n in range(3):
        c.app.tasks["stock"].apply_async((n,), task_id=c.expect(c.ref(f"stock-{n}"), *OVER, optional=True))
    c.app.tasks["stock"].apply_async((9,), task_id=c.expect(c.ref("stock"), *OVER, optional=True))


@errand("revoke park take_in hand_over")
def send_oddities(c: Client) -> None:
    """Messages that are foreign, unreadable, too late, or whose row is gone; a task that is a stock one over there."""
    foreign = c.send("part", "foreign", 1)
    garbage = c.expect(c.ref("garbage"), "dead", optional=c.forgetful)
    c.raw(garbage, b"\xff no JSON", task="works")
    gone = (datetime.now(timezone.utc) - timedelta(hours=1)).isoformat()
    for n in range(2):
        c.raw(c.expect(c.ref(f"late-{n}"), optional=True), b"[[], {}, {}]", task="works", expires=gone)
    turncoat = [c.submit("turncoat", f"turncoat-{n}", 1, states=("cancelled", "succeeded", "dead")) for n in range(2)]
    row = c.side.ledger.get(turncoat[0])
    stored = c.side.ledger.message(row.id)
    envelope = Envelope.load(stored.envelope, stored.body)
    for n in range(2):
        ghost = c.expect(c.ref(f"ghost-{n}"), "dead", optional=True)
        headers = envelope.headers | {"task": "works"}
        c.side.publisher.ring(Envelope(**(_fields(envelope) | {"headers": headers})).readdressed(ghost), ghost, 1)
    for ref in (foreign, garbage):
        if not c.forgetful:
            c.until(ref, *OVER)
    for ref in turncoat:
        c.until(ref, *OVER)


@errand("strangers put_off welcome turn_away")
def be_strange(c: Client) -> None:
    """Tasks that no worker knows until one is started that does."""
    task = c.ref("stranger")
    refs = [c.send(task, str(n), n) for n in range(2)]
    unfit = [c.send(task, f"unfit-{n}", 1, 2, 3, states=("dead",)) for n in range(2)]

    def looked_at_again() -> bool:
        records = [c.look(ref) for ref in refs]
        there = [r for r in records if r is not None]
        if any(r.state in OVER for r in there):
            return True
        put_off = [r for r in there if r.wake_at and r.wake_at - r.submitted_at > 3 * LOOK_AGAIN * 1e6]
        return len(put_off) == len(refs) or (c.forgetful and bool(put_off))

    if not (c.folder / f"known-{task}").exists():
        wait_until(looked_at_again, PATIENCE, "no stranger was put off")
        c.touch(f"known-{task}", f"wanted-{os.getpid()}")
    for ref in (*refs, *unfit):
        if not c.forgetful or c.look(ref) is not None:
            c.until(ref, *OVER)


def _fields(envelope: Envelope) -> dict[str, Any]:
    return {name: getattr(envelope, name) for name in Envelope.__dataclass_fields__}
