"""The tasks of the crash tests: they append to the witness, wait at gates, and die in every way."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from celery import Celery, chain, chord
from celery.exceptions import SoftTimeLimitExceeded

from celery_durable import DurableTask
from tests.crash.tasks_failing import add_failing
from tests.crash.witness import FINISHED, LEFT, STARTED, TURN, Witness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENT = 1000  # random kills must not poison


class Once:
    """Something that happens once, whoever comes first, whatever dies afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> bool:
        try:
            os.close(os.open(self.folder / f"once-{name}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def build(conf: dict[str, Any], folder: Path) -> Celery:
    """Make the app, the same for the test and for its workers."""
    app = Celery("crash", set_as_current=False)
    app.conf.update(conf)
    witness = Witness(folder / "witness")

    def saw(task: DurableTask, what: str, note: object = "") -> None:
        witness.saw(what, task.request.id, task.fence, str(note))

    def task(**options: Any) -> Callable[..., Any]:
        options = {"base": DurableTask, "max_losses": PATIENT} | options
        return app.task(bind=True, shared=False, **options)  # shared: every app made later would have it too

    _add_workers(task, saw, folder)
    _add_stepping(task, saw, Once(folder))
    _add_long(task, saw, folder)
    _add_dying(task, saw)
    _add_unlucky(task, saw, Once(folder))
    add_failing(task, saw)
    app.finalize()
    return app


def _add_workers(task: Callable[..., Any], saw: Callable[..., None], folder: Path) -> None:
    """Tasks that do their work."""

    @task(name="work")
    def work(self, n=0, seconds=0.0):
        saw(self, STARTED, n)
        time.sleep(seconds)
        saw(self, FINISHED, n)
        return n

    @task(name="held")
    def held(self, gate):
        """Returns its fence once the gate is open."""
        saw(self, STARTED, gate)
        while not (folder / f"gate-{gate}").exists():
            time.sleep(0.02)
        saw(self, FINISHED, gate)
        return self.fence

    @task(name="next")
    def next_(self, n, seconds=0.0):
        saw(self, STARTED, n)
        time.sleep(seconds)
        saw(self, FINISHED, n)
        return n + 1

    @task(name="gathered")
    def gathered(self, values):
        saw(self, STARTED, values)
        return values

    @task(name="delegate")
    def delegate(self, form, n):
        """Replaced by a canvas."""
        saw(self, STARTED, form)
        forms = {
            "chain": lambda: chain(next_.s(n), next_.s()),
            "chord": lambda: chord([next_.s(n), next_.s(n + 1)], gathered.s()),
            "delegate": lambda: chain(next_.s(n), delegate.si("chain", n)),
        }
        raise self.replace(forms[form]())

    @task(name="told")
    def told(self, failed):
        """An errback: it gets the id of what failed."""
        saw(self, STARTED, failed)


def _add_long(task: Callable[..., Any], saw: Callable[..., None], folder: Path) -> None:
    """Tasks that can be stopped between two turns, and go on with the turn at which they were stopped."""

    def turn(self, n, seconds):
        saw(self, TURN, n)
        time.sleep(seconds)

    @task(name="long")
    def long(self, turns, seconds=0.05):
        """Looks before each turn whether it shall stop; does nothing more once `gate-end` is open."""
        saw(self, STARTED)
        try:
            for n in range(turns):
                if (folder / "gate-end").exists():
                    break
                self.check()
                self.step(f"turn {n}", turn, self, n, seconds)
                self.progress(n + 1, turns)
        except BaseException as exc:
            saw(self, LEFT, type(exc).__name__)
            raise
        saw(self, FINISHED)
        return self.fence


def _add_stepping(task: Callable[..., Any], saw: Callable[..., None], once: Once) -> None:
    """A task of many steps whose process is killed inside and after each of them, once."""

    def die(place):
        if once(place):
            os.kill(os.getpid(), signal.SIGKILL)

    def part(self, n):
        saw(self, STARTED, n)
        die(f"inside-{n}")
        saw(self, FINISHED, n)
        return n

    @task(name="stepping", max_losses=2)  # those behind a new step do not count
    def stepping(self, count):
        total = 0
        for n in range(count):
            total += self.step(f"part-{n}", part, self, n)
            die(f"after-{n}")
        return total


def _add_dying(task: Callable[..., Any], saw: Callable[..., None]) -> None:
    """Tasks whose process dies, hangs or stops in the first so many of their runs."""

    def dying(self, how, deaths=PATIENT):
        saw(self, STARTED, how)
        if self.fence <= deaths:
            DEATHS[how]()
        saw(self, FINISHED, how)
        return self.fence

    task(name="dies", max_losses=3)(dying)
    task(name="dies_for_good", on_loss="dead")(dying)
    task(name="limited", max_losses=3, time_limit=1.5)(dying)
    task(name="softly_limited", soft_time_limit=1)(dying)

    @task(name="softly_ended", soft_time_limit=1)
    def softly_ended(self, how):
        """Takes the soft limit for a reason to end in its own way."""
        saw(self, STARTED, how)
        try:
            if self.fence == 1:
                _hang()
        except SoftTimeLimitExceeded:
            if how == "retry":
                raise self.retry(countdown=0) from None
            if how == "wait":
                self.wait("more time", retry_in=0)
            return "cut short"
        return self.fence

    @task(name="stopped", time_limit=4)
    def stopped(self):
        """Stops its own process, which a parent takes for a busy one."""
        saw(self, STARTED)
        if self.fence == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        saw(self, FINISHED)
        return self.fence


def _add_unlucky(task: Callable[..., Any], saw: Callable[..., None], once: Once) -> None:
    """Tasks whose process dies once after their outcome was recorded."""

    class Unlucky(DurableTask):
        """Dies before chain, callbacks and result are sent."""

        abstract = True

        def __call__(self, *args, **kwargs):
            try:
                return super().__call__(*args, **kwargs)
            finally:
                if once(f"settled-{self.request.id}"):
                    os._exit(9)

    class Untold(DurableTask):
        """Dies after chain and callbacks were sent, before the result is stored."""

        abstract = True

        def __call__(self, *args, **kwargs):
            answer = super().__call__(*args, **kwargs)
            if once(f"told-{self.request.id}"):
                self.backend.mark_as_done = lambda *_, **__: os._exit(9)
            return answer

    @task(name="unlucky", base=Unlucky)
    def unlucky(self, n=0):
        saw(self, STARTED, n)
        return n

    @task(name="unlucky_failure", base=Unlucky)
    def unlucky_failure(self):
        saw(self, STARTED)
        raise ValueError("as planned")

    @task(name="untold", base=Untold)
    def untold(self, n=0):
        saw(self, STARTED, n)
        return n


def _hang() -> None:
    time.sleep(600)


DEATHS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "os._exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(3),
    "memory": lambda: bytearray(1 << 62),
    "hang": _hang,
}
