"""Runs one server and makes sure that it never outlives the process that asked for it.

    python guardian.py OWNER_PID STOP_SIGNAL UID GID DIRECTORY COMMAND...

A process of its own, because nothing inside the owner survives its SIGKILL. It is the reaper of everything
the server starts, daemons included (`epmd`), so that killing the tree leaves nobody behind. It ends with the
tree, and with the server's exit code (128 + N where signal N ended it).

SIGHUP: stop the server politely. SIGTERM: SIGKILL the tree. Owner gone: politely, then SIGKILL, then
DIRECTORY is removed. Plain `prctl(PR_SET_PDEATHSIG)` would not do: it follows the *thread* that started the
server.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
AWAITED = {signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM}
ORPHAN_GRACE = 5.0  # seconds for a polite end when the owner is gone
IDLE_INTERVAL = 0.25  # seconds between looks at the owner; signals wake us at once
KILL_INTERVAL = 0.02  # seconds between rounds of killing


def main() -> None:
    """Start the command, watch, clean up."""
    owner, stop_signal, uid, gid = (int(word) for word in sys.argv[1:5])
    directory, command = sys.argv[5], sys.argv[6:]
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server = launch(command, uid, gid)
    dead: dict[int, int] = {}
    orphaned_at: float | None = None
    killing = False
    while reap(dead):
        if server in dead:
            killing = True  # what a server leaves behind goes with it
        if killing:
            kill_tree()
        got = signal.sigtimedwait(AWAITED, KILL_INTERVAL if killing else IDLE_INTERVAL)
        if got and got.si_signo == signal.SIGTERM:
            killing = True
        if got and got.si_signo == signal.SIGHUP and server not in dead:
            os.kill(server, stop_signal)
        if orphaned_at is None and os.getppid() != owner:
            orphaned_at = time.monotonic()
            if server not in dead:
                os.kill(server, stop_signal)
        if orphaned_at is not None and time.monotonic() > orphaned_at + ORPHAN_GRACE:
            killing = True
    if orphaned_at is not None:
        shutil.rmtree(directory, ignore_errors=True)
    code = dead[server]
    sys.exit(code if code >= 0 else 128 - code)


def launch(command: list[str], uid: int, gid: int) -> int:
    """Start the server as the given user; its process id."""
    libc = ctypes.CDLL(None)

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # should somebody kill the guardian
        signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)

    switch: dict[str, Any] = {}
    if uid != os.getuid():
        switch = {"user": uid, "group": gid, "extra_groups": []}
    return subprocess.Popen(command, preexec_fn=in_child, **switch).pid  # noqa: PLW1509 - there are no threads


def reap(dead: dict[int, int]) -> bool:
    """Bury who has died and note how; False when no child is left."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
            dead[pid] = os.waitstatus_to_exitcode(status)
    return False


def kill_tree() -> None:
    """SIGKILL everybody below; orphans come to us as the reaper, so that a few rounds reach all."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


if __name__ == "__main__":
    main()
