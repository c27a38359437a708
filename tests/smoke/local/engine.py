"""The engine: makes volumes and containers, and ends them all."""

from __future__ import annotations

import os
import shlex
import tarfile
import tempfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.services import MissingServerError
from tests.smoke.local.container import LocalContainer

if TYPE_CHECKING:
    import io
    from collections.abc import Mapping, Sequence


class LocalVolume:
    """A folder."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="durable-volume-")
        self.path = self._folder.name

    def remove(self, force: bool = False) -> None:
        self._folder.cleanup()


class Filler:
    """The container that pytest-docker-tools makes to fill a volume."""

    def __init__(self, volume: LocalVolume) -> None:
        self.volume = volume

    def put_archive(self, path: str, data: io.BytesIO) -> bool:
        with tarfile.open(fileobj=data) as archive:
            archive.extractall(self.volume.path, filter="data")
        return True

    def remove(self, *, force: bool = False) -> None:
        """Nothing runs."""


class LocalEngine:
    """Looks like `docker.DockerClient`. Networks and images are names; `close` ends what is left."""

    def __init__(self) -> None:
        self._volumes: dict[str, LocalVolume] = {}
        self._containers: list[LocalContainer] = []
        self.networks = SimpleNamespace(create=lambda name, **_: SimpleNamespace(name=name, remove=lambda: None))
        self.volumes = SimpleNamespace(create=self._volume)
        self.images = SimpleNamespace(
            build=lambda tag="scratch", **_: (SimpleNamespace(id=tag), []),
            pull=lambda repository, **_: SimpleNamespace(id=repository),
        )
        self.containers = SimpleNamespace(run=self._run, create=self._create)

    def _volume(self, name: str, **_: Any) -> LocalVolume:
        self._volumes[name] = LocalVolume(name)
        return self._volumes[name]

    def _create(self, image: str, volumes: Mapping[str, Any], **_: Any) -> Filler:
        return Filler(self._volumes[next(iter(volumes))])

    def _run(
        self,
        image: str,
        command: str | Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        volumes: Mapping[str, Mapping[str, str]] | None = None,
        labels: Mapping[str, str] | None = None,
        **_: Any,
    ) -> LocalContainer:
        argv = shlex.split(command) if isinstance(command, str) else list(command)
        mounts = {
            how["bind"]: self._volumes[name].path if name in self._volumes else name
            for name, how in (volumes or {}).items()
        }
        try:
            container = LocalContainer(image, argv, environment or {}, mounts, labels or {})
        except MissingServerError as error:
            if os.environ.get("CI") == "true":
                pytest.fail(f"CI must have every server: {error}", pytrace=False)
            pytest.skip(f"NOT TESTED, no {image}: {error}")
        self._containers.append(container)
        return container

    def close(self) -> None:
        for container in self._containers:
            container.remove(force=True)
