"""Runs pytest-celery without Docker: each "container" is a tree of local processes.

`LocalEngine` looks like `docker.DockerClient` as far as pytest-celery 1.3 and pytest-docker-tools 3.1 look. An image is
known by its name (`programs`): servers are those of `tests.services`, everything else is a command in this environment.
"""

from .engine import LocalEngine

__all__ = ["LocalEngine"]
