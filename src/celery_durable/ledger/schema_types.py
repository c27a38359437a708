"""Types of the ledger's columns, alike on every database."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

BigKey = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Micros = sa.BigInteger()
Digest = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")
Blob = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def text(length: int | None = None) -> sa.types.TypeEngine[str]:
    """Text that MySQL compares byte by byte, as the other databases do."""
    binary = {"charset": "utf8mb4", "collation": "utf8mb4_bin"}
    if length is None:
        return sa.Text().with_variant(mysql.LONGTEXT(**binary), "mysql", "mariadb")
    return sa.String(length).with_variant(mysql.VARCHAR(length, **binary), "mysql", "mariadb")
