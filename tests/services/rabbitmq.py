"""RabbitMQ: a node of its own, with its own epmd, cookie and plugins (none)."""

from __future__ import annotations

import itertools
import socket

from .base import Server
from .find import find_program

PACKAGE = "rabbitmq-server"
REAL = "/usr/lib/rabbitmq/bin"  # what Debian puts on PATH is a wrapper that insists on its own directories
BATCH = 8  # virtual hosts made at once: each call starts an Erlang


class RabbitMQ(Server):
    """A private RabbitMQ node; `guest` may do everything."""

    name = "rabbitmq"

    def __init__(self, *options: str) -> None:
        """`options` are lines of rabbitmq.conf, for example `consumer_timeout = 60000`."""
        super().__init__(*options)
        self.dist_port = self.reserve_port()
        self.epmd_port = self.reserve_port()
        self._numbers = itertools.count(1)
        self._spare: list[str] = []

    def find_programs(self) -> None:
        self._server = find_program("rabbitmq-server", first=REAL, package=PACKAGE)
        self._control = find_program("rabbitmqctl", first=REAL, package=PACKAGE)

    @property
    def url(self) -> str:
        return self._url("")  # the default virtual host, "/"

    def vhost(self) -> str:
        """The URL of an empty virtual host that nobody else was given."""
        if not self._spare:
            names = [f"v{next(self._numbers)}" for _ in range(BATCH)]
            hosts = ", ".join(f'<<"{name}">>' for name in names)
            self.eval(
                'U = <<"guest">>, A = <<".*">>,'
                " [begin rabbit_vhost:add(V, U),"
                " rabbit_auth_backend_internal:set_permissions(U, V, A, A, A, U) end"
                f" || V <- [{hosts}]]."
            )
            self._spare = names
        return self._url(self._spare.pop(0))

    def eval(self, expression: str) -> str:
        """Evaluate Erlang on the node, for example `application:set_env(rabbit, consumer_timeout, 5000).`"""
        return self.ctl("eval", expression)

    def ctl(self, *words: str) -> str:
        """Run rabbitmqctl against the node; what it printed."""
        return self.run(self._control, "-q", "-n", self._node, *words)

    def ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"  # a method frame, Connection.Start: listeners open last

    def prepare(self) -> None:
        for name in ["home", "mnesia", "log"]:
            (self.directory / name).mkdir()
        (self.directory / "home").chmod(0o700)
        (self.directory / "rabbitmq-env.conf").touch()  # else the machine's own is read
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq.conf").write_text("\n".join(self.options) + "\n")

    def command(self) -> list[str]:
        return [self._server]

    def environment(self) -> dict[str, str]:
        here = self.directory
        quiet = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"  # no busy waiting beside the tests
        return {
            "HOME": str(here / "home"),  # the Erlang cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_MNESIA_BASE": str(here / "mnesia"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_CONF_ENV_FILE": str(here / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(here / "rabbitmq.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{quiet} -kernel inet_dist_use_interface {{127,0,0,1}}",
        }

    @property
    def _node(self) -> str:
        return f"durable{self.port}@localhost"

    def _url(self, vhost: str) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"
