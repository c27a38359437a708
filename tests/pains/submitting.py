"""Rows 6, 7, 8: what becomes of a call between its caller and the broker."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import redis
import sqlalchemy as sa
from sqlalchemy.orm import Session

from celery_durable.errors import NoSuchTask
from tests.pains.kit import Seen, Side, pain, seen
from tests.pains.tasks import ASKED
from tests.services import Postgres, Redis

if TYPE_CHECKING:
    from collections.abc import Callable

SILENCE = 10.0  # seconds that a broker says nothing


@pain(
    6,
    "Publishing is lost or hangs while the broker is away",
    *("celery#5410", "celery#4296", "celery#6911", "celery#5716"),
    setting="Redis, Celery's defaults; killed before a call and before `self.retry()`, stopped for 10 s during a call",
    cure="`socket_timeout` in `broker_transport_options` ends the hang with an error; the caller has to keep what "
    "failed",
    broker="",
)
def broker_away(side: Side) -> Seen:
    broker = side.own(Redis)
    side.set_up(broker.url)
    worker = side.worker()
    retried = side.submit("retries_at_gate", "retry").id
    side.await_run(retried)
    broker.kill()
    side.open("retry")
    side.await_(lambda: side.witness.of(retried, ASKED), "it does not ask for a retry")
    refused = ""
    try:
        call = side.submit("work", "while it is down").id
    except Exception as exc:  # noqa: BLE001 - whatever a user would get
        refused, call = type(exc).__name__, ""
    broker.start()
    side.await_(lambda: worker.output.count("Connected to redis") > 1, "it does not connect again")
    side.settle(*(i for i in (retried, call) if i))
    broker.pause()
    waited = timed(lambda: side.submit("work", "while it is silent"), broker)
    hung = waited >= SILENCE
    return seen(
        (
            bool(refused),
            f"down: `.delay()` raised {refused}" if refused else "down: `.delay()` returned, the task ran later",
        ),
        (hung, f"silent: `.delay()` hung for {waited:.0f} s" if hung else f"silent: it returned within {waited:.1f} s"),
        (
            not side.ends(retried),
            f"`self.retry()`: {side.ends(retried)} of 1 ran again, said to be {side.state(retried)}",
        ),
    )


def timed(call: Callable[[], object], broker: Redis) -> float:
    """How long a call takes; the broker answers again once it has been silent for `SILENCE`."""
    began = time.monotonic()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(SILENCE)
    waited = time.monotonic() - began
    broker.resume()
    thread.join()
    return waited


@pain(
    7,
    "A race with the database transaction",
    *("celery#8491", "celery#8976"),
    setting="Redis and PostgreSQL through SQLAlchemy: `.delay()` before COMMIT, before ROLLBACK, and in an "
    "after-commit hook of a process that is killed after COMMIT",
    cure="`delay_on_commit` (Django) for the first two; not for the third",
    broker="",
)
def transaction(side: Side) -> Seen:
    url = side.servers.shared(Postgres).database()
    side.set_up(side.servers.shared(Redis).db(), ledger_url=url, shop=url)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE shop_order (id int PRIMARY KEY)"))
    side.worker()
    with Session(engine) as session:
        early = order(side, session, 1)
        side.await_end(side.submit("work", "probe").id)
        session.commit()
        undone = order(side, session, 2)
        side.await_end(side.submit("work", "probe").id)
        session.rollback()
    side.program("buyer", "-m", "tests.pains.buyer", side.name, "3")
    side.await_(lambda: side.programs[-1].poll() is not None, "the buyer does not end")
    assert side.programs[-1].returncode == -9, (side.folder / "buyer.log").read_text()
    if side.durable:
        side.await_(lambda: len(side.witness.sights) and charged(side, 3), "order 3 is not charged")
    side.settle(early)
    first = charged(side, 1)
    return seen(
        (first != ["there"], f"before COMMIT: it ran and found its order {' and '.join(first)}"),
        (
            bool(side.runs(undone)),
            f"ROLLBACK: it ran {side.runs(undone)}x, for an order that never was"
            if side.runs(undone)
            else "ROLLBACK: it never ran",
        ),
        (
            not charged(side, 3),
            f"killed after COMMIT: {len(charged(side, 3))} of 1 orders charged",
        ),
    )


def order(side: Side, session: Session, number: int) -> str:
    """Write an order and have it charged."""
    session.execute(sa.text("INSERT INTO shop_order VALUES (:id)"), {"id": number})
    if not side.durable:
        return side.submit("charge", number).id
    with side.ledger.transaction(session):
        return side.submit("charge", number).id


def charged(side: Side, number: int) -> list[str]:
    """What `charge` found of an order, run by run."""
    notes = [s.note.split() for s in side.witness.sights]
    return [n[1] for n in notes if len(n) == 2 and n[0] == str(number) and n[1] in {"there", "missing"}]


@pain(
    8,
    "PENDING means waiting, lost or never existed",
    *("celery#4450", "celery#3596", "django-celery-results#286", "django-celery-results#321"),
    setting="Redis as broker and result backend, `task_track_started`; one call whose message is lost (FLUSHDB), one "
    "that waits, one unknown id",
    cure="none; an own state written by a `before_task_publish` handler is a common recipe",
)
def pending(side: Side) -> Seen:
    lost = side.submit("work", "lost").id
    with redis.Redis.from_url(side.conf["broker_url"]) as client:
        client.flushdb()
    waits = side.submit("work", "waits").id
    says = [state_of(side, i) for i in (lost, waits, str(uuid4()))]
    side.worker()
    side.await_end(waits)
    side.settle(lost, waits)
    return seen(
        (len(set(says)) == 1, f"lost, waiting, unknown: {', '.join(says)}"),
        (not side.ends(lost), f"{side.ends(lost)} of 1 lost tasks ran"),
    )


def state_of(side: Side, task: str) -> str:
    try:
        return side.state(task)
    except NoSuchTask:
        return "no such task"
