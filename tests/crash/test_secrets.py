"""Secrets seeded wherever a task has them are found nowhere: not in the database, the log or the command's answers."""

from __future__ import annotations

import base64
import json
import pickle
import random
import string
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from celery import Celery, chain, group
from kombu import Connection, Producer

from tests.conftest import DIALECTS
from tests.crash.command import told, told_json
from tests.crash.kit import QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.crash.kit import Stage

#: What stands before the part of a secret that is looked for: what quoting, escaping and splitting meet.
BEFORE = ("", "pa'ss\"", "wört\\", "two words ", "a,b;", "漢字/+=")
#: How a task that leaks ends, state by state.
WAITING, DEAD = ("retry", "wait", "sleep", "checkpoint"), ("raise", "locals", "text", "reject", "exit", "memory")
LISTS = (
    ("ls", "--limit", "1000"), ("failures", "--limit", "1000"), ("failures", "--group"),
    ("waits",), ("status",), ("workers",),
)  # fmt: skip


class Seeds:
    """Makes secrets, each known by the place that it was put into."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.cores: dict[str, str] = {}

    def secret(self, place: str) -> str:
        core = self.cores[place] = "".join(self.random.choices(string.ascii_lowercase + string.digits, k=15))
        return self.random.choice(BEFORE) + core

    def customer(self, place: str, folder: Path) -> dict[str, Any]:
        """Nested arguments; a secret lies in the vault, too, that no argument holds."""
        vault = folder / f"vault-{len(self.cores)}"
        vault.write_text(self.secret(f"{place}: a local variable"), encoding="utf-8")
        return {
            "id": 7, "vault": str(vault), "card": {"number": self.secret(f"{place}: card number"), "brand": "V"},
            "list": [{"api_key": self.secret(f"{place}: api key in a list")}],
            "fields": [{"name": "password", "value": self.secret(f"{place}: value of a field")}],
        }  # fmt: skip

    def found(self, text: str, *, but: str = "nothing") -> list[str]:
        """Places whose secret stands in a text, as it is or encoded."""
        return [
            place for place, core in self.cores.items() if but not in place and any(f in text for f in _forms(core))
        ]


@cache
def _forms(core: str) -> set[str]:
    data = core.encode()
    shifted = {base64.b64encode(b"\0" * n + data).decode()[(0, 2, 3)[n] : (n + len(data)) * 8 // 6] for n in range(3)}
    return {core, data.hex()} | shifted


class Leak:
    """Has every kind of row made that may hold a secret."""

    def __init__(self, stage: Stage, seeds: Seeds) -> None:
        self.stage, self.seeds = stage, seeds
        self.task = stage.app.tasks["leaks"]
        self.ids: dict[str, str] = {}

    def arguments(self, place: str) -> tuple[dict[str, Any], str]:
        return self.seeds.customer(place, self.stage.folder), self.seeds.secret(f"{place}: owner")

    def submit(self) -> None:
        for how in (*WAITING, *DEAD, "return", "step", "requeue"):
            self.ids[how] = self.task.delay(*self.arguments(how), how).id
            customer, owner = self.arguments(f"{how} by name")
            self.ids[f"{how} by name"] = self.task.delay(customer=customer, owner=owner, how=how).id

    def submit_canvas(self) -> None:
        """What follows a task travels in its message; a chord's body in that of a stock task as well."""
        link = self.task.s(*self.arguments("callback"))
        self.ids["linked"] = self.task.apply_async((*self.arguments("linked"), "wait"), link=link).id
        after = self.task.si(*self.arguments("chained"))
        self.ids["chain"] = chain(self.stage.app.tasks["held"].si("shut"), after).apply_async().parent.id
        parts = group(self.task.si(*self.arguments("part"), "wait"), self.stage.app.tasks["held"].si("shut"))
        chain(parts, self.task.si(*self.arguments("stock body"))).apply_async()
        self.task.apply_async((*self.arguments("first"), "wait"), idempotency_key="one")
        self.ids["alias"] = self.task.apply_async(
            (*self.arguments("alias"), "wait"), idempotency_key="one", link=link
        ).id

    def publish(self) -> None:
        """Messages of others: to be adopted, unknown, unreadable."""
        with Celery("other", broker=self.stage.app.conf.broker_url, set_as_current=False) as other:
            for name in ("leaks", "keyed_leaks", "nobody.knows"):
                customer, owner = self.arguments(f"{name} by another app")
                self.ids[f"foreign {name}"] = other.send_task(name, (customer, owner), queue=QUEUE).id
        with Connection(self.stage.app.conf.broker_url) as connection:
            producer = Producer(connection.default_channel)
            for kind, (data, content_type) in self._unreadable().items():
                task_id = self.ids[kind] = str(uuid.uuid4())
                headers = {"lang": "py", "task": "leaks", "id": task_id, "argsrepr": repr(self.arguments(kind))}
                told = {"content_type": content_type, "content_encoding": "utf-8"}
                producer.publish(data, exchange="", routing_key=QUEUE, headers=headers, **told)
            body = base64.b64encode(json.dumps(self._body("no message")).encode()).decode()
            for item in ({"body": body}, self._body("not even a body")):
                connection.default_channel.client.lpush(QUEUE, json.dumps(item))

    def _body(self, place: str) -> Any:
        return [list(self.arguments(place)), {"password": self.seeds.secret(f"{place}: password")}, {}]

    def _unreadable(self) -> dict[str, tuple[bytes, str]]:
        cut = json.dumps(self._body("truncated"))[:-30].encode()
        wrong = json.dumps(self._body("not three")[:2]).encode()
        pickled = pickle.dumps(self._body("pickled"))
        return {
            "truncated": (cut, "application/json"), "not three": (wrong, "application/json"),
            "pickled": (pickled, "application/x-python-serialize"), "plain": (cut, "text/plain"),
        }  # fmt: skip

    def observe(self) -> None:
        for how in ("raise", "retry", "locals", "text", "return"):
            self.ids[f"stock {how}"] = self.stage.app.tasks["stock_leaks"].delay(*self.arguments("stock"), how).id


@pytest.mark.parametrize("ledger", ["sqlite", *(pytest.param(d, marks=pytest.mark.slow) for d in DIALECTS[1:])])
def test_secrets_are_found_nowhere(stage: Callable[..., Stage], seed: int, ledger: str) -> None:
    # Given tasks that fail, wait, retry, repeat one another, and messages nobody can read, all full of secrets
    seeds = Seeds(seed)
    crash = stage("redis", ledger, result_backend="durable://", durable_observe=["stock_*"])
    worker = crash.worker("--loglevel=debug", concurrency=3)
    leak = Leak(crash, seeds)
    leak.submit(), leak.submit_canvas(), leak.publish(), leak.observe()
    ends = {f"{how}{by}": "waiting" for how in WAITING for by in ("", " by name")}
    ends |= {f"{how}{by}": "dead" for how in DEAD for by in ("", " by name")}
    ends |= dict.fromkeys(
        ("truncated", "not three", "pickled", "plain", "foreign leaks", "foreign keyed_leaks"), "dead"
    )
    ends |= {
        "foreign nobody.knows": "waiting",
        "alias": "waiting",
        "linked": "waiting",
        "return": "succeeded",
        "step": "succeeded",
    }
    ends |= {"stock raise": "dead", "stock retry": "waiting", "stock return": "succeeded"}

    def reached() -> bool:
        states = {row.task_id: row.state for row in crash.rows()}
        return all(states.get(leak.ids[kind]) == state for kind, state in ends.items())

    crash.await_(reached, "not every task is where it should be")
    crash.await_(
        lambda: len(crash.rows(crash.ledger.t.task.c.failure_kind == "undecodable")) == 6, "not all are parked"
    )

    # And the dead are replayed, and die again
    assert told_json(crash, "replay", "--kind", "permanent", "--reason", "once more", "--yes")["replayed"] > 0
    crash.await_(lambda: crash.get(leak.ids["raise"]).claims == 2, "the replay does not run")
    crash.await_state(leak.ids["raise"], "dead")

    # Then no secret can be read: in the database, in the log (but for tasks of Celery's own), in answers, which are
    # the same on every database
    found = {place: seeds.found(text) for place, text in dump(crash)}
    found["log"] = seeds.found(worker.output, but="stock")
    commands = [(*words, *how) for words in LISTS for how in ((), ("--json",))]
    if ledger == "sqlite":
        some = [i for kind, i in leak.ids.items() if "by name" not in kind]
        commands += [words for i in some for words in (("show", "--full", i), ("why", i))]
        commands += [("show", leak.ids[how], "--json") for how in ("raise", "locals", "return", "step", "stock raise")]
    for words in commands:
        found[" ".join(words)] = seeds.found(told(crash, *words))
    found = {where: secrets for where, secrets in found.items() if secrets}
    assert not found, json.dumps(found, indent=1)
    assert crash.ledger.verify() == []


def dump(crash: Stage) -> Iterator[tuple[str, str]]:
    """Every column of every table; of SQLite the files as well."""
    for table in crash.ledger.t.metadata.sorted_tables:
        rows = crash.ledger.db.run(lambda c, t=table: c.execute(sa.select(t)).all(), read_only=True)
        for column in table.c:
            yield str(column), "\n".join(_text(row._mapping[column]) for row in rows)
    for path in crash.folder.glob("ledger.db*") if crash.ledger.dialect.name == "sqlite" else ():
        yield path.name, _text(path.read_bytes())


def _text(value: Any) -> str:
    return bytes(value).decode("latin-1") if isinstance(value, bytes | memoryview) else str(value)
