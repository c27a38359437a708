"""Run the shop: the web server, the gateway, two workers and beat; start again what dies, until Ctrl-C.

    python run.py                  http://127.0.0.1:8000, and the gateway beside it
    python run.py --port 9000 --flaky 30

The process ids stand in ``state/processes.json``: kill whom you like, or let storm.py do it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
STATE = Path(os.environ.get("SHOP_STATE", HERE / "state")).resolve()
LOGS, PROCESSES = STATE / "logs", STATE / "processes.json"


class Shop:
    """The processes of the shop, each in a session of its own, with a log of its own."""

    def __init__(self, port: int, gateway: int, flaky: float) -> None:
        """Prepare; nothing starts yet."""
        self._env = os.environ | {"SHOP_GATEWAY": f"http://127.0.0.1:{gateway}", "PYTHONUNBUFFERED": "1"}
        python = sys.executable
        worker = [python, "-m", "celery", "-A", "shop", "worker", "-c", "2", "--loglevel", "INFO", "-n"]
        self.commands = {
            "gateway": [
                python, "gateway/server.py", "--db", str(STATE / "gateway.db"),
                "--port", str(gateway), "--flaky", str(flaky),
            ],
            "web": [python, "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"],
            "worker-1": [*worker, "worker-1@%h"],
            "worker-2": [*worker, "worker-2@%h"],
            "beat": [python, "-m", "celery", "-A", "shop", "beat", "--pidfile=", "--loglevel", "INFO"],
        }  # fmt: skip
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._gone: list[subprocess.Popen[bytes]] = []
        self._started: dict[str, float] = {}

    def supervise(self) -> None:
        """Start what does not run, at most once a second each."""
        changed = False
        for name, command in self.commands.items():
            process = self._running.get(name)
            if process is not None and not exited(process):
                continue
            if time.monotonic() - self._started.get(name, -1.0) < 1.0:
                continue
            if process is not None:
                print(f"{name} (pid {process.pid}) is gone: started again", flush=True)
                self._gone.append(process)  # its pool children may still be at work, as after any real crash
            with (LOGS / f"{name}.log").open("ab") as log:
                self._running[name] = subprocess.Popen(
                    command, cwd=HERE, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            self._started[name], changed = time.monotonic(), True
        if changed:
            part = PROCESSES.with_suffix(".part")
            part.write_text(json.dumps({name: process.pid for name, process in self._running.items()}))
            part.replace(PROCESSES)

    def stop(self) -> None:
        """Ask everything to end, and kill what has not after a while."""
        for process in self._running.values():
            process.terminate()
        patience = time.monotonic() + 10
        while time.monotonic() < patience and not all(exited(process) for process in self._running.values()):
            time.sleep(0.1)
        for process in [*self._running.values(), *self._gone]:
            os.killpg(process.pid, signal.SIGKILL)  # the group is there until its leader is waited for
            process.wait()
        PROCESSES.unlink(missing_ok=True)


def exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process is over. It is not waited for: until then its number is nobody else's."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def interrupted(_signal: int, _frame: object) -> None:
    """Treat SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def main() -> None:
    """Run until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8000, help="of the web server (default: %(default)s)")
    parser.add_argument("--gateway-port", type=int, help="of the gateway (default: the next one)")
    parser.add_argument("--flaky", type=float, default=20, metavar="PERCENT", help="requests to the gateway that fail")
    options = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, interrupted)
    shop = Shop(options.port, options.gateway_port or options.port + 1, options.flaky)
    print(f"The shop is at http://127.0.0.1:{options.port}/, its logs in {LOGS}. Ctrl-C ends it.", flush=True)
    try:
        while True:
            shop.supervise()
            time.sleep(0.2)
    except KeyboardInterrupt:
        shop.stop()


if __name__ == "__main__":
    main()
