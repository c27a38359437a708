"""PostgreSQL: durable as by default (fsync, full-page writes), only smaller."""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import signal
from contextlib import suppress
from pathlib import Path

from .base import Server
from .find import find_program, postgres_folders

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "64MB",
    "max_connections": "300",
    "dynamic_shared_memory_type": "mmap",  # in the data directory: SIGKILL leaves nothing in /dev/shm
    "timezone": "UTC",
}


class Postgres(Server):
    """A private PostgreSQL; superuser `durable`, no password. `url` names the `postgres` database."""

    name = "postgresql"
    stop_signal = signal.SIGINT  # "fast": sessions are cut, a checkpoint is written

    def __init__(self, *options: str) -> None:
        """`options` go to postgres' command line, for example `-csynchronous_commit=off`."""
        super().__init__(*options)
        self._numbers = itertools.count(1)

    def find_programs(self) -> None:
        self._postgres = find_program("postgres", last=postgres_folders(), package="postgresql")
        home = str(Path(self._postgres).resolve().parent)  # all of one version; psql on PATH may be a wrapper
        self._initdb = find_program("initdb", first=home, package="postgresql")
        self._psql = find_program("psql", first=home, package="postgresql-client")

    def pick_user(self) -> pwd.struct_passwd:
        """PostgreSQL refuses to run as root."""
        if os.getuid() != 0:
            return super().pick_user()
        with suppress(KeyError):
            return pwd.getpwnam("postgres")
        return pwd.getpwnam("nobody")

    @property
    def url(self) -> str:
        return self._url("postgres")

    def database(self) -> str:
        """The URL of a fresh, empty database."""
        name = f"test_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return self._url(name)

    def drop(self, url: str) -> None:
        """Drop a database that `database` made, whoever is connected."""
        self.sql(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement by psql; rows as tab-separated lines."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "durable", "-d", database]
        plain = ["-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"]
        return self.run(self._psql, *plain, *where, "-c", statement)

    def ready(self) -> bool:
        return self.sql("SELECT 1").strip() == "1"

    def prepare(self) -> None:
        words = ["-D", "data", "-U", "durable", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
        # --no-sync concerns this first write only; the server itself syncs.
        self.run(self._initdb, *words, "--no-sync", drop=True)

    def command(self) -> list[str]:
        settings = [f"-c{name}={value}" for name, value in SETTINGS.items()]
        return [self._postgres, "-D", "data", "-p", str(self.port), *settings, *self.options]

    def close(self) -> None:
        if os.getpid() == self._owner:
            self._release_shared_memory()
        super().close()

    def _release_shared_memory(self) -> None:
        """Remove the System V segment that a postmaster keeps as its lock: after SIGKILL nobody else does."""
        self.kill()
        with suppress(OSError, ValueError, IndexError):
            lines = (self.directory / "data" / "postmaster.pid").read_text().splitlines()
            segment = int(lines[6].split()[1])  # line 7: key and id
            ctypes.CDLL(None).shmctl(segment, 0, None)  # 0 is IPC_RMID

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://durable@127.0.0.1:{self.port}/{database}"
