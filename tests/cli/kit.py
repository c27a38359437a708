"""An app in a folder of its own, and its command as an operator calls it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_durable.ledger.registry import Presence
from tests.forked import Forked
from tests.ledger import kit

if TYPE_CHECKING:
    from pathlib import Path

    from celery_durable.ledger import Ledger

APP = """
import os, sys
from celery import Celery

print("noise from the app")
app = Celery("shop", broker="memory://", set_as_current=False)
app.conf.durable_ledger_url = {url!r}
app.conf.imports = ["orders"]
app.conf.update({conf!r})
"""
TASKS = """
from shop import app

print("noise from the tasks")

@app.task(name="shop.charge", max_retries=20)
def charge():
    pass
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr beside what the app printed there."""
        lines = [x for x in self.err.splitlines() if not x.startswith("noise")]
        assert len(lines) == 1, self.err
        return lines[0]


class Shop:
    """An app in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"sqlite:///{folder / 'ledger.db'}"
        self.write()
        (folder / "orders.py").write_text(TASKS)

    def write(self, url: str | None = None, **conf: Any) -> None:
        (self.folder / "shop.py").write_text(APP.format(url=url or self.url, conf=conf))

    @property
    def environment(self) -> dict[str, str]:
        hidden = {"COLUMNS", "NO_COLOR", "FORCE_COLOR", "APP", "CELERY_APP"}
        return {k: v for k, v in os.environ.items() if k not in hidden} | {"TERM": "xterm"}

    def celery(self, *words: str, env: dict[str, str] | None = None) -> Answer:
        """`python -m celery ...` in a process forked from one that has imported the libraries."""
        out, err = self.folder / "stdout", self.folder / "stderr"
        for file in (out, err):
            file.write_text("")
        environment = self.environment | (env or {})
        code = Forked(words, folder=self.folder, env=environment, out=out, err=err).wait()
        return self._answer(code, out.read_text(), err.read_text())

    def celery_afresh(self, *words: str) -> Answer:
        """The same in a new interpreter, which is slow."""
        command = [sys.executable, "-m", "celery", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return self._answer(done.returncode, done.stdout, done.stderr)

    def _answer(self, code: int, out: str, err: str) -> Answer:
        assert "Traceback" not in err, err
        return Answer(code, out, err)

    def durable(self, *words: str, **options: Any) -> Answer:
        return self.celery("-A", "shop", "durable", *words, **options)


def enter(ledger: Ledger, worker: str, *, queues: list[str], gone: bool = False) -> None:
    ledger.enter(Presence(worker, worker.partition("/")[0], 11, queues, ["shop.charge"], kit.BROKER, 30))
    phase = "stopped" if gone else "running"
    ledger.beat(worker, phase=phase, running=0 if gone else 4)


def on_a_terminal(shop: Shop, *words: str, typed: str | None = None, code: int = 0) -> str:
    """What a terminal shows; with `typed`, what is entered there as well."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "celery", *words]
    stdin = subprocess.DEVNULL if typed is None else follower
    with subprocess.Popen(
        command, cwd=shop.folder, env=shop.environment, stdin=stdin, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        if typed is not None:
            os.write(leader, typed.encode())
        seen = b""
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not chunk:
                break
            seen += chunk
        assert process.wait(60) == code
    os.close(leader)
    return seen.decode()
