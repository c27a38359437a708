"""Where the storm rages: servers that every worker reaches under an address of its own, and what can happen to them.

All of it inside a network and a mount namespace of its own (`apart`): worker N speaks to 127.0.0.(10+N), so that
nftables can drop what it sends, or what it is sent; the servers' data lies on a small file system, which can be full.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from tests.services import MariaDB, Postgres, RabbitMQ, Redis, Server

#: Bytes for the data of both servers.
DISK = 1 << 30
EVERYWHERE = "0.0.0.0"  # noqa: S104 - within the namespace


def address(url: str, slot: int) -> str:
    """The URL that a worker uses."""
    return url.replace("127.0.0.1", f"127.0.0.{10 + slot}")


class OpenRedis(Redis):
    """As a broker."""

    def __init__(self) -> None:
        super().__init__("--bind", EVERYWHERE, "--protected-mode", "no")

    def wipe(self) -> None:
        """Lose everything; it is down."""
        for file in self.directory.glob("appendonly*"):
            shutil.rmtree(file)


class OpenRabbitMQ(RabbitMQ):
    """As a broker."""

    def environment(self) -> dict[str, str]:
        return super().environment() | {"RABBITMQ_NODE_IP_ADDRESS": EVERYWHERE}

    def wipe(self) -> None:
        """Lose everything; it is down."""
        shutil.rmtree(self.directory / "mnesia")
        (self.directory / "mnesia").mkdir()


class OpenPostgres(Postgres):
    """As a ledger."""

    def __init__(self) -> None:
        super().__init__("-clisten_addresses=*", "-cmax_wal_size=256MB")

    def crash(self) -> None:
        """Stop at once: `pg_ctl stop -m immediate`."""
        if self.processes:
            self.processes[0].send_signal(signal.SIGQUIT)
        with suppress(subprocess.TimeoutExpired):
            assert self._guardian is not None
            self._guardian.wait(30)
        self.kill()


class OpenMariaDB(MariaDB):
    """As a ledger."""

    def __init__(self) -> None:
        super().__init__(f"--bind-address={EVERYWHERE}")

    def crash(self) -> None:
        """Stop at once: it knows no other way than SIGKILL."""
        self.kill()


PAIRS: dict[str, tuple[type[Any], type[Any]]] = {
    "redis-postgresql": (OpenRedis, OpenPostgres),
    "rabbitmq-mariadb": (OpenRabbitMQ, OpenMariaDB),
}


# Namespaces ------------------------------------------------------------------------------------------


def apart(words: list[str]) -> None:
    """Become `words` in a network, with nothing but its own loopback, and a mount namespace; root's doing only.

    Raises:
        SystemExit: this user may not, or a program is missing.
    """
    for program, package in {"unshare": "util-linux", "ip": "iproute2", "nft": "nftables"}.items():
        if not shutil.which(program):
            raise SystemExit(f"The soak needs {program}: apt-get install {package}.")
    if os.geteuid():
        raise SystemExit("The soak cuts networks and fills disks in namespaces of its own: run it as root.")
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", *words]
    os.execvpe("unshare", ["unshare", "--net", "--mount", *inside], {**os.environ, "SOAK_APART": "1"})  # noqa: S606


class Network:
    """What of the loopback is dropped."""

    def __init__(self) -> None:
        _do("nft", "add table inet soak")
        _do("nft", "add chain inet soak cut { type filter hook input priority 0; }")

    def cut(self, slot: int, server: Server, direction: str) -> None:
        """Drop what a worker sends to a server ("out"), or what it is sent from there ("in")."""
        there, end = ("daddr", "dport") if direction == "out" else ("saddr", "sport")
        _do("nft", f"add rule inet soak cut ip {there} 127.0.0.{10 + slot} tcp {end} {server.port} drop")

    def heal(self) -> None:
        """Let everything through again."""
        _do("nft", "flush chain inet soak cut")

    def close(self) -> None:
        """Remove the rules."""
        _do("nft", "delete table inet soak")


class Disk:
    """A small file system; `folder` is where it is mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        _do("mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "none", str(folder))

    def fill(self) -> None:
        """Take all that is free."""
        with (self.folder / "filler").open("wb") as filler, suppress(OSError):  # until the system itself says so
            while True:
                filler.write(bytes(1 << 20))
                filler.flush()

    def free(self) -> None:
        """Give it back."""
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount."""
        _do("umount", "--lazy", str(self.folder))


class Cage:
    """A memory limit that holds next to nothing: who is put into it is killed when it needs a page more.

    `missing` says why there is none.
    """

    LIMIT: ClassVar = {"memory.limit_in_bytes": "262144", "memory.max": "262144"}

    def __init__(self) -> None:
        self.folder, self.missing = _memory_group() / f"soak-{os.getpid()}", ""
        try:
            self.folder.mkdir()
            name = next(name for name in self.LIMIT if (self.folder / name).exists())
            (self.folder / name).write_text(self.LIMIT[name])
        except (OSError, StopIteration) as error:
            self.missing = f"no memory cgroup at {self.folder}: {error or 'it has no limit'}"

    def put(self, pid: int) -> None:
        """Put a process into it."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """Remove it, once it is empty."""
        with suppress(OSError):
            self.folder.rmdir()


def _memory_group() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory") / path.lstrip("/")
    return Path("/sys/fs/cgroup")


def _do(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
