"""SQLAlchemy on somebody else's connection, as its driver made it: what it executes is part of their transaction."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import pool

from celery_durable import failpoints
from celery_durable.ledger import injecting
from celery_durable.ledger.database import told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType


class _Kept:
    """A driver's connection of which SQLAlchemy ends neither the transaction nor itself."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def commit(self) -> None:
        """Leave it to the owner."""

    rollback = close = commit


class Driven:
    """Connections of one driver, each lent to SQLAlchemy as it is; safe for threads."""

    def __init__(self, module: ModuleType, backend: str) -> None:
        """Take a DBAPI module, and one of the databases that a ledger can be in."""
        self.module = module
        self._raw = threading.local()
        options: dict[str, Any] = {"use_native_hstore": False} if backend == "postgresql" else {}
        self._engine = sa.create_engine(
            f"{drivername(backend, module)}://", module=module, creator=lambda: _Kept(self._raw.it),
            poolclass=pool.NullPool, pool_reset_on_return=None, **options,
        )  # fmt: skip
        if failpoints.armed():
            injecting.listen(self._engine)

    def over(self, raw: Any) -> sa.Connection:
        """Lend a Connection of SQLAlchemy over a driver's own; nothing is begun, committed, rolled back or closed."""
        self._raw.it = raw
        return self._engine.connect()

    def told(self, error: Exception, *, lost: bool) -> Exception:
        """Make SQLAlchemy's error of a framework's, behind which is the driver's; ``lost``: its connection too."""
        return told(error, self.module.Error, lost=lost)


@contextmanager
def driven(raw: Any, module: ModuleType, backend: str) -> Iterator[sa.Connection]:
    """Lend a Connection over a driver's own for as long as the block lasts."""
    with Driven(module, backend).over(raw) as connection:
        yield connection


def drivername(backend: str, module: ModuleType) -> str:
    """Name a database and its driver as SQLAlchemy does."""
    name = module.__name__.partition(".")[0]  # pymysql may stand in for MySQLdb
    driver = {"MySQLdb": "mysqldb", "sqlite3": "pysqlite"}.get(name, name)
    return f"{backend}+{driver}"


def url_of(backend: str, module: ModuleType, *, query: Mapping[str, str], **parts: Any) -> str:
    """Write the URL of a database: ``database``, ``username``, ``password``, ``host``, ``port``, as far as known."""
    url = sa.URL.create(drivername(backend, module), query=query, **{k: v for k, v in parts.items() if v})
    return url.render_as_string(hide_password=False)


__all__ = ["Driven", "driven", "drivername", "url_of"]
