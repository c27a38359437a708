"""One "container": a guarded tree of processes, seen through the part of Docker's API that pytest-celery uses."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from tests.services import RabbitMQ, Redis
from tests.smoke.local.programs import BIN, number, program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: What Docker's API takes for a signal, at least. Signals that follow each other at once would be one to the process.
LATENCY = 0.3
LISTENING = "0: 00000000:{port:04X} 00000000:0000 0A"  # a line of /proc/net/tcp


class LocalContainer:
    """Looks like `docker.models.containers.Container`. Building one starts it, and returns when it answers.

    `mounts` are paths inside, with their folders outside. Ports and peers are those of 127.0.0.1: a container's
    `Hostname` has its port in it. Signals reach the first process only; the whole tree ends with it.
    """

    def __init__(
        self,
        image: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        mounts: Mapping[str, str],
        labels: Mapping[str, str],
    ) -> None:
        self.id = uuid.uuid4().hex * 2
        self.short_id = self.id[:12]
        self.name = f"local-{self.short_id}"
        self.image, self.labels = image, labels
        self._mounts = dict(mounts)
        path = f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self._env = {name: self._outside(str(value)) for name, value in env.items()} | {"PATH": path}
        # A worker's %h is the name of its machine.
        words = [self._outside(word).replace("%h", self.short_id) for word in argv]
        self._server, self._port = program(image, words, self._env)
        self._server.start()

    def _outside(self, text: str) -> str:
        """A path inside, as it is outside."""
        for inside, folder in self._mounts.items():
            if text == inside or text.startswith(f"{inside}/"):
                return folder + text[len(inside) :]
        return text

    # Life ----------------------------------------------------------------------------------------

    def kill(self, signal: str | int | None = None) -> None:
        self._signal(number(signal))

    def _signal(self, which: signal.Signals) -> None:
        if which == signal.SIGKILL:
            self._server.kill()  # nobody is left when this returns: a dying broker still answers
            return
        os.kill(self._server.processes[0].pid, which)
        time.sleep(LATENCY)

    def stop(self, timeout: float = 10) -> None:
        self._server.stop(timeout)

    def start(self) -> None:
        self._server.start()

    def restart(self, timeout: float = 10) -> None:
        self.stop(timeout)
        self.start()

    def pause(self) -> None:
        self._server.pause()

    def unpause(self) -> None:
        self._server.resume()

    def wait(self, timeout: float | None = None) -> dict[str, int | None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._server.running:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} has not ended within {timeout:g} s")
            time.sleep(0.02)
        return {"StatusCode": self._server.exit_code}

    def remove(self, *, force: bool = False) -> bool:
        self._server.close()
        return True

    # Looking -------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Docker's client keeps what it saw last; here everything is as it is now."""

    @property
    def status(self) -> str:
        return "running" if self._server.running else "exited"

    @property
    def attrs(self) -> dict[str, Any]:
        ports = {self._port: [{"HostIp": "127.0.0.1", "HostPort": str(self._server.port)}]} if self._port else {}
        hostname = f"127.0.0.1:{self._server.port}" if self._port else self.short_id
        return {
            "State": {"Status": self.status, "ExitCode": self._server.exit_code or 0},
            "Config": {"Hostname": hostname, "Env": [f"{k}={v}" for k, v in self._env.items()], "Labels": self.labels},
            "HostConfig": {"PortBindings": {}},
            "NetworkSettings": {"Networks": {"local": {"IPAddress": "127.0.0.1"}}, "Ports": ports},
        }

    def logs(self, **_: Any) -> bytes:
        return self._server.log.encode()

    def exec_run(self, cmd: str | Sequence[str], **_: Any) -> tuple[int, bytes]:
        words = shlex.split(cmd) if isinstance(cmd, str) else [str(word) for word in cmd]
        if words[:2] == ["cat", "/proc/net/tcp"]:  # which ports of the container listen
            up = self._port and self._server.running
            return 0, LISTENING.format(port=int(self._port.partition("/")[0])).encode() if up else b""
        if "get_running_processes_info" in words[-1]:  # there is no namespace: those of others are not ours
            return 0, json.dumps(self._processes(words[-1])).encode()
        if isinstance(self._server, RabbitMQ) and words[0] == "rabbitmqctl":
            return 0, self._server.ctl(*words[1:]).encode()
        if isinstance(self._server, Redis) and words[0] == "redis-cli":
            return 0, self._server.ask(*words[1:]).encode()
        words = [self._outside(word) for word in words]
        env, folder = os.environ | self._env, self._server.directory
        done = subprocess.run(words, env=env, cwd=folder, capture_output=True, check=False)
        return done.returncode, done.stdout or done.stderr

    def _processes(self, code: str) -> list[dict[str, Any]]:
        """What pytest-celery's `get_running_processes_info(columns)` would tell inside."""
        asked = re.search(r"get_running_processes_info\(([^()]*)\)", code)
        columns = (ast.literal_eval(asked.group(1)) if asked else None) or ["pid", "name", "cmdline", "create_time"]
        told = []
        for process in self._server.processes:
            with suppress(psutil.NoSuchProcess):
                told.append(process.as_dict(columns))
        return told
