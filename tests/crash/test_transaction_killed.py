"""Death around the COMMIT of a transaction with submissions in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from celery_durable import failpoints
from tests.crash.fleet import PATIENCE, ROOT

SUBMITTER = """
import os, signal, sys
import sqlalchemy as sa
from sqlalchemy import orm
from celery_durable import ledger
from celery_durable.wiring import plugin
from tests.crash.app import app

engine = sa.create_engine(plugin(app).ledger.db.url)
with orm.Session(engine) as session, session.begin(), ledger(app).transaction(session):
    for n in range(3):
        print(app.tasks["work"].delay(n).id, flush=True)
    if sys.argv[1] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def submitter(stage, when, armed=""):
    done = subprocess.run(
        [sys.executable, "-c", SUBMITTER, when], cwd=ROOT, env={**os.environ, **stage.env, failpoints.VARIABLE: armed},
        stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    return done.stdout.split()


@pytest.mark.parametrize(
    "ledger",
    ["postgresql", pytest.param("sqlite", marks=pytest.mark.slow), pytest.param("mariadb", marks=pytest.mark.slow)],
)
def test_a_process_killed_between_commit_and_publish_loses_nothing(stage, ledger):
    s = stage("redis", ledger)

    killed = [
        submitter(s, "after", "take_rings.statement=die"),  # the first thing after COMMIT
        submitter(s, "after", "publish=die"),
    ]
    assert s.depth() == 0
    s.worker()

    s.await_all(6)
    s.check_history([task_id for ids in killed for task_id in ids])


def test_a_process_killed_before_commit_leaves_nothing(stage):
    s = stage("redis", "postgresql")

    assert len(submitter(s, "before")) == 3

    s.await_(lambda: s.states() == {}, "what was not committed is there")
    assert (s.depth(), s.rows()) == (0, [])
