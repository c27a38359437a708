"""A pool process that has ended is seen before the pool itself looks."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from celery_durable.worker import deaths, forkgate, orphans
from tests.waiting import wait_until


class Request:
    """One delivery in the pool."""

    def __init__(self, pid):
        self.worker_pid, self.buried = pid, False

    def bury(self):
        self.buried = True


def pool(*pids):
    return SimpleNamespace(_pool=[SimpleNamespace(pid=pid) for pid in pids])


@pytest.fixture
def child():
    """A process that waits to be killed; it is reaped afterwards only."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_who_has_ended_and_was_not_reaped_is_dead(child):
    """billiard is told by a pipe, which is closed a moment earlier: it may look too soon, and again in five seconds."""
    request = Request(child)
    assert not deaths.bury(pool(child), [request])

    os.kill(child, signal.SIGKILL)

    assert wait_until(lambda: deaths.bury(pool(child), [request]))
    assert request.buried


def test_who_is_not_in_the_pool_any_more_is_dead(child):
    request = Request(child)

    assert deaths.bury(pool(), [request])


def test_a_delivery_that_no_process_has_begun_is_left_alone():
    assert not deaths.bury(pool(), [Request(None)])


def test_in_a_process_that_is_no_worker_s_child_nothing_is_tied_to_the_parent(monkeypatch):
    calls = []
    monkeypatch.setattr(orphans, "_prctl", lambda *given: calls.append(given))

    with orphans.ending_with_parent():
        pass

    assert not orphans.mortal()
    assert calls == []


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="Linux only")  # noqa: PTH110
@pytest.mark.parametrize("inside", [True, False])
def test_a_body_ends_with_its_worker_and_nothing_else_does(monkeypatch, inside):
    """The middle process is the worker; its child, in a body or not, tells by a pipe whether it outlived that."""
    assert forkgate.gate(), "what it has registered notes who forks"
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        orphans.load()
        if os.fork() == 0:
            with orphans.ending_with_parent():
                if inside:
                    os.write(writer, b"ready ")
                    signal.pause()
            os.write(writer, b"ready ")
            wait_until(lambda: os.getppid() != orphans._worker)
            os.write(writer, b"outlived")
        else:
            signal.pause()
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 6) == b"ready "
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)

    assert os.read(reader, 100) == (b"" if inside else b"outlived")
    os.close(reader)
