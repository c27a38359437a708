"""The schema's version: bring it up to date, or say that it is another's."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc

from celery_durable.errors import LedgerSchemaError, LedgerUnavailable
from celery_durable.ledger.database import migrate, missing_tables
from celery_durable.ledger.dialects import DIALECTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.script import ScriptDirectory

    from celery_durable.ledger.database import Database
    from celery_durable.ledger.schema import Tables

#: The revision that this version of celery-durable works with; a test holds it equal to the newest script.
HEAD = "0003"

_LOCK = 0x6475726162  # "durab": the advisory lock that lets one process migrate at a time
#: Alembic's `op`, that the scripts speak to, is one for the whole process: two threads would write into each other's
#: ledgers.
_OPERATIONS = threading.Lock()
_LOCK_TIMEOUT = 25  # seconds, where a lock wait needs a limit: shorter than a statement may take


def version_table(tables: Tables) -> str:
    """Name the table that holds the schema's revision."""
    return f"{tables.prefix}version"


def revision(database: Database, tables: Tables) -> str | None:
    """Return the schema's revision, None when there is none."""
    query = sa.select(sa.column("version_num", sa.String)).select_from(sa.table(version_table(tables)))
    try:
        found: str | None = database.run(lambda c: c.execute(query).scalar(), read_only=True)
    except LedgerSchemaError:
        return None
    return found


def check(database: Database, tables: Tables) -> None:
    """Refuse a schema that is missing or not ours.

    Raises:
        LedgerSchemaError: saying which it is, and what to run.
    """
    found = revision(database, tables)
    if found == HEAD:
        return
    if found is None:
        raise LedgerSchemaError(missing_tables(database))
    fix = (
        f"run '{migrate(database)}'"
        if found in revisions()
        else "it is newer than this celery-durable: upgrade the package"
    )
    raise LedgerSchemaError(
        f"The ledger {database} has schema version {found}, this celery-durable needs {HEAD}: {fix}."
    )


def revisions() -> list[str]:
    """Name every revision that this version of celery-durable knows, oldest first."""
    return [script.revision for script in _scripts().walk_revisions()][::-1]


def upgrade(database: Database, tables: Tables) -> tuple[str | None, str]:
    """Run the migrations that are missing, in one transaction where the database can; one process at a time.

    Raises:
        LedgerSchemaError: the schema is newer than this version.
    """
    before = revision(database, tables)
    if before == HEAD:
        return before, HEAD
    if before is not None and before not in revisions():
        check(database, tables)
    try:
        database.run(lambda connection: upgrade_on(connection, tables, HEAD, place=str(database)))
    except exc.ProgrammingError as error:
        raise LedgerSchemaError(
            f"The ledger {database} could not be migrated: {error.orig}. "
            "The database user needs the right to create tables."
        ) from error
    return before, HEAD


def upgrade_on(connection: sa.Connection, tables: Tables, to: str, *, place: str) -> None:
    """Run the migrations that are missing up to a revision on this connection; none where the schema is as new.

    It neither begins nor ends a transaction, except that MySQL, where DDL commits by itself, is told to COMMIT.

    Raises:
        LedgerUnavailable: another process has been migrating for too long; ``place`` names the ledger.
    """
    from alembic.config import Config  # only here: it costs every start a fifth of a second
    from alembic.runtime.environment import EnvironmentContext

    scripts = _scripts()
    known = revisions()

    def missing(heads: Any, _: object) -> Any:
        newer = [head for head in heads if head not in known or known.index(head) >= known.index(to)]
        return [] if newer else scripts._upgrade_revs(to, heads)

    with _alone(connection, place), _OPERATIONS:
        context = EnvironmentContext(Config(), scripts, fn=missing, tables=tables)
        context.configure(connection=connection, version_table=version_table(tables), transactional_ddl=False)
        context.run_migrations(prefix=tables.prefix)


@contextmanager
def _alone(connection: sa.Connection, place: str) -> Iterator[None]:
    """Keep other processes from migrating. SQLite's write lock does that by itself."""
    dialect = DIALECTS[connection.dialect.name].name
    if dialect == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    if dialect != "mysql":
        yield
        return
    # The lock is the connection's, not the transaction's, and its name is known to the whole server.
    name = sa.func.concat("celery-durable ", sa.func.md5(sa.func.database()))
    if connection.execute(sa.select(sa.func.get_lock(name, _LOCK_TIMEOUT))).scalar() != 1:
        raise LedgerUnavailable(
            f"Another process has been migrating the ledger {place} for {_LOCK_TIMEOUT} s; try again when it is done."
        )
    try:
        yield
        connection.exec_driver_sql("COMMIT")  # the version is a row, and whoever comes next has to see it
    finally:
        connection.execute(sa.select(sa.func.release_lock(name)))


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(__file__).parent / "migrations"))


__all__ = ["HEAD", "check", "revision", "revisions", "upgrade", "upgrade_on", "version_table"]
