"""Where the ledger is, as Django's settings tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import connections

from celery_durable.errors import SettingsError
from celery_durable.ledger.driving import url_of

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEME = "django://"
#: Options of Django's own, which the driver is never given.
_DJANGOS = {"isolation_level", "pool", "server_side_binding", "assume_role", "cursor_factory", "prepare_threshold"}
#: Files of MySQL's ``ssl`` option, as SQLAlchemy's URLs name them.
_SSL = {"ca": "ssl_ca", "cert": "ssl_cert", "key": "ssl_key", "capath": "ssl_capath", "cipher": "ssl_cipher"}
#: Options of MySQL's drivers that mean something to a second connection as well.
_MYSQL = {"charset", "unix_socket", "read_default_file", "read_default_group", "connect_timeout", "ssl_mode"}


def ledger_alias() -> str | None:
    """Return the alias of the database that holds the ledger; None when that is none of Django's."""
    return alias_of(str(getattr(settings, "CELERY_DURABLE_LEDGER_URL", None) or f"{SCHEME}default"))


def alias_of(url: str) -> str | None:
    """Return the alias that a URL names; None when it is none of Django's."""
    return url.removeprefix(SCHEME).strip("/") or "default" if url.startswith(SCHEME) else None


def table_prefix() -> str:
    """Return what the names of the ledger's tables begin with."""
    return str(getattr(settings, "CELERY_DURABLE_TABLE_PREFIX", None) or "durable_")


def ledger_url(alias: str) -> str:
    """Return the URL, for SQLAlchemy, of a database of Django's as it is now: tests have one of their own.

    Raises:
        SettingsError: there is no such alias, or no ledger can be in such a database.
    """
    if alias not in connections:
        known = ", ".join(f'"{SCHEME}{name}"' for name in connections)
        raise SettingsError(f'durable_ledger_url is "{SCHEME}{alias}", but DATABASES has no {alias!r}: use {known}.')
    connection = connections[alias]
    told = connection.settings_dict
    backend, name = connection.vendor, str(told["NAME"] or "")
    options = told.get("OPTIONS") or {}
    if backend == "sqlite":
        return f"sqlite:///{name}{'&uri=true' if name.startswith('file:') else ''}"
    if backend not in {"postgresql", "mysql"}:
        raise SettingsError(
            f'durable_ledger_url is "{SCHEME}{alias}", a {backend} database; a ledger is kept in SQLite, PostgreSQL, '
            "MySQL or MariaDB."
        )
    module = connection.Database
    if module.__name__ == "psycopg2":
        raise SettingsError(
            f'durable_ledger_url is "{SCHEME}{alias}", which Django speaks to by psycopg2; celery-durable needs '
            'psycopg 3, which Django prefers where it is installed: pip install "celery-durable[postgres]".'
        )
    return url_of(
        backend, module, database=name, username=told.get("USER"), password=told.get("PASSWORD"), **_host(told),
        query=_postgresql(told, options) if backend == "postgresql" else _mysql(told, options),
    )  # fmt: skip


def _host(told: Mapping[str, Any]) -> dict[str, Any]:
    host = str(told.get("HOST") or "")
    if host.startswith("/"):  # a socket goes into the query
        return {}
    return {"host": host, "port": int(told["PORT"]) if told.get("PORT") else None}


def _postgresql(told: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, str]:
    query = {k: str(v) for k, v in options.items() if k not in _DJANGOS}
    host = str(told.get("HOST") or "")
    if host.startswith("/"):
        query |= {"host": host} | ({"port": str(told["PORT"])} if told.get("PORT") else {})
    return query


def _mysql(told: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, str]:
    query = {k: str(v) for k, v in options.items() if k in _MYSQL}
    query |= {_SSL[k]: str(v) for k, v in (options.get("ssl") or {}).items() if k in _SSL}
    host = str(told.get("HOST") or "")
    return query | ({"unix_socket": host} if host.startswith("/") else {})
