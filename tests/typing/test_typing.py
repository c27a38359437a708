"""The public surface: typed, documented, and exactly what `__all__` says."""

from __future__ import annotations

import importlib.resources
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import celery_durable
from celery_durable.api import LedgerView

ROOT = Path(__file__).parents[2]


def mypy(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", ".mypy_cache/tests"]
    return subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_users_module_passes_mypy():
    pytest.importorskip("mypy")
    done = mypy("tests/typing/user_module.py")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_wrong_use_does_not_pass_mypy(tmp_path):
    pytest.importorskip("mypy")
    wrong = """
from celery import Celery
from celery_durable import DurableTask, ledger
state: int = ledger(Celery()).get("x").state
ledger(Celery()).cancel("x", 17)
class Bad(DurableTask):
    on_loss = 3
"""
    path = tmp_path / "wrong.py"
    path.write_text(wrong)
    done = mypy(str(path))
    assert done.stdout.count("error:") == 3, done.stdout


def test_all_is_what_can_be_imported():
    public = {
        name
        for name, value in vars(celery_durable).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert public == set(celery_durable.__all__)
    assert sorted(celery_durable.__all__) == list(celery_durable.__all__)


@pytest.mark.parametrize("name", celery_durable.__all__)
def test_every_public_name_is_documented(name):
    value = getattr(celery_durable, name)
    assert inspect.getdoc(value), name
    assert value.__module__.startswith("celery_durable")


@pytest.mark.parametrize("owner", [celery_durable.DurableTask, LedgerView])
def test_every_public_method_is_documented(owner):
    for name, member in vars(owner).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, property)):
            assert inspect.getdoc(member), f"{owner.__name__}.{name}"


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files("celery_durable").joinpath("py.typed").is_file()
