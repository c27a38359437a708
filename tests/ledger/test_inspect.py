"""What the doctor asks a ledger, on every dialect."""

from __future__ import annotations

import sqlalchemy as sa

from celery_durable.doctor import database, work
from celery_durable.doctor.facts import LedgerSeen
from celery_durable.ledger import migrating
from tests.ledger import kit


def judged(ledger):
    seen = LedgerSeen(
        name="here", migrate="migrate", known=tuple(migrating.revisions()), revision=migrating.HEAD,
        max_message_bytes=2**20, setup=ledger.setup(),
        broker=kit.BROKER, workers=ledger.workers(), pauses=ledger.pauses(), standing=ledger.standing(kit.BROKER),
        dead=ledger.count_live()["dead"],
    )  # fmt: skip
    return {f.id for f in (*database.judge(seen), *work.judge(seen))}


def test_a_database_as_it_is_set_up_here(ledger):
    setup = ledger.setup()
    assert setup.product == {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB"}[ledger.dialect.name]
    assert abs(setup.ahead) < 2
    assert not setup.not_transactional
    assert ledger.revision() == migrating.HEAD
    # The tests' own servers trade safety for speed; nothing else is wrong with them.
    unsafe = {"postgresql-fsync", "postgresql-synchronous-commit", "mysql-flush"}
    assert judged(ledger) - unsafe == {"no-worker-idle"}


def test_what_is_due_is_counted_and_aged(ledger):
    c = ledger.t.task.c
    (
        kit.queued(ledger, "here"),
        kit.queued(ledger, "elsewhere", broker="another"),
        kit.waiting(ledger, "later", seconds=50),
    )
    kit.running(ledger, "runs", lease=3600), kit.succeeded(ledger, "done")
    standing = ledger.standing(kit.BROKER)
    assert (standing.due.number, standing.late, standing.unregistered.number) == (0, 0.0, 0)
    assert standing.queues == [(kit.QUEUE, 2)]
    back = {c.publish_at: 200, c.wake_at: 300, c.lease_expires_at: 3600 + 400}
    for column, seconds in back.items():
        moved = sa.update(ledger.t.task).where(column.is_not(None)).values({column: column - seconds * kit.SECOND})
        ledger.db.run(lambda connection, moved=moved: connection.execute(moved))
    standing = ledger.standing(kit.BROKER)
    assert standing.due.number == 3
    assert 400 <= standing.late < 430
    assert {"no-worker"} <= judged(ledger)


def test_postgresql_that_forgets(fresh):
    ledger = fresh("postgresql")
    name = ledger.db.url.database
    change(ledger, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    change(ledger, f'ALTER DATABASE "{name}" SET default_transaction_isolation = "repeatable read"')
    assert {"postgresql-synchronous-commit", "isolation"} <= judged(ledger)
    assert "ledger-read-only" not in judged(ledger)
    change(ledger, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    assert "ledger-read-only" in judged(ledger)


def change(ledger, statement):
    with ledger.db.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    ledger.db.dispose()


def test_a_table_without_transactions(fresh):
    ledger = fresh("mariadb")
    change(ledger, "ALTER TABLE durable_event ENGINE = MyISAM")
    assert ledger.setup().not_transactional == ["durable_event"]
    assert "mysql-engine" in judged(ledger)


def test_sqlite_is_switched_to_its_log_by_connecting(fresh):
    ledger = fresh("sqlite")
    ledger.db.dispose()
    engine = sa.create_engine(ledger.db.url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode=DELETE").scalar() == "delete"
    assert ledger.setup().variables == {"journal_mode": "wal"}
