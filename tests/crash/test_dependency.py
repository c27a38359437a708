"""A server that a task needs is away: for most of the retries, or for all of them."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

from tests.crash.command import told, told_json
from tests.crash.tasks_failing import BUDGET

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from celery_durable.records import Record
    from tests.crash.kit import Stage


class Rates:
    """An HTTP server that is down, its port refusing connections, until it is started."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._server = HTTPServer(("127.0.0.1", 0), Answer, bind_and_activate=False)
        self._stack.callback(self._server.server_close)
        self._server.server_bind()  # bound, and nobody listens: nobody else can take the port
        self.port = self._server.socket.getsockname()[1]
        return self

    def start(self) -> None:
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self._stack.callback(self._server.shutdown)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"rates")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        pass

    def address_string(self) -> str:
        return socket.gethostname()


def test_a_dependency_comes_up_in_time_or_too_late(stage: Callable[..., Stage]) -> None:
    crash = stage("redis", "postgresql")
    crash.worker()
    with Rates() as late, Rates() as gone:
        # Given two tasks whose servers are down, when one comes up before the last retry
        saved, lost = crash.submit("fetches", late.port).id, crash.submit("fetches", gone.port).id
        for retry in range(1, BUDGET + 1):
            await_retry(crash, saved, retry)
            await_retry(crash, lost, retry)
            if retry == BUDGET:
                late.start()
            hasten(crash)

        # Then the one task succeeds
        done = crash.await_state(saved, "succeeded")
        assert (done.claims, done.retries, done.losses, done.decoded_result()) == (BUDGET + 1, BUDGET, 0, "rates")
        assert told_failures(crash, saved) == [(n, "transient", True) for n in range(1, BUDGET + 1)]

        # And the other is dead, with a row for each attempt that says why
        dead = crash.await_state(lost, "dead")
        assert (dead.failure_kind, dead.claims, dead.retries) == ("transient", BUDGET + 1, BUDGET)
        failed = [(n, "transient", n <= BUDGET) for n in range(1, BUDGET + 2)]
        assert told_failures(crash, lost) == failed
        last = told_json(crash, "show", lost)["failure"]
        assert last["exception"] == "urllib.error.URLError"
        assert "Connection refused" in last["message"]
        assert last["verdict"].endswith(f"all {BUDGET} retries are used up")

        # When its server is up at last and it is replayed, then it succeeds, and nothing of its past is gone
        gone.start()
        told(crash, "replay", lost, "--reason", "the rates are back")
        back = crash.await_state(lost, "succeeded")
    assert (back.claims, back.retries, back.decoded_result()) == (BUDGET + 2, 0, "rates")
    assert told_failures(crash, lost) == failed
    tried = ["submit", *["claim", "fail", "release"] * BUDGET, "claim", "fail"]
    assert crash.verbs(lost) == [*tried, "replay", "claim", "succeed"]
    crash.audit()


def await_retry(crash: Stage, task_id: str, number: int) -> Record:
    def waits() -> Record | None:
        record = crash.get(task_id)
        return record if (record.state, record.retries) == ("waiting", number) else None

    return crash.await_(waits, f"retry {number} of {task_id} does not wait")


def hasten(crash: Stage) -> None:
    """Let the time come that all that waits is waiting for."""
    crash.sql("UPDATE durable_task SET wake_at = 1 WHERE state = 'waiting'")


def told_failures(crash: Stage, task_id: str) -> list[tuple[int, str, bool]]:
    return [(f["claim"], f["kind"], f["retryable"]) for f in told_json(crash, "show", task_id)["failures"]]
