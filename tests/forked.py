"""`python -m celery ...` in processes that are forked from one which has imported the libraries: a second less each.

They look like `subprocess.Popen`'s where that is asked for; they are the zygote's children, and reaped at `wait` only.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ZYGOTE = Path(__file__).with_name("zygote.py")


class Zygote:
    """The process that forks."""

    def __init__(self) -> None:
        # A folder of tests on the path would hide installed packages of the same name.
        command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-I", str(ZYGOTE)]
        self._lock = threading.Lock()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(self._close)

    def ask(self, **request: Any) -> int:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            print(json.dumps(request), file=self._process.stdin, flush=True)
            return int(self._process.stdout.readline())

    def _close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@lru_cache(maxsize=1)
def zygote() -> Zygote:
    """The one of this process."""
    return Zygote()


class Forked:
    """One `celery` command."""

    def __init__(
        self, words: Sequence[str], *, folder: Path, env: Mapping[str, str], out: Path, err: Path, session: bool = False
    ) -> None:
        """Start it; what it prints is appended to the files `out` and `err`, which may be the same."""
        self.returncode: int | None = None
        for file in (out, err):
            file.touch()  # it is looked into before the child is there
        self.pid = zygote().ask(
            words=list(words), folder=str(folder), environment=dict(env), out=str(out), err=str(err), session=session
        )

    @property
    def ended(self) -> bool:
        """Looks without reaping: until then nobody else is given its number."""
        if self.returncode is not None:
            return True
        # The state stands behind the name, which may hold anything.
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"

    def wait(self, timeout: float = 60) -> int:
        """Reap it, and return its exit code, or the number of the signal that ended it, negative."""
        if self.returncode is None:
            wait_until(lambda: self.ended, timeout, f"{self.pid} does not end")
            self.returncode = zygote().ask(reap=self.pid)
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
