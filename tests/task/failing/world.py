"""Local servers that misbehave on demand: HTTP in all states, a silent socket, a closed port, a grumpy mail server."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import ExitStack, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from typing_extensions import Self

#: The clock of the HTTP server stands still here, years from any worker's clock.
SERVER_TIME = 1_000_000_000


class Handler(BaseHTTPRequestHandler):
    """`/status/503?retry-after=30`, `/aws/400/ThrottlingException`, `/truncated`, `/hang`, ..."""

    server: HTTP

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        verb, *words = url.path.strip("/").split("/")
        getattr(self, f"answer_{verb}")(*words)

    do_POST = do_PUT = do_GET  # noqa: N815 - the base class calls them so

    def answer_status(self, status: str, *_: str) -> None:
        self._reply(int(status), b"", {name.title(): value for name, value in self.query.items()})

    def answer_aws(self, status: str, code: str, *_: str) -> None:
        if "X-Amz-Target" in self.headers:  # DynamoDB speaks JSON
            body = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no"}).encode()
            return self._reply(int(status), body, {"Content-Type": "application/x-amz-json-1.0"})
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        return self._reply(int(status), body, {"Content-Type": "application/xml"})

    def answer_html(self, *_: str) -> None:
        self._reply(200, b"<html>We are down for maintenance</html>", {"Content-Type": "text/html"})

    def answer_truncated(self, *_: str) -> None:
        self._raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")

    def answer_chunked(self, *_: str) -> None:
        self._raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nonly this")

    def answer_garbage(self, *_: str) -> None:
        self._raw(b"220 this is a mail server\r\n")

    def answer_close(self, *_: str) -> None:
        self._raw(b"")

    def answer_loop(self, *_: str) -> None:
        self._reply(302, b"", {"Location": "/loop"})

    def answer_hang(self, *_: str) -> None:
        self.server.over.wait(30)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(SERVER_TIME, usegmt=True)

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _raw(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class HTTP(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.over = threading.Event()


class Mail(threading.Thread):
    """An SMTP server for one conversation after the other; `replies` says what it answers to which command."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.replies: dict[str, str] = {}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        def say(command: str, usual: str) -> None:
            connection.sendall(self.replies.get(command, usual).encode() + b"\r\n")

        say("HELO", "220 ready")
        for line in connection.makefile("rb"):
            command = line.split()[0].upper().decode()
            if self.replies.get(command) == "hang up":
                return
            usual = {"DATA": "354 go on", "EHLO": "250-here\r\n250 AUTH PLAIN LOGIN", "QUIT": "221 bye"}
            say(command, usual.get(command, "250 fine"))

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class World:
    """All of it, on free ports of the loopback."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        http = self._stack.enter_context(HTTP())
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        self._stack.callback(http.shutdown)
        self._stack.callback(http.over.set)
        self.url = f"http://127.0.0.1:{http.server_port}"
        self.port = http.server_port
        # bound, and nobody listens: connections are refused, and nobody else can take the port
        closed = self._stack.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))
        self.closed_port = closed.getsockname()[1]
        silent = self._stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        self.silent_port = silent.getsockname()[1]
        self.mail = Mail()
        self.mail.start()
        self._stack.callback(self.mail.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
