"""A flaky payment gateway, and the witness of what was charged: it knows nothing of Celery, Django or the ledger.

    python gateway/server.py --db gateway.db --port 8085 --flaky 20

    POST /charges   {"order": "WEB-1", "cents": 1250}   with an Idempotency-Key header: charged once per key
    POST /die       it ends at once, as by a power cut: whoever asked it just now gets no answer

With ``--flaky 20`` one request in five fails: half of those before the charge (503), half after it (the connection
breaks, and the client cannot know). Requests and charges are counted in its own SQLite file.
"""

import argparse
import json
import os
import random
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, number TEXT NOT NULL, key TEXT NOT NULL, pid INTEGER);
CREATE TABLE IF NOT EXISTS charges (id INTEGER PRIMARY KEY, number TEXT NOT NULL, cents INTEGER, key TEXT UNIQUE);
"""
PAUSE = 0.02  # seconds: before the charge, and after it


class Book:
    """The gateway's file."""

    def __init__(self, path: Path) -> None:
        """Open it, creating it where needed."""
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(SCHEMA)

    def asked(self, number: str, key: str, pid: str | None) -> None:
        """Count a request before anything is done about it."""
        with self._lock:
            self._db.execute("INSERT INTO requests (number, key, pid) VALUES (?, ?, ?)", (number, key, pid))

    def charge(self, number: str, cents: int, key: str) -> str:
        """Charge, unless the key was charged before; return the number of its charge."""
        with self._lock:
            self._db.execute(
                "INSERT INTO charges (number, cents, key) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
                (number, cents, key),
            )
            (charge,) = self._db.execute("SELECT id FROM charges WHERE key = ?", (key,)).fetchone()
        return f"ch_{charge:06d}"


class Gateway(ThreadingHTTPServer):
    """One thread per request, on the loopback address."""

    request_queue_size = 64

    def __init__(self, book: Book, port: int, flaky: float) -> None:
        """Listen; ``flaky`` is the part of requests that fails."""
        super().__init__(("127.0.0.1", port), Handler)
        self.book, self.flaky = book, flaky


class Handler(BaseHTTPRequestHandler):
    """Reads one request, takes its time, charges, takes its time, answers or fails."""

    server: Gateway

    def do_POST(self) -> None:
        """Charge, or die."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path == "/die":
            os._exit(1)
        try:
            wanted = json.loads(body)
            number, cents, key = str(wanted["order"]), int(wanted["cents"]), self.headers["Idempotency-Key"]
        except (ValueError, KeyError, TypeError):
            return self._answer(400, {"error": 'send {"order": "WEB-1", "cents": 1250}'})
        if self.path != "/charges" or not key:
            return self._answer(404, {"error": "POST /charges, with an Idempotency-Key"})
        self.server.book.asked(number, key, self.headers.get("X-Pid"))
        luck = random.random()  # noqa: S311 - a bad day is no secret
        time.sleep(PAUSE)
        if luck < self.server.flaky / 2:
            return self._answer(503, {"error": "busy"})
        charge = self.server.book.charge(number, cents, key)
        time.sleep(PAUSE)
        if luck < self.server.flaky:
            self.close_connection = True  # charged, and nobody is told
            return None
        return self._answer(200, {"charge": charge})

    def _answer(self, status: int, fields: dict[str, str]) -> None:
        body = json.dumps(fields).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True  # the client was killed meanwhile; what was charged stays charged

    def log_message(self, *_: object) -> None:
        """Write no access log: the file has every request."""


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description="A payment gateway stand-in with idempotency keys and bad days.")
    parser.add_argument("--db", type=Path, required=True, help="SQLite file for requests and charges")
    parser.add_argument("--port", type=int, default=8085)
    parser.add_argument("--flaky", type=float, default=0, metavar="PERCENT", help="requests that fail")
    options = parser.parse_args()
    Gateway(Book(options.db), options.port, options.flaky / 100).serve_forever()


if __name__ == "__main__":
    main()
