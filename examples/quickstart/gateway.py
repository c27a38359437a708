"""A stand-in for a payment gateway, and the demo's witness: it knows nothing of Celery or the ledger.

    python gateway.py --db gateway.db            prints its URL, then serves until it is stopped

    POST /charges   {"order_id": "...", "cents": 1250}      with an Idempotency-Key header

Like real gateways it makes one charge per idempotency token and answers a repeated token with that
first charge. A request without a token is charged each time. Requests and charges are counted apart,
in a SQLite file of its own: what was asked of it, and what it did.
"""

import argparse
import json
import random
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SLOWEST = 0.060  # seconds that a charge takes
FASTEST = 0.020

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY, token TEXT, order_id TEXT NOT NULL, worker_pid INTEGER,
    received_at REAL NOT NULL, answered_at REAL
);
CREATE INDEX IF NOT EXISTS requests_open ON requests (worker_pid) WHERE answered_at IS NULL;
CREATE TABLE IF NOT EXISTS charges (
    id INTEGER PRIMARY KEY, token TEXT UNIQUE, order_id TEXT NOT NULL, cents INTEGER NOT NULL,
    charged_at REAL NOT NULL
);
"""


class BadRequestError(ValueError):
    """The client's mistake, in words for the client."""


@dataclass(frozen=True)
class Order:
    """What a request asks for."""

    token: str | None
    order_id: str
    cents: int
    worker_pid: int | None


@dataclass(frozen=True)
class Charge:
    """What the gateway answers; `repeated` when the token had been charged before."""

    number: int
    repeated: bool


class Book:
    """The gateway's file: every request as it came in, and every charge made."""

    def __init__(self, path: Path) -> None:
        """Open the file, creating it where needed."""
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(SCHEMA)

    def receive(self, order: Order) -> int:
        """Count a request before anything is done about it; returns its number."""
        with self._lock:
            cursor = self._db.execute(
                "INSERT INTO requests (token, order_id, worker_pid, received_at) VALUES (?, ?, ?, ?)",
                (order.token, order.order_id, order.worker_pid, time.time()),
            )
            return cursor.lastrowid or 0

    def charge(self, order: Order) -> Charge:
        """Charge the order, unless its token was charged before: then return that charge."""
        with self._lock:
            cursor = self._db.execute(
                "INSERT INTO charges (token, order_id, cents, charged_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (token) DO NOTHING",
                (order.token, order.order_id, order.cents, time.time()),
            )
            if cursor.rowcount:
                return Charge(cursor.lastrowid or 0, repeated=False)
            number, order_id, cents = self._db.execute(
                "SELECT id, order_id, cents FROM charges WHERE token = ?", (order.token,)
            ).fetchone()
        if (order_id, cents) != (order.order_id, order.cents):
            msg = f"token {order.token!r} was used for another charge: use a new one"
            raise BadRequestError(msg)
        return Charge(number, repeated=True)

    def close_request(self, request: int) -> None:
        """Note that a request is no longer being worked on."""
        with self._lock:
            self._db.execute("UPDATE requests SET answered_at = ? WHERE id = ?", (time.time(), request))


class Server(ThreadingHTTPServer):
    """One thread per request, on a free port of the loopback address."""

    request_queue_size = 64

    def __init__(self, book: Book, port: int) -> None:
        """Listen on `port`, or on a free one when it is 0."""
        super().__init__(("127.0.0.1", port), Handler)
        self.book = book


class Handler(BaseHTTPRequestHandler):
    """Reads one request, takes its time, charges, takes its time, answers."""

    server: Server

    def do_POST(self) -> None:
        """Make a charge."""
        if self.path != "/charges":
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"no such path: {self.path}; try POST /charges"})
            return
        try:
            order = self._read()
        except BadRequestError as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        request = self.server.book.receive(order)
        try:
            self._charge(order)
        finally:
            self.server.book.close_request(request)

    def _read(self) -> Order:
        """Check what came in; raises BadRequestError."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        pid = self.headers.get("X-Worker-Pid", "")
        try:
            fields = json.loads(body)
            return Order(
                token=self.headers.get("Idempotency-Key"),
                order_id=str(fields["order_id"]),
                cents=int(fields["cents"]),
                worker_pid=int(pid) if pid.isdigit() else None,
            )
        except (ValueError, KeyError, TypeError) as error:
            msg = 'the body must be JSON like {"order_id": "ORD-0001", "cents": 1250}'
            raise BadRequestError(msg) from error

    def _charge(self, order: Order) -> None:
        # Half of the time passes before the charge and half after it, so that a client may die with
        # the charge not made yet, or made but not yet answered.
        pause = random.uniform(FASTEST, SLOWEST) / 2  # noqa: S311 - a delay is no secret
        time.sleep(pause)
        try:
            charge = self.server.book.charge(order)
        except BadRequestError as error:
            self._answer(HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)})
            return
        time.sleep(pause)
        status = HTTPStatus.OK if charge.repeated else HTTPStatus.CREATED
        self._answer(status, {"charge_id": f"ch_{charge.number:06d}", "repeated": charge.repeated})

    def _answer(self, status: HTTPStatus, fields: dict[str, object]) -> None:
        body = json.dumps(fields).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            # The client was killed while it waited: what was charged stays charged.
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Write no access log: the file has every request."""


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description="A payment gateway stand-in with idempotency tokens.")
    parser.add_argument("--db", type=Path, required=True, help="SQLite file for requests and charges")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    options = parser.parse_args()
    server = Server(Book(options.db), options.port)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
