"""Fuzzed messages thrown at a worker: it lives, valid work among them completes, each bad one is a row or counted.

1,000 of them, 100,000 with DURABLE_MATRIX=full. The mutations are drawn from a printed seed.
"""

from __future__ import annotations

import base64
import json
import os
import random
import string
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from kombu import Connection, Producer

from tests.crash.kit import QUEUE
from tests.crash.witness import FINISHED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.crash.kit import Stage

FULL = os.environ.get("DURABLE_MATRIX") == "full"
NUMBER = 100_000 if FULL else 1_000
#: Of so many messages one is valid, and one is submitted as usual.
VALID, SUBMITTED = 10, 50
#: Messages that may lie in the broker while more are sent: memory is not what is tested.
AHEAD = 1_000
HEADERS = (
    "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id",
    "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "stamped_headers", "stamps", "durable",
    "compression",
)  # fmt: skip
CONTENT = ("application/json", "application/x-python-serialize", "text/plain", "application/data", "", "a/b", "x" * 90)
ENCODINGS = ("utf-8", "binary", "utf-99", "latin-1", "")


class Mutator:
    """Makes messages that are wrong in one to three ways."""

    def __init__(self, seed: int, *, redis: bool) -> None:
        self.random = random.Random(seed)
        self.redis = redis
        self.kinds: Counter[str] = Counter()

    def valid(self) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
        task_id = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        headers = {"lang": "py", "task": "work", "id": task_id, "root_id": task_id, "retries": 0, "eta": None}
        body = json.dumps([[self.random.randrange(99)], {}, {"callbacks": None, "chain": None, "chord": None}])
        return body.encode(), headers, {"content_type": "application/json", "content_encoding": "utf-8"}

    def bad(self) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
        """A message of which one thing is wrong for certain, and perhaps others too."""
        body, headers, properties = self.valid()
        for _ in range(self.random.choice((0, 0, 1, 2))):
            body, headers, properties = self._changed(body, headers, properties)
        how = self.random.choice((self._truncated, self._no_json, self._no_body, self._wrong_body, self._wrong_header))
        self.kinds[how.__name__] += 1
        return how(body, headers, properties)

    def _changed(self, body: bytes, headers: dict[str, Any], properties: dict[str, Any]) -> Any:
        """Something else about it, which may or may not matter."""
        chance = self.random.random()
        if chance < 0.6:
            headers = headers | {self.random.choice(HEADERS): self.value()}
        elif chance < 0.7:
            headers = {k: v for k, v in headers.items() if k != self.random.choice(HEADERS)}
        elif chance < 0.8:
            properties = properties | {"content_type": self.random.choice(CONTENT)}
        elif chance < 0.9:
            properties = properties | {"content_encoding": self.random.choice(ENCODINGS)}
        else:
            headers = {}
        return body, headers, properties

    def _truncated(self, body: bytes, headers: Any, properties: Any) -> Any:
        return body[: self.random.randrange(1, len(body))], headers, properties

    def _no_json(self, _body: bytes, headers: Any, properties: Any) -> Any:
        size = self.random.choice((1, 9, 99, 999, 9_999))
        if self.random.random() < 0.004:
            size = 1_500_000
        return b"\xff" + self.random.randbytes(size), headers, properties

    def _no_body(self, _body: bytes, headers: Any, properties: Any) -> Any:
        return b"", headers, properties

    def _wrong_body(self, _body: bytes, headers: Any, properties: Any) -> Any:
        value = self.value()
        if isinstance(value, list) and len(value) == 3:
            value = value[:2]
        if isinstance(value, dict):
            value.pop("args", None)
            value.pop("task", None)
        return json.dumps(value).encode(), headers, properties

    def _wrong_header(self, body: bytes, headers: Any, properties: Any) -> Any:
        name = self.random.choice(
            ("id", "task", "timelimit", "eta", "expires", "retries", "root_id", "group", "stamps")
        )
        wrong = {
            "id": (7, [], ["a"], {}, None, "", True), "task": (7, ["work"], {}, None, ""),
            "timelimit": (7, "ab", [1], [1, 2, 3], ["a", None], [-1, None], {"a": 1}),
            "eta": ("soon", "", 7, [], {}), "expires": ("soon", "", 7.5, [1], {"a": 1}),
            "retries": ("many", [], {}, -1, 2**70, 1.5), "root_id": (7, [], {"a": 1}), "group": (7, ["g"], {"a": 1}),
            "stamps": (7, [1], "abc"),
        }[name]  # fmt: skip
        return body, headers | {name: self.random.choice(wrong)}, properties

    def value(self, depth: int = 0) -> Any:
        """Anything that JSON can say."""
        pick = self.random.randrange(9 if depth < 3 else 6)
        if pick < 6:
            number, real = self.random.randrange(-(2**40), 2**40), self.random.uniform(-9e9, 9e9)
            return (
                None, self.random.random() < 0.5, number, real,
                "".join(self.random.choices(string.printable + "äé漢\x00", k=self.random.randrange(12))), "",
            )[pick]  # fmt: skip
        inner = [self.value(depth + 1) for _ in range(self.random.randrange(5))]
        return inner if pick < 8 else {str(n): v for n, v in enumerate(inner)}

    def wire(self) -> bytes:
        """What lies in a Redis list and is no message."""
        self.kinds["wire"] += 1
        body, headers, properties = self.valid()
        whole = {
            "body": base64.b64encode(body).decode(), "headers": headers, "content-type": "application/json",
            "properties": properties | {"body_encoding": "base64", "delivery_tag": str(uuid.uuid4())},
        }  # fmt: skip
        text = json.dumps(whole).encode()
        return self.random.choice(
            (text[: self.random.randrange(len(text))], self.random.randbytes(30), b"[]", b"7", text)
        )


class Thrower:
    """Sends messages into the worker's queue as they are."""

    def __init__(self, crash: Stage, mutator: Mutator) -> None:
        self.crash, self.mutator = crash, mutator
        self.valid: set[str] = set()
        self.bad = self.unsent = 0
        self._connection = Connection(crash.app.conf.broker_url)
        self._channel = self._connection.default_channel
        crash.app.amqp.queues[QUEUE](self._channel).declare()
        self._producer = Producer(self._channel)

    def throw(self, number: int) -> Iterator[int]:
        for n in range(number):
            if n % SUBMITTED == 0:
                self.valid.add(self.crash.submit("work", n).id)
            elif n % VALID == 0:
                body, headers, properties = self.mutator.valid()
                self.valid.add(headers["id"])
                self._send(body, headers, properties)
            elif self.mutator.redis and n % 7 == 0:
                self._channel.client.lpush(QUEUE, self.mutator.wire())
                self.bad += 1
            else:
                self._send_bad()
            yield n
        self._connection.release()

    def _send_bad(self) -> None:
        try:
            self._send(*self.mutator.bad())
        except Exception:  # noqa: BLE001 - the client itself, or the broker, refuses it: nobody gets it
            self.unsent += 1
            self._channel = self._connection.channel()
            self._producer = Producer(self._channel)
        else:
            self.bad += 1

    def _send(self, body: bytes, headers: dict[str, Any], properties: dict[str, Any]) -> None:
        compression = headers.pop("compression", None)  # as an argument it would be carried out
        if compression is not None:
            headers["compression"] = compression
        self._producer.publish(body, exchange=QUEUE, routing_key=QUEUE, headers=headers, **properties)


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.timeout(3600 if FULL else 300)
@pytest.mark.parametrize(("broker", "ledger"), [("redis", "sqlite"), ("rabbitmq", "postgresql")])
def test_a_worker_outlives_what_is_thrown_at_it(stage, seed: int, broker: str, ledger: str) -> None:
    crash = stage(broker, ledger, worker_prefetch_multiplier=50, durable_republish_after=60)
    worker = crash.worker()
    pid, began = worker.pid, time.monotonic()
    thrower = Thrower(crash, Mutator(seed, redis=broker == "redis"))
    for n in thrower.throw(NUMBER):
        if n % 500 == 499:
            crash.await_(lambda: crash.depth() < AHEAD, "the worker does not keep up", 600)
    crash.await_(lambda: thrower.valid <= crash.witness.finished(), "valid work was lost", 900)
    crash.await_(lambda: _kept(crash) >= thrower.bad, "a bad message left no row", 600)
    crash.await_(lambda: not _kinds(crash)["running", None], "a body that has ended is not settled", 60)
    seconds = time.monotonic() - began
    rows, refused = _kinds(crash), worker.output.count("A message could not be kept")
    print(f"{thrower.bad} bad, {thrower.unsent} unsent, {len(thrower.valid)} valid in {seconds:.0f} s: {dict(rows)}")
    print(f"refused {refused}; mutations {dict(thrower.mutator.kinds)}")
    assert (worker.running, worker.pid) == (True, pid)
    assert worker.output.count("Trying to re-establish the connection") == 0
    assert sum(rows.values()) + refused == thrower.bad + len(thrower.valid)
    assert rows["succeeded", None] == len(thrower.valid)
    assert crash.witness.count(FINISHED) == len(thrower.valid), "each ran once"
    assert crash.ledger.verify() == []
    crash.await_(lambda: crash.depth() == 0, "a message is left")


def _kept(crash: Stage) -> int:
    """How many bad messages have a row; those in the worker's log alone count as well."""
    return sum(n for (state, _), n in _kinds(crash).items() if state != "succeeded")


def _kinds(crash: Stage) -> Counter[tuple[str, str | None]]:
    c = crash.ledger.t.task.c
    kind = sa.func.coalesce(c.failure_kind, c.wait_kind).label("kind")
    query = sa.select(c.state, kind, sa.func.count().label("n")).group_by(c.state, kind)
    found = crash.ledger.db.run(lambda connection: connection.execute(query).all(), read_only=True)
    return Counter({(r.state, r.kind): r.n for r in found})
