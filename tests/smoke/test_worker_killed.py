"""Workers that are killed: what they ran is run again, by them when they are back, or by another."""

from __future__ import annotations

import pytest

from tests.smoke import tasks


@pytest.mark.sample
def test_a_worker_that_is_killed_and_restarted_finishes(stage):
    held = stage.send(tasks.hold.s("a"))
    stage.await_start(held)
    stage.kill("SIGKILL")
    assert stage.await_exit() == 137
    stage.worker.restart()
    stage.await_start(held, times=2)
    stage.open("a")
    assert stage.result(held) is True
    assert (stage.times(held, "finished"), stage.losses(held)) == (1, ["worker_lost"])
