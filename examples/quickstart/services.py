"""What the demo runs beside the workers: the gateway, and `celery durable` commands."""

import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fleet import tail

START_TIMEOUT = 15.0
COMMAND_TIMEOUT = 30.0


class DemoError(Exception):
    """The demo cannot go on; the message is for its user."""


class Gateway:
    """The gateway's process, and the file that only it writes."""

    def __init__(self, folder: Path, state: Path) -> None:
        """Start it and wait until it serves."""
        self.db = state / "gateway.db"
        log = state / "logs" / "gateway.log"
        with log.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                [sys.executable, str(folder / "gateway.py"), "--db", str(self.db)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the gateway
                text=True,
            )
        try:
            self.url = self._read_url()
        except BaseException:  # Ctrl-C too: nobody else knows of the process yet
            self.stop()
            raise
        if not self.url:
            self.stop()
            msg = f"the gateway did not start; its log ends with:\n{tail(log)}"
            raise DemoError(msg)

    def running(self) -> bool:
        """Whether it still serves."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _read_url(self) -> str:
        out = self._process.stdout
        if out is None or not select.select([out], [], [], START_TIMEOUT)[0]:
            return ""
        return out.readline().strip()


class Command:
    """One `celery -A app durable ...`, in the background or waited for."""

    def __init__(self, folder: Path, env: Mapping[str, str], *arguments: str) -> None:
        """Start it."""
        self.line = f"celery -A app durable {' '.join(arguments)}"
        self._process = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-m", "celery", "-A", "app", "durable", *arguments],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def done(self) -> bool:
        """Whether it has exited."""
        return self._process.poll() is not None

    def result(self) -> tuple[int, str, str]:
        """Exit code, output and errors; waits for them."""
        try:
            out, errors = self._process.communicate(timeout=COMMAND_TIMEOUT)
        except KeyboardInterrupt:
            self.stop()
            raise
        except subprocess.TimeoutExpired as error:
            self.stop()
            msg = f"`{self.line}` did not end within {COMMAND_TIMEOUT:.0f} s"
            raise DemoError(msg) from error
        return self._process.returncode, out.strip(), errors.strip()

    def stop(self) -> None:
        """End it, whatever it is doing."""
        if not self.done():
            self._process.kill()
            self._process.communicate()
