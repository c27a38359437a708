"""Databases of the ledger as Django's settings name them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

ENGINES = {"sqlite": "sqlite3", "postgresql": "postgresql", "mysql": "mysql"}


def database(url: str) -> dict[str, Any]:
    """Django's settings of the database that a URL names."""
    told = sa.make_url(url)
    server = {"HOST": told.host, "PORT": told.port, "USER": told.username} if told.host else {}
    options = {"charset": "utf8mb4"} if told.get_backend_name() == "mysql" else {}
    return {
        "ENGINE": f"django.db.backends.{ENGINES[told.get_backend_name()]}", "NAME": told.database, "OPTIONS": options,
    } | server  # fmt: skip
