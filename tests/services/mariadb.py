"""MariaDB: durable as by default (a flush of the log per commit), only smaller."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress

from .base import Server
from .find import find_program

PACKAGE = "mariadb-server"


class MariaDB(Server):
    """A private MariaDB; the user `durable` needs no password. `url` names the `mysql` database."""

    name = "mariadb"

    def __init__(self, *options: str) -> None:
        """`options` go to mariadbd's command line, for example `--lower-case-table-names=1`."""
        super().__init__(*options)
        self._numbers = itertools.count(1)

    def find_programs(self) -> None:
        self._server = find_program("mariadbd", "mysqld", package=PACKAGE)
        self._install = find_program("mariadb-install-db", "mysql_install_db", package=PACKAGE)
        self._client = find_program("mariadb", "mysql", package="mariadb-client")

    @property
    def url(self) -> str:
        return self._url("mysql")

    def database(self) -> str:
        """The URL of a fresh, empty database: utf8mb4 in its default, case-insensitive collation."""
        name = f"test_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return self._url(name)

    def drop(self, url: str) -> None:
        """Drop a database that `database` made, whoever is connected."""
        name = url.rpartition("/")[2].partition("?")[0]
        # An open transaction holds its tables: DROP would wait for it for ever.
        users = self.sql(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'").split()
        for user in users:
            with suppress(RuntimeError):  # it may have gone by itself meanwhile
                self.sql(f"KILL CONNECTION {user}")
        self.sql(f"DROP DATABASE IF EXISTS {name}")

    def sql(self, statement: str, database: str = "mysql") -> str:
        """Run one statement by the client program; rows as tab-separated lines."""
        host = ["--protocol=tcp", "-h127.0.0.1", f"-P{self.port}", "-udurable"]
        return self.run(self._client, "--no-defaults", "-N", "-B", *host, database, "-e", statement)

    def ready(self) -> bool:
        return self.sql("SELECT 1").strip() == "1"

    def prepare(self) -> None:
        (self.directory / "init.sql").write_text(
            "CREATE USER IF NOT EXISTS durable@'%';\nGRANT ALL ON *.* TO durable@'%' WITH GRANT OPTION;\n"
        )
        (self.directory / "tmp").mkdir()
        words = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        self.run(self._install, "--no-defaults", *self._common(), *words)

    def command(self) -> list[str]:
        return [
            self._server,
            "--no-defaults",
            *self._common(),
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--socket=mariadb.sock",
            "--pid-file=mariadb.pid",
            f"--init-file={self.directory / 'init.sql'}",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M",
            "--max-connections=300",
            *self.options,
        ]

    def _common(self) -> list[str]:
        user = ["--user=root"] if os.getuid() == 0 else []
        # A starting server deletes all temporary tables in its tmpdir: it must not be shared.
        folders = [f"--datadir={self.directory / 'data'}", f"--tmpdir={self.directory / 'tmp'}"]
        return [*user, *folders, "--innodb-log-file-size=16M"]

    def _url(self, database: str) -> str:
        return f"mysql+pymysql://durable@127.0.0.1:{self.port}/{database}?charset=utf8mb4"
