"""The migrated schema is the one that the code describes; a foreign one is refused with the fix."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from celery_durable.errors import LedgerSchemaError
from celery_durable.ledger import migrating
from celery_durable.ledger.schema import tables
from tests.ledger.definitions import told
from tests.ledger.kit import Background, cancelled, opened, queued, row_of, running, transaction, until_blocked

ROOT = Path(__file__).parents[2]
MIGRATE = """
import sys
from celery_durable.ledger import Ledger
from celery_durable.settings import Settings
ledger = Ledger.open(Settings(ledger_url=sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(ledger.migrate()[1], ledger.uuid, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def fresh(ledger_url):
    """A ledger on an empty database."""
    ledger = opened(ledger_url)
    yield ledger
    ledger.db.dispose()


def test_alembic_sees_no_difference(ledger):
    with ledger.db.connection() as connection:

        def is_ours(thing, name, kind, *_):
            if kind == "index" and thing._ddl_if is not None:  # made for some dialects only
                return thing._ddl_if.callable_(None, thing, None, dialect=connection.dialect)
            return not (kind == "table" and name.endswith("version"))

        options = {"compare_type": True, "compare_server_default": True, "include_object": is_ours}
        context = MigrationContext.configure(connection, opts=options)

        assert compare_metadata(context, ledger.t.metadata) == []


def test_the_migrations_make_what_the_code_describes(ledger):
    """Text for text as the database tells it: columns, collations, defaults, CHECKs, indexes and their conditions."""
    twin = tables("twin_")
    with ledger.db.connection() as connection:
        twin.metadata.create_all(connection)
    try:
        described = {name.replace("twin_", "durable_"): text for name, text in told(ledger, "twin_").items()}
        migrated = told(ledger, "durable_")
        migrated.pop("durable_version")
        assert migrated == described
    finally:
        with ledger.db.connection() as connection:
            twin.metadata.drop_all(connection)


def test_head_is_the_newest_script():
    assert migrating._scripts().get_current_head() == migrating.HEAD


def test_migrating_makes_a_schema_and_again_changes_nothing(fresh):
    assert fresh.migrate() == (None, migrating.HEAD)
    identity = fresh.uuid

    assert fresh.migrate() == (migrating.HEAD, migrating.HEAD)
    assert fresh.uuid == identity


def test_sqlite_migrates_itself_and_a_server_says_what_to_run(fresh):
    if fresh.dialect.name == "sqlite":
        fresh.ready()
        assert migrating.revision(fresh.db, fresh.t) == migrating.HEAD
    else:
        with pytest.raises(LedgerSchemaError, match="durable migrate") as caught:
            fresh.ready()
        assert fresh.db.url.database in str(caught.value)


def test_verbs_on_an_empty_database_say_what_to_run(fresh):
    with pytest.raises(LedgerSchemaError, match="durable migrate"):
        queued(fresh)


def test_a_newer_schema_asks_for_a_newer_package(fresh):
    fresh.migrate()
    stamp(fresh, "9999")

    for refuse in (fresh.ready, fresh.migrate):
        with pytest.raises(LedgerSchemaError, match=rf"version 9999.*needs {migrating.HEAD}.*upgrade the package"):
            refuse()


def test_an_older_schema_asks_for_a_migration(ledger, monkeypatch):
    before = migrating.HEAD
    monkeypatch.setattr(migrating, "HEAD", "9999")

    with pytest.raises(LedgerSchemaError, match=rf"version {before}.*needs 9999.*durable migrate"):
        migrating.check(ledger.db, ledger.t)


def stamp(ledger, version):
    ledger.db.run(lambda c: c.exec_driver_sql(f"UPDATE durable_version SET version_num = '{version}'"))


def test_a_password_is_never_told():
    ledger = opened("postgresql://shop:s3cret@127.0.0.1:1/shop")

    with pytest.raises(Exception, match=r"127\.0\.0\.1") as caught:
        ledger.ready()
    assert "s3cret" not in str(caught.value)
    assert type(caught.value).__name__ == "LedgerUnavailable"


def test_two_processes_that_migrate_at_once_make_one_schema(ledger_url):
    command = [sys.executable, "-c", MIGRATE, ledger_url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            tell(process)
        # Both stay alive until both are done: neither may wait for the other to leave.
        answers = [Background(p.stdout.readline).answer(20) for p in processes]
        assert answers[0] == answers[1]
        assert answers[0].startswith(migrating.HEAD)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def tell(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_threads_that_migrate_ledgers_of_their_own_at_once(tmp_path):
    ledgers = [opened(f"sqlite:///{tmp_path / str(n)}.db") for n in range(6)]
    at_once = threading.Barrier(len(ledgers))

    def migrate(ledger):
        at_once.wait()
        return ledger.migrate()

    with ThreadPoolExecutor(len(ledgers)) as pool:
        assert list(pool.map(migrate, ledgers)) == [(None, migrating.HEAD)] * len(ledgers)
    assert len({ledger.uuid for ledger in ledgers}) == len(ledgers)
    for ledger in ledgers:
        assert ledger.verify() == []
        ledger.db.dispose()


def test_a_migration_that_was_killed_half_way_can_be_run_again(fresh):
    """Where DDL commits by itself, tables may be there while no version says so."""
    fresh.migrate()
    identity = fresh.uuid
    fresh.db.run(lambda c: c.exec_driver_sql("DELETE FROM durable_version"))

    if fresh.dialect.name == "mysql":
        assert fresh.migrate() == (None, migrating.HEAD)
        assert fresh.uuid == identity
    else:
        pytest.skip(f"{fresh.dialect.name} rolls DDL back")


def test_the_readable_view_shows_times_to_people(ledger):
    claim, other = running(ledger), cancelled(ledger)
    view = sa.table(
        "durable_task_readable", *(sa.column(n) for n in ("id", "submitted_at", "finished_at", "lease_expires_at"))
    )

    found = {r.id: r for r in ledger.db.run(lambda c: c.execute(sa.select(view)).all(), read_only=True)}

    row, told_row = row_of(ledger, claim.row_id), found[claim.row_id]
    assert _micros(told_row.submitted_at) == pytest.approx(row.submitted_at, abs=1000)
    assert _micros(told_row.lease_expires_at) == pytest.approx(row.lease_expires_at, abs=1000)
    assert told_row.finished_at is None
    assert found[other.row_id].finished_at is not None


def _micros(shown):
    from datetime import datetime, timezone

    moment = datetime.fromisoformat(shown) if isinstance(shown, str) else shown
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() * 1e6


def test_a_verb_waits_for_a_migration_only_where_it_must(ledger):
    """A migration that finds nothing to do takes no lock that stops work."""
    if ledger.dialect.name != "postgresql":
        pytest.skip("PostgreSQL's advisory lock")
    with transaction(ledger) as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(migrating._LOCK)))
        assert ledger.migrate() == (migrating.HEAD, migrating.HEAD)
        assert queued(ledger).outcome == "new"


def test_a_second_migration_waits_for_the_first(fresh):
    if fresh.dialect.name != "postgresql":
        pytest.skip("seen in pg_stat_activity")
    with transaction(fresh) as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(migrating._LOCK)))
        second = Background(fresh.migrate)
        until_blocked(fresh)
        assert migrating.revision(fresh.db, fresh.t) is None

    assert second.answer() == (None, migrating.HEAD)


def test_who_comes_after_a_migration_sees_its_version(fresh):
    """MariaDB: the lock is let go of before the transaction ends, in which the version was written."""
    if fresh.dialect.name != "mysql":
        pytest.skip("elsewhere the lock ends with the transaction")
    seen = []
    other = opened(fresh.db.url.render_as_string(hide_password=False))

    def look(_connection, _cursor, statement, *_):
        if "release_lock" in statement.lower():
            seen.append(migrating.revision(other.db, other.t))

    sa.event.listen(fresh.db.engine, "before_cursor_execute", look)
    fresh.migrate()
    other.db.dispose()

    assert seen == [migrating.HEAD]
