"""SQLAlchemy on somebody else's connection, as its driver made it: what it executes is part of their transaction."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import pool

if TYPE_CHECKING:
    from collections.abc import Iterator
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


@contextmanager
def driven(raw: Any, module: ModuleType, backend: str) -> Iterator[sa.Connection]:
    """Lend a Connection of SQLAlchemy over a driver's own; nothing is begun, committed, rolled back or closed.

    ``module`` is the driver, a DBAPI module; ``backend`` one of the databases that a ledger can be in.
    """
    name = module.__name__.partition(".")[0]  # pymysql may stand in for MySQLdb
    driver = {"MySQLdb": "mysqldb", "sqlite3": "pysqlite"}.get(name, name)
    options: dict[str, Any] = {"use_native_hstore": False} if backend == "postgresql" else {}
    engine = sa.create_engine(
        f"{backend}+{driver}://", module=module, creator=lambda: _Kept(raw), poolclass=pool.StaticPool,
        pool_reset_on_return=None, **options,
    )  # fmt: skip
    with engine.connect() as connection:
        yield connection


__all__ = ["driven"]
