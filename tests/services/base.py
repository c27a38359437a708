"""What all private servers share: ports, a directory, a guarded process tree."""

from __future__ import annotations

import atexit
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil

if TYPE_CHECKING:
    from typing_extensions import Self

GUARDIAN = Path(__file__).with_name("guardian.py")
# Below the kernel's ephemeral range: no outgoing connection can sit on a server's port while it is down.
PORTS = range(18000, 32000)
_live: set[Server] = set()  # closed at exit, whoever forgot


class Server:
    """One private server. Building one starts nothing; it raises MissingServerError without the program.

    `start`, `stop` and `kill` may be called from any thread, one at a time; they return when it is done.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_timeout: ClassVar[float] = 90.0

    def __init__(self, *options: str) -> None:
        """Take `options` (words for the server's command line, unless the subclass says otherwise)."""
        self.options = options
        self._owner = os.getpid()
        self._guardian: subprocess.Popen[bytes] | None = None
        self._reserved: list[socket.socket] = []
        self._paused = False
        self.find_programs()
        self.directory = Path(tempfile.mkdtemp(prefix=f"durable-{self.name}-"))
        self.user = self.pick_user()
        self.port = self.reserve_port()
        os.chown(self.directory, self.user.pw_uid, self.user.pw_gid)
        _live.add(self)

    # What a subclass says about its server.

    @property
    def url(self) -> str:
        """A broker URL for Celery, or a SQLAlchemy URL."""
        raise NotImplementedError

    def find_programs(self) -> None:
        """Note the paths of the programs, or raise MissingServerError."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Create the data before the first start."""

    def command(self) -> list[str]:
        """The server in the foreground."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What is added to the environment."""
        return {}

    def ready(self) -> bool:
        """Whether it answers; errors of the connection count as no."""
        raise NotImplementedError

    def pick_user(self) -> pwd.struct_passwd:
        """The user that the server runs as."""
        return pwd.getpwuid(os.getuid())

    # What all servers can do.

    @property
    def running(self) -> bool:
        """Whether its process tree is there."""
        return self._guardian is not None and self._guardian.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How its first process ended, 128 + N where signal N did that; None while it runs, or never ran."""
        return None if self._guardian is None else self._guardian.poll()

    @property
    def processes(self) -> list[psutil.Process]:
        """The server's processes, its first one first."""
        if self._guardian is None or not self.running:
            return []
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._guardian.pid).children(recursive=True)
        return []

    @property
    def log(self) -> str:
        """What it has printed so far."""
        path = self.directory / "output.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start, with the same ports and data as before, and wait until it answers. No-op while it runs."""
        if self.running:
            return self
        marker = self.directory / ".prepared"
        if not marker.exists():
            self.prepare()
            marker.touch()
        owner_and_user = [os.getpid(), int(self.stop_signal), self.user.pw_uid, self.user.pw_gid]
        with (self.directory / "output.log").open("ab") as output:
            self._guardian = subprocess.Popen(
                [sys.executable, GUARDIAN, *map(str, owner_and_user), self.directory, *self.command()],
                cwd=self.directory,
                env=self._full_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for the tests
            )
        self._await_readiness()
        return self

    def stop(self, timeout: float = 60.0) -> None:
        """Stop politely: clients are told, data is written. Killed after `timeout` seconds."""
        self._end(signal.SIGHUP, timeout)

    def kill(self) -> None:
        """SIGKILL the whole tree; when this returns nobody is left. The data stays for `start`."""
        self._end(signal.SIGTERM, 30.0)

    def pause(self) -> None:
        """SIGSTOP the whole tree: connections stay open, and the server accepts them, but nothing answers."""
        self._paused = True
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Continue after `pause`."""
        if not self._paused:
            return
        self._paused = False
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def close(self) -> None:
        """End it for good: the processes, the directory, the ports."""
        if os.getpid() != self._owner:
            return  # a forked child that leaves through atexit
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        for reserved in self._reserved:
            reserved.close()
        _live.discard(self)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on port {self.port}, {'running' if self.running else 'down'}>"

    # For subclasses.

    def reserve_port(self) -> int:
        """A free loopback port, kept for this server while it is down too, against other test processes."""
        for port in random.SystemRandom().sample(PORTS, 200):  # tests seed the common generator
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0celery-durable-test-port-{port}")  # vanishes with this process
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            except OSError:
                claim.close()
                continue
            self._reserved.append(claim)
            return port
        raise RuntimeError(f"no free port between {PORTS.start} and {PORTS.stop}")

    def run(self, *command: str, timeout: float = 60.0, drop: bool = False) -> str:
        """Run a program in the server's environment, with `drop` as the server's user; what it printed."""
        switch: dict[str, Any] = {}
        if drop and self.user.pw_uid != os.getuid():
            switch = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command,
            cwd=self.directory,
            env=self._full_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **switch,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
        return done.stdout

    def _full_environment(self) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", **self.environment()}

    def _await_readiness(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if not self.running:
                raise RuntimeError(f"{self.name} ended at start:\n{self.log[-4000:]}")
            with suppress(OSError, RuntimeError, subprocess.TimeoutExpired):
                if self.ready():
                    return
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"{self.name} did not answer within {self.start_timeout:g} s:\n{self.log[-4000:]}")

    def _end(self, number: signal.Signals, timeout: float) -> None:
        if self._guardian is None or not self.running:
            return
        self.resume()  # a stopped process would not hear a polite signal
        self._guardian.send_signal(number)
        try:
            self._guardian.wait(timeout)
        except subprocess.TimeoutExpired:
            self._guardian.send_signal(signal.SIGTERM)
            self._guardian.wait(30.0)


@atexit.register
def _close_all() -> None:
    for server in list(_live):
        with suppress(Exception):
            server.close()
