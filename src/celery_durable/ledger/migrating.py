"""The schema's version: bring it up to date, or say that it is another's."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import exc

from celery_durable.errors import LedgerSchemaError, LedgerUnavailable
from celery_durable.ledger.database import missing_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.script import ScriptDirectory

    from celery_durable.ledger.database import Database
    from celery_durable.ledger.schema import Tables

#: The revision that this version of celery-durable works with; a test holds it equal to the newest script.
HEAD = "0001"

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
    known = {script.revision for script in _scripts().walk_revisions()}
    fix = (
        "run 'celery -A <app> durable migrate'"
        if found in known
        else "it is newer than this celery-durable: upgrade the package"
    )
    raise LedgerSchemaError(
        f"The ledger {database} has schema version {found}, this celery-durable needs {HEAD}: {fix}."
    )


def upgrade(database: Database, tables: Tables) -> tuple[str | None, str]:
    """Run the migrations that are missing, in one transaction where the database can; one process at a time.

    Raises:
        LedgerSchemaError: the schema is newer than this version.
    """
    before = revision(database, tables)
    if before == HEAD:
        return before, HEAD
    scripts = _scripts()
    if before is not None and before not in {s.revision for s in scripts.walk_revisions()}:
        check(database, tables)

    from alembic.config import Config  # only here: it costs every start a fifth of a second
    from alembic.runtime.environment import EnvironmentContext

    def work(connection: sa.Connection) -> None:
        with _alone(connection, database), _OPERATIONS:
            context = EnvironmentContext(
                Config(), scripts, fn=lambda rev, _: scripts._upgrade_revs("head", rev), tables=tables
            )
            context.configure(connection=connection, version_table=version_table(tables), transactional_ddl=False)
            context.run_migrations(prefix=tables.prefix)

    try:
        database.run(work)
    except exc.ProgrammingError as error:
        raise LedgerSchemaError(
            f"The ledger {database} could not be migrated: {error.orig}. "
            "The database user needs the right to create tables."
        ) from error
    return before, HEAD


@contextmanager
def _alone(connection: sa.Connection, database: Database) -> Iterator[None]:
    """Keep other processes from migrating. SQLite's write lock does that by itself."""
    dialect = database.dialect.name
    if dialect == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    if dialect != "mysql":
        yield
        return
    # The lock is the connection's, not the transaction's, and its name is known to the whole server.
    name = sa.func.concat("celery-durable ", sa.func.md5(sa.func.database()))
    if connection.execute(sa.select(sa.func.get_lock(name, _LOCK_TIMEOUT))).scalar() != 1:
        raise LedgerUnavailable(
            f"Another process has been migrating the ledger {database} for {_LOCK_TIMEOUT} s; "
            "try again when it is done."
        )
    try:
        yield
        connection.exec_driver_sql("COMMIT")  # the version is a row, and whoever comes next has to see it
    finally:
        connection.execute(sa.select(sa.func.release_lock(name)))


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(__file__).parent / "migrations"))


__all__ = ["HEAD", "check", "revision", "upgrade", "version_table"]
