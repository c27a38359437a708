"""What a container runs, by the name of its image."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.services import Postgres, RabbitMQ, Redis, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BIN = Path(sys.executable).parent  # where `celery` is


class Command(Server):
    """Any command, in this environment. It is up when it has printed `prompt` since it was started."""

    name = "command"
    prompt = " ready."  # a Celery worker's

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        super().__init__()
        self.argv, self.env = list(argv), dict(env)
        self._read = 0

    def find_programs(self) -> None:
        """They are found when they are run."""

    def command(self) -> list[str]:
        self._read = len(self.log)  # called at each start
        return self.argv

    def environment(self) -> dict[str, str]:
        return self.env

    def ready(self) -> bool:
        return self.prompt in self.log[self._read :]


class LoudRabbitMQ(RabbitMQ):
    """RabbitMQ whose log is its output, as in its official image."""

    def environment(self) -> dict[str, str]:
        return super().environment() | {"RABBITMQ_LOGS": "-"}


def program(image: str, argv: Sequence[str], env: Mapping[str, str]) -> tuple[Server, str]:
    """A container's program, and the port that is its image's own, as in `6379/tcp`; none of a command."""
    servers: dict[str, tuple[Callable[..., Server], str]] = {
        "redis": (Redis, "6379/tcp"),
        "rabbitmq": (LoudRabbitMQ, "5672/tcp"),
        "postgres": (Postgres, "5432/tcp"),
    }
    name = image.partition(":")[0]
    if name in servers:
        kind, port = servers[name]
        return kind(*argv[1:]), port  # without the name of the program
    return Command(argv, env), ""


def number(name: str | int | None) -> signal.Signals:
    """A signal as Docker takes it: by name, by number, or none for SIGKILL."""
    if name is None:
        return signal.SIGKILL
    return signal.Signals[name] if isinstance(name, str) else signal.Signals(name)
