"""The demo's workers: started, watched, killed, started again. It signals no process but its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

UNEXPECTED_EXITS = 8  # more of them than any half-written message explains


class FleetError(Exception):
    """The workers do not stay up; the message holds the end of a log."""


@dataclass
class Worker:
    """One worker process, the leader of its own session; `killed` says that the demo did it."""

    name: str
    slot: int
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    killed: bool = False

    @property
    def pid(self) -> int:
        """Also the id of its process group, which its pool children share."""
        return self.process.pid

    def running(self) -> bool:
        """Whether the process has not exited.

        It looks without reaping. As long as the dead leader is not reaped its number is not given to
        anybody else, so a signal to the group can only reach the children that outlived it.
        """
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


class Fleet:
    """Keeps `size` workers up."""

    def __init__(self, folder: Path, logs: Path, env: Mapping[str, str], size: int) -> None:
        """Prepare workers of the app in `folder`; nothing starts yet."""
        self._folder, self._logs, self._env, self._size = folder, logs, env, size
        self._live: dict[int, Worker] = {}
        self._gone: list[Worker] = []
        self.unexpected_exits = 0

    def start(self) -> None:
        """Start a worker in every slot."""
        for slot in range(1, self._size + 1):
            self._start(slot)

    def supervise(self) -> list[str]:
        """Start anew every worker that exited; returns a line for each exit that was no kill."""
        notes = []
        for worker in list(self._live.values()):
            if worker.running():
                continue
            self._gone.append(self._live.pop(worker.slot))
            if not worker.killed:
                self.unexpected_exits += 1
                notes.append(f"worker {worker.name} exited by itself and is started again")
            if self.unexpected_exits > UNEXPECTED_EXITS:
                msg = f"the workers keep exiting; the log of {worker.name} ends with:\n{tail(worker.log)}"
                raise FleetError(msg)
            self._start(worker.slot)
        return notes

    def owner(self, pid: int) -> Worker | None:
        """Find the running worker of this fleet whose pool child `pid` is, if it is one."""
        parent = parent_of(pid)
        workers = (worker for worker in self._live.values() if not worker.killed)
        return next((worker for worker in workers if worker.pid == parent), None)

    def kill_worker(self, worker: Worker, *, with_children: bool) -> None:
        """SIGKILL the parent alone, which leaves its children orphaned, or all of them at once."""
        worker.killed = True
        (os.killpg if with_children else os.kill)(worker.pid, signal.SIGKILL)

    def logs(self) -> Iterator[Path]:
        """Log files of the workers that run now."""
        return (worker.log for worker in self._live.values())

    def stop(self) -> None:
        """Kill every group that was ever started, and with it the orphans. May be called again.

        A polite shutdown would take Celery seconds, and these workers never were promised one.
        """
        for worker in [*self._live.values(), *self._gone]:
            # Once it is reaped its number may be somebody else's: a second call must not signal it.
            if worker.process.returncode is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.process.wait()
        self._live.clear()
        self._gone.clear()

    def _start(self, slot: int) -> None:
        started = sum(1 for worker in self._gone if worker.slot == slot)
        name = f"w{slot}.{started + 1}"
        log = self._logs / f"{name}.log"
        command = [sys.executable, "-m", "celery", "-q", "-A", "app", "worker", "-P", "prefork", "-c", "2"]
        command += ["--loglevel=warning", "-n", f"{name}@quickstart"]
        # Meeting the neighbours costs each new worker a second, and this demo starts many.
        command += ["--without-mingle", "--without-gossip"]
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                command,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._live[slot] = Worker(name, slot, log, process)


def parent_of(pid: int) -> int | None:
    """Find the parent of a process, as /proc tells it; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses, and may itself hold blanks and parentheses.
    return int(stat.rpartition(")")[2].split()[1])


def tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log, indented."""
    text = log.read_text(errors="replace").splitlines()[-lines:] or ["(nothing)"]
    return "\n".join(f"    {line}" for line in text)
