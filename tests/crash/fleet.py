"""Real worker processes: started, watched, killed, stopped in their tracks. Signals go to their own groups only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.forked import Forked
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds: a loaded machine is slow, a hang is longer


@dataclass(eq=False)
class Worker:
    """One worker, the leader of its own process group; it is not reaped before `Fleet.stop`."""

    name: str
    process: Forked | subprocess.Popen[bytes]
    log: Path
    struck: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        """Looks without reaping: until then nobody else is given its number."""
        if self.process.returncode is not None:
            return False
        if isinstance(self.process, Forked):
            return not self.process.ended
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def children(self) -> list[int]:
        """Its pool processes."""
        with suppress(psutil.NoSuchProcess):
            return [c.pid for c in psutil.Process(self.pid).children()]
        return []

    def await_ready(self) -> Worker:
        def ready() -> bool:
            assert self.running, f"{self.name} ended at start:\n{self.output[-4000:]}"
            return " ready." in self.output

        wait_until(ready, PATIENCE, f"{self.name} is not ready")
        return self

    def kill(self, *, children: bool = True) -> None:
        """SIGKILL: all of it, or the parent alone, which leaves its children orphaned."""
        self.struck = True
        self._signal(signal.SIGKILL, group=children)

    def freeze(self, harmless: Callable[[], bool] = lambda: True) -> None:
        """SIGSTOP all of it, at a moment that is `harmless`.

        Who is stopped in the middle of a write to SQLite keeps the file locked, for everybody.
        """

        def frozen() -> bool:
            self._signal(signal.SIGSTOP, group=True)
            if harmless():
                return True
            self.thaw()
            return False

        wait_until(frozen, PATIENCE, f"{self.name} is never at rest")

    def thaw(self) -> None:
        self._signal(signal.SIGCONT, group=True)

    def shut_down(self) -> None:
        """Ask for a warm shutdown."""
        self.struck = True
        self._signal(signal.SIGTERM, group=False)

    def shut_down_all(self) -> None:
        """SIGTERM to every process of it, as systemd does by default."""
        self.struck = True
        self._signal(signal.SIGTERM, group=True)

    def quit(self) -> None:
        """Ask for a cold shutdown: a soft one first, where that is set."""
        self.struck = True
        self._signal(signal.SIGQUIT, group=False)

    def exit_code(self) -> int:
        wait_until(lambda: not self.running, PATIENCE, f"{self.name} does not end")
        return self.process.wait()

    def _signal(self, number: signal.Signals, *, group: bool) -> None:
        if self.process.returncode is None:
            (os.killpg if group else os.kill)(self.pid, number)


class Fleet:
    """The workers of one test; `app` is the module that they load, `name` what their names begin with."""

    def __init__(self, folder: Path, env: Mapping[str, str], app: str = "tests.crash.app", name: str = "w") -> None:
        self._folder, self._env, self._app, self._name = folder, {**os.environ, **env}, app, name
        self.workers: list[Worker] = []

    def start(
        self, *options: str, pool: str = "prefork", concurrency: int = 2, wait: bool = True, afresh: bool = False
    ) -> Worker:
        """Start one more; `afresh` as an interpreter of its own, which reads the environment anew."""
        name = f"{self._name}{len(self.workers) + 1}"
        log = self._folder / f"{name}.log"
        words = ["-A", self._app, "worker", "-n", f"{name}@crash"]
        words += ["-P", pool, "-c", str(concurrency), "--loglevel=info", *options]
        words += ["--without-mingle", "--without-gossip"]  # meeting the neighbours costs a second
        # gevent has to patch what others import before they do.
        process = self._afresh(words, log) if afresh or pool == "gevent" else self._forked(words, log)
        worker = Worker(name, process, log)
        self.workers.append(worker)
        return worker.await_ready() if wait else worker

    def _forked(self, words: list[str], log: Path) -> Forked:
        return Forked(words, folder=ROOT, env=self._env, out=log, err=log, session=True)

    def _afresh(self, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "celery", *words],
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> list[Worker]:
        return [w for w in self.workers if w.running]

    def parent_of(self, pid: int) -> Worker | None:
        """The running worker that a pool process belongs to."""
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(pid).ppid()
            return next((w for w in self.running if w.pid == parent and not w.struck), None)
        return None

    def kill_all(self) -> None:
        for worker in self.running:
            worker.kill()

    def check(self) -> None:
        """No worker has ended by itself."""
        for worker in self.workers:
            assert worker.struck or worker.running, f"{worker.name} died:\n{worker.output[-6000:]}"

    def stop(self) -> None:
        """Kill every group that was ever started, orphans too; print how the logs end, which a failure shows."""
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.kill()
            worker.process.wait()
            print(f"--- {worker.name} (pid {worker.pid}, exit {worker.process.returncode}) ends with")
            print("\n".join(worker.output.splitlines()[-40:]))
