"""Private, real servers for tests: each on free loopback ports, in a temporary directory of its own.

    with Postgres() as server:
        engine = create_engine(server.database())
        server.kill()   # SIGKILL, the whole process tree
        server.start()  # same ports, same data

Nothing outlives the process that started a server, not even when that process is killed (see `guardian`).
"""

from .base import Server
from .browser import Browser
from .find import MissingServerError
from .mariadb import MariaDB
from .postgres import Postgres
from .rabbitmq import RabbitMQ
from .redis_server import Redis

__all__ = ["Browser", "MariaDB", "MissingServerError", "Postgres", "RabbitMQ", "Redis", "Server"]
