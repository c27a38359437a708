"""A sandbox for an app: a ledger, a broker and a clock of its own, for as long as it is open."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery_durable import failures, wiring
from celery_durable.errors import DurableError
from celery_durable.ledger.sandbox import FILE, SandboxLedger
from celery_durable.testing.delivering import LONGEST_RUN, WORKER, deliver, deliver_in_child
from celery_durable.testing.judging import Judging
from celery_durable.testing.trail import Guide, Trail

if TYPE_CHECKING:
    from pathlib import Path

    from celery import Celery
    from typing_extensions import Self

    from celery_durable.testing.trail import Point

#: Folders of the broker. One in memory would be shared by all the apps of a process.
_FOLDERS = {"data_folder_in": "messages", "data_folder_out": "messages", "control_folder": "control"}
#: What an app in a sandbox is set to, besides: nothing leaves its folder.
CONF: dict[str, Any] = {
    "broker_url": "filesystem://", "broker_read_url": "filesystem://", "broker_write_url": "filesystem://",
    "broker_use_ssl": None, "result_backend": "durable://", "task_always_eager": False,
    "task_store_eager_result": False,
}  # fmt: skip
#: Variables with which Celery overrides its settings.
_VARIABLES = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND")
#: Deliveries after which a task is taken for one that never ends.
MOST_RUNS = 1000


class SandboxError(DurableError):
    """A crash test cannot be done as it was asked for."""


class Sandbox(Judging):
    """An app with a ledger, a broker and a clock of its own, while the block lasts.

    The app's own ledger and broker are not touched. What is submitted in the block (``task.delay()``) is a row of the
    sandbox; ``work`` runs it, ``advance`` moves the ledger's clock. A context manager.
    """

    def __init__(self, app: Celery, folder: Path) -> None:
        """Take an app, and an empty folder for its ledger."""
        self.app = wiring.unwrapped(app)
        self.folder = folder
        self._side = wiring.Plugin(self.app)
        host = self._side.host
        self._host = host.sandbox(folder / FILE) if host is not None else None
        #: The sandbox's ledger.
        self.ledger = SandboxLedger(wiring.Plugin(self.app).settings, folder, self._host)
        self._side.__dict__.update(settings=wiring.Plugin(self.app).settings, ledger=self.ledger)
        self._kept: dict[str, Any] = {}

    @property
    def url(self) -> str:
        """The URL of the sandbox's ledger, a SQLite file: what transactional steps write is there."""
        return self.ledger.url

    def __enter__(self) -> Self:
        """Put the app into the sandbox."""
        app = self.app
        app.finalize()
        self._kept = {
            "plugin": app.__dict__.get(wiring.ATTRIBUTE), "changes": dict(app.conf.changes), "pool": app._pool,
            "producers": app.amqp._producer_pool, "cache": app._backend_cache, "local": dict(vars(app._local)),
            "environ": {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ},
        }  # fmt: skip
        app.__dict__[wiring.ATTRIBUTE] = self._side
        folders = {option: str(self.folder / name) for option, name in _FOLDERS.items()}
        for name, value in (CONF | {"broker_transport_options": {"polling_interval": 0.05, **folders}}).items():
            app.conf[name] = value
        self._make_folders()
        self._disconnect()
        return self

    def __exit__(self, *exc: object) -> None:
        """Give the app back as it was."""
        app, kept = self.app, self._kept
        if "publisher" in self._side.__dict__:
            self._side.publisher.close()
        self.ledger.db.dispose()
        if self._host is not None:
            self._host.close()
        app.conf.changes.clear()
        app.conf.changes.update(kept["changes"])
        self._disconnect()
        app._pool, app.amqp._producer_pool, app._backend_cache = kept["pool"], kept["producers"], kept["cache"]
        vars(app._local).update(kept["local"])
        os.environ.update(kept["environ"])
        if kept["plugin"] is None:
            del app.__dict__[wiring.ATTRIBUTE]
        else:
            app.__dict__[wiring.ATTRIBUTE] = kept["plugin"]

    def _make_folders(self) -> None:
        for name in set(_FOLDERS.values()):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()

    def _disconnect(self) -> None:
        """Have the app look at its settings again when it next needs a broker or a result backend."""
        app = self.app
        app._pool, app.amqp._producer_pool, app._backend_cache = None, None, None
        vars(app._local).pop("backend", None)

    # Time and work ----------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Move the ledger's clock on by so many seconds: leases pass, waits and retries come due. Nobody sleeps.

        Only the ledger's clock moves, the one that every time of a row is compared with; ``time.time()`` stays.
        """
        self.ledger.advance(seconds)

    def work(self) -> int:
        """Run in this process what is due, and what follows from it, until nothing is; return how many runs.

        What waits for a later time goes on waiting: ``advance`` first.
        """
        ran = 0
        while rings := self._due():
            for ring in rings:
                deliver(self._side, ring)
                ran = self._counted(ran)
        return ran

    def work_out(self, trail: Trail, target: Point | None = None, *, task: str = "", recover: bool = True) -> bool:
        """Run what there is to its end, each run in a process of its own, through every wait; noting the crash points.

        The process that comes by ``target`` is killed there. Its row is queued again, as a worker does that sees a
        process die, unless ``recover`` is False: then that is the end. Returns whether a process was killed.
        """
        ran = 0
        while True:
            for ring in self._due():
                name = str(ring.envelope.headers["task"])
                prefix = "" if name == task else f"{name}: "
                guide = Guide(trail, target, prefix, self._side.settings.table_prefix)
                status = deliver_in_child(self._side, ring, guide, self.folder / "strays")
                ran = self._counted(ran)
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
                    raise SandboxError(
                        f"{name} ran for longer than {LONGEST_RUN} s; give it less to do in a crash test."
                    )
                if trail.struck and not recover:
                    return True
                if status:
                    self._bury()
                break
            else:
                wait = self.ledger.next_wake()
                if wait is None:
                    return trail.struck
                self.advance(max(0.0, wait) + 0.01)

    def _due(self) -> list[Any]:
        """Sweep, as every worker does, and return what is to be run."""
        for sweep in (self.ledger.release, self.ledger.follow, self.ledger.expire_leases, self.ledger.expire_deadlines):
            sweep(100, actor=WORKER)
        return self.ledger.due()

    def _bury(self) -> None:
        """Record that the process of whatever is running is gone."""
        for task_id, token, claim in self.ledger.running():
            gone = failures.loss("worker_lost", "WorkerLostError", "signal 9", worker=WORKER, pid=None, claim=claim)
            self.ledger.lose(task_id, token, gone, owed_token=uuid4().hex, actor=WORKER)

    @staticmethod
    def _counted(ran: int) -> int:
        if ran >= MOST_RUNS:
            raise SandboxError(f"The tasks did not come to an end in {MOST_RUNS} runs: do they wait or retry for ever?")
        return ran + 1

    def reset(self) -> None:
        """Forget every task of the sandbox, and set its clock right."""
        self.ledger.wipe()
        self._make_folders()
        (self.folder / "strays").unlink(missing_ok=True)

    @property
    def strays(self) -> list[str]:
        """Tasks that are not durable and were sent: their messages are lost with the sandbox, nobody runs them."""
        path = self.folder / "strays"
        return sorted(set(path.read_text().split())) if path.exists() else []


__all__ = ["Sandbox", "SandboxError"]
