"""A forked process whose N-th system call of a kind kills it, or fails."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, NamedTuple

from tests.services.find import MissingServerError, find_program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: prctl: that any process may trace this one; Debian and Ubuntu allow it to a parent only.
PR_SET_PTRACER, ANYBODY = 0x59616D61, -1

#: Seconds after which a process that was struck hangs.
PATIENCE = 60


class Strike(NamedTuple):
    """What strikes, and at which system calls."""

    name: str
    calls: str
    deadly: bool
    injected: str


#: The request is not sent; the reply finds nobody, or is lost. No send fails: libpq would wait for the server's word on
#: it, for ever where the connection is not really broken.
NETWORK = (
    Strike("die before a send", "sendto", deadly=True, injected="signal=SIGKILL"),
    Strike("die before a reply", "recvfrom", deadly=True, injected="signal=SIGKILL"),
    Strike("lose a reply", "recvfrom", deadly=False, injected="error=ECONNRESET"),
)
#: Where there is no server it is the disk.
DISK = (
    Strike("die before a write", "pwrite64", deadly=True, injected="signal=SIGKILL"),
    Strike("fail to write", "pwrite64", deadly=False, injected="error=EIO"),
    Strike("die before a sync", "fsync,fdatasync", deadly=True, injected="signal=SIGKILL"),
    Strike("fail to sync", "fsync,fdatasync", deadly=False, injected="error=EIO"),
)


class Struck(NamedTuple):
    """How a process ended."""

    fired: bool
    code: int
    said: str


class Strace:
    """The program; building it raises MissingServerError where it is missing or may not trace."""

    name = "strace"

    def __init__(self) -> None:
        self.program = find_program("strace", package="strace")
        tried = subprocess.run([self.program, "-qq", "-e", "trace=none", "true"], capture_output=True, check=False)
        if tried.returncode:
            raise MissingServerError(f"strace may not trace here: {tried.stderr.decode().strip()}")

    def strike(
        self, folder: Path, strike: Strike, nth: int, ready: Callable[[], object], do: Callable[[], object]
    ) -> Struck:
        """Have `do` run in a forked process, in which nothing is counted before `ready` has run."""
        said, seen = folder / "said", folder / "seen"
        said.write_text("")
        is_ready, tell_ready = os.pipe()
        goes, go = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(go)
            _be_struck(said, ready, tell_ready, goes, do)
        os.close(tell_ready)
        os.close(goes)
        try:
            assert os.read(is_ready, 1), f"it did not come so far:\n{said.read_text()}"
            tracer = self._attach(pid, strike, nth, seen)
            os.close(go)
        finally:
            os.close(is_ready)
            status = os.waitpid(pid, 0)[1]
        tracer.communicate(timeout=60)
        code = os.waitstatus_to_exitcode(status)
        fired = code == -signal.SIGKILL if strike.deadly else "(INJECTED)" in seen.read_text()
        return Struck(fired, code, said.read_text())

    def _attach(self, pid: int, strike: Strike, nth: int, seen: Path) -> subprocess.Popen[str]:
        """Return when it counts: the process is told to stop by then, and goes on in strace's hands only."""
        inject = f"inject={strike.calls}:{strike.injected}:when={nth}"
        command = [self.program, "-p", str(pid), "-o", str(seen), "-e", f"trace={strike.calls}", "-e", inject]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        told = tracer.stderr.readline()
        assert "attached" in told, told
        return tracer


def _be_struck(said: Path, ready: Callable[[], object], tell_ready: int, goes: int, do: Callable[[], object]) -> None:
    """Be the process: never returns."""
    code = 1
    try:
        sys.stdout = sys.stderr = said.open("a")
        signal.alarm(PATIENCE)
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(ANYBODY))
        ready()
        os.write(tell_ready, b".")
        os.read(goes, 1)
        do()
        code = 0
    except BaseException:  # noqa: BLE001 - told to who asked for it
        said.open("a").write(traceback.format_exc())
    finally:
        os._exit(code)
