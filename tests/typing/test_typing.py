"""The public surface: typed, documented, and exactly what `__all__` says."""

from __future__ import annotations

import importlib.resources
import inspect

import pytest

import celery_durable
from celery_durable.api import LedgerView


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
