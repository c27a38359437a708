"""The pytest plugin: pytest-celery on a Docker engine where there is one, on local processes where there is none.

A conftest.py imports its two names: a fixture there comes before those of installed plugins, as `-p` would not.
`DURABLE_SMOKE_ENGINE=local` or `=docker` asks for one of the two.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import docker
import pytest
from docker.errors import DockerException
from pytest_docker_tools.wrappers import container as wrapper

from tests.smoke.local import LocalEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

CHOICES = ("docker", "local")


@lru_cache(maxsize=1)
def chosen() -> str:
    """`docker` or `local`.

    Raises:
        UsageError: another one is asked for, or Docker is and does not answer.
    """
    asked = os.environ.get("DURABLE_SMOKE_ENGINE", "")
    if asked not in {"", *CHOICES}:
        raise pytest.UsageError(f"DURABLE_SMOKE_ENGINE={asked!r}: it is one of {', '.join(CHOICES)}")
    if asked == "local":
        return asked
    try:
        docker.from_env().ping()
    except DockerException as error:
        if asked:
            raise pytest.UsageError(f"DURABLE_SMOKE_ENGINE=docker, but no engine answers: {error}") from error
        return "local"
    return "docker"


def pytest_report_header() -> str:
    return f"engine of pytest-celery: {chosen()}"


@pytest.fixture(scope="session")
def docker_client() -> Iterator[Any]:
    """The engine's client, in the place of pytest-docker-tools' own."""
    if chosen() == "docker":
        yield docker.from_env()
        return
    engine = LocalEngine()
    with pytest.MonkeyPatch.context() as patch:
        # The ports are this machine's, also where the tests themselves run in a container.
        patch.setattr(wrapper, "tests_inside_container", lambda: False)
        yield engine
    engine.close()
