"""The pytest plugin in a project of somebody's: it costs nothing unused, and gets along with Celery's own."""

from __future__ import annotations

import subprocess
import sys

PROJECT = """
import sys

def test_nothing_is_imported_for_who_does_not_use_it():
    assert not [m for m in sys.modules if m.partition(".")[0] in {"celery", "celery_durable", "kombu", "sqlalchemy"}]

def test_fixtures_are_there(request, durable_app, durable):
    assert durable.app is durable_app

def test_celerys_own_fixtures_work_beside(celery_app, durable):
    assert celery_app is not durable.app
    assert celery_app.conf.broker_url != durable.app.conf.broker_url
"""


def test_a_project_gets_the_fixtures(tmp_path):
    (tmp_path / "test_project.py").write_text(PROJECT)
    plugins = ("-p", "no:cacheprovider", "-p", "no:celery", "-p", "no:docker_tools")  # not pytest-celery's
    words = [sys.executable, "-m", "pytest", "-q", "-W", "error", *plugins, "test_project.py"]

    alone = subprocess.run([*words, "-k", "nothing"], cwd=tmp_path, capture_output=True, text=True, check=False)
    beside = subprocess.run(
        [*words, "-p", "celery.contrib.pytest", "-k", "not nothing"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert beside.returncode == 0, beside.stdout + beside.stderr
