"""Submissions inside somebody else's transaction: there with it, gone with it, and in nobody's way."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import exc, orm

from celery_durable.errors import (
    BadRequest,
    KeyBusy,
    KeyConflict,
    LedgerSchemaError,
    LedgerUnavailable,
    SubmitError,
)
from celery_durable.ledger import dialects
from tests.ledger.kit import (
    BROKER,
    Background,
    cancelled,
    claimed,
    dead,
    empty,
    history,
    lock,
    opened,
    queued,
    row_of,
    rows,
    running,
    seconds_ahead,
    submission,
    succeed,
    succeeded,
    transaction,
    until_blocked,
)


@pytest.fixture
def engine(ledger):
    """A user's own engine, without anything of ours in it."""
    made = sa.create_engine(ledger.db.url)
    yield made
    made.dispose()


@contextmanager
def lent(ledger, given):
    """The verbs that submit inside a transaction."""
    yield ledger.within(ledger.lender(given))


def told(ledger, session):
    """A function that a lender of this session calls after the commit, and what it was called with."""
    seen = []
    return seen.append, seen, ledger.lender(session)


# --- there with it, gone with it ---------------------------------------------------------------------


def test_rule_21_rows_are_there_after_the_commit_and_due_at_once(ledger, engine):
    with engine.connect() as connection, connection.begin(), lent(ledger, connection) as within:
        done = within.submit(submission("order-1"), actor="shop")
        assert rows(ledger) == [], "nobody else sees it yet"

    row = row_of(ledger, done.task_id)
    assert (done.outcome, done.row_id, done.publish, row.state) == ("new", row.id, True, "queued")
    assert seconds_ahead(ledger, row.publish_at) <= 0
    assert (row.rings, row.publish_count, row.published_at) == (0, 0, None)
    assert history(ledger, row.id) == [("submit", None, "queued", "shop")]
    [ring], due = ledger.take_rings(BROKER, 10, depths={}, among=[row.id])
    assert (ring.task_id, due, row_of(ledger, row.id).publish_count) == (done.task_id, 1, 1)


def test_nothing_is_left_after_a_rollback(ledger, engine):
    with engine.connect() as connection, lent(ledger, connection) as within:
        first = connection.begin()
        done = within.submit(submission("order-1"))
        first.rollback()

    assert (rows(ledger), ledger.events(done.row_id)) == ([], [])
    assert ledger.submit(submission("order-1")).outcome == "new"


def test_rule_21_a_savepoint_takes_with_it_what_was_submitted_in_it(ledger, engine):
    with orm.Session(engine) as session:
        tell, seen, lender = told(ledger, session)
        within = ledger.within(lender)

        def submit(key):
            lender.after_commit(tell, [within.submit(submission(key)).row_id])

        with session.begin():
            submit("kept")
            outer = session.begin_nested()
            submit("lost")
            with session.begin_nested():
                submit("released, and lost all the same")
            outer.rollback()
            with session.begin_nested():
                submit("released")
            assert seen == [], "the release of a savepoint is no commit"

    there = {r.idempotency_key: r.id for r in rows(ledger)}
    assert list(there) == ["kept", "released"]
    [row_ids] = seen
    assert set(there.values()) <= set(row_ids)
    rings, _ = ledger.take_rings(BROKER, 10, depths={}, among=row_ids)
    assert len(rings) == 2


def test_a_session_tells_of_its_commit_alone(ledger, engine):
    with orm.Session(engine) as session:
        tell, seen, lender = told(ledger, session)
        within = ledger.within(lender)
        for ends in (session.rollback, session.commit, session.commit, session.rollback):
            session.execute(sa.text("SELECT 1"))
            done = within.submit(submission())
            lender.after_commit(tell, [done.row_id])
            ends()
        session.commit()

    assert [len(ids) for ids in seen] == [1, 1]
    assert len(rows(ledger)) == 2


def test_a_session_within_a_connections_transaction_does_not(ledger):
    # Ours begins as SQLAlchemy advises for SQLite: with Python's driver alone, savepoints come before any BEGIN.
    with ledger.db.engine.connect() as connection, connection.begin() as outer:
        with orm.Session(connection, join_transaction_mode="create_savepoint") as session:
            tell, seen, lender = told(ledger, session)
            done = ledger.within(lender).submit(submission())
            lender.after_commit(tell, [done.row_id])
            session.commit()
        outer.rollback()

    assert (seen, rows(ledger)) == ([], [])


def test_many_rows_are_left_to_the_sweep(ledger, engine):
    with orm.Session(engine) as session:
        tell, seen, lender = told(ledger, session)
        with session.begin():
            lender.connection()
            lender.after_commit(tell, range(9_999))
            lender.after_commit(tell, iter(range(1_000_000)))

    assert [len(ids) for ids in seen] == [10_000]


# --- keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [queued, running, succeeded])
def test_rule_20_a_taken_key_is_answered_and_its_row_is_not_locked(ledger, engine, make):
    holder = make(ledger, "order-1")

    with engine.connect() as connection, connection.begin(), lent(ledger, connection) as within:
        done = within.submit(submission("order-1"))
        with pytest.raises(KeyConflict):
            within.submit(submission("order-1"), on_conflict="raise")
        alias = within.submit(submission("order-1", awaited=True))
        if ledger.dialect.name != "sqlite":  # one writer at a time there, whatever it writes
            lock_free(ledger, row_of(ledger, holder.task_id).id)

    assert (done.outcome, done.task_id, alias.outcome) == ("existing", holder.task_id, "alias")
    assert done.result == (b"42" if make is succeeded else None)
    assert len(rows(ledger)) == 2


def lock_free(ledger, row_id):
    """Somebody else can lock this row now."""
    with transaction(ledger) as theirs:
        query = sa.select(ledger.t.task.c.id).where(ledger.t.task.c.id == row_id)
        assert theirs.execute(query.with_for_update(nowait=True)).all(), "the row is locked"


@pytest.mark.parametrize("make", [dead, cancelled])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_key_of_a_failed_row_replays_it_with_the_commit(ledger, engine, make, end):
    holder = make(ledger, "order-1")

    with engine.connect() as connection, connection.begin() as outer, lent(ledger, connection) as within:
        done = within.submit(submission("order-1"))
        again = within.submit(submission("order-1"))
        getattr(outer, end)()

    row = row_of(ledger, holder.task_id)
    assert (done.outcome, done.task_id, done.publish, again.outcome) == ("replayed", holder.task_id, True, "existing")
    assert row.state == ("queued" if end == "commit" else make.__name__)
    assert end == "rollback" or (row.rings, seconds_ahead(ledger, row.publish_at) <= 0) == (0, True)


def test_a_key_meets_itself_in_the_same_transaction(ledger, engine):
    with engine.connect() as connection, connection.begin(), lent(ledger, connection) as within:
        first = within.submit(submission("order-1"))
        again = within.submit(submission("order-1"))

    assert (again.outcome, again.task_id, len(rows(ledger))) == ("existing", first.task_id, 1)


def test_rule_19_what_was_committed_since_the_transaction_began_counts(mariadb_ledger):
    ledger = mariadb_ledger  # whose snapshots last as long as a transaction, and whose inserts do not look at them
    engine = sa.create_engine(ledger.db.url, isolation_level="REPEATABLE READ")
    with engine.connect() as connection, connection.begin(), lent(ledger, connection) as within:
        connection.execute(sa.select(ledger.t.task)).all()
        holder = succeeded(ledger, "order-1")
        ended = dead(ledger, "order-2")
        done = within.submit(submission("order-1"))
        replayed = within.submit(submission("order-2"))
    engine.dispose()

    assert (done.outcome, done.task_id, done.result) == ("existing", holder.task_id, b"42")
    assert (replayed.outcome, replayed.task_id) == ("replayed", ended.task_id)


# --- others who hold it ------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
@pytest.mark.parametrize("inside", [True, False], ids=["in two transactions", "in one and in none"])
def test_rule_20_a_key_that_is_pending_elsewhere_is_busy_even_in_one_thread(migrated, monkeypatch, dialect, inside):
    ledger = migrated(dialect)
    empty(ledger)
    engine = sa.create_engine(ledger.db.url)
    first, second = uuid4().hex, uuid4().hex  # keys that no earlier test has deleted: InnoDB may still lock those
    monkeypatch.setattr(dialects, "LOCK_TIMEOUT", 1)
    with engine.connect() as one, one.begin(), lent(ledger, one) as within:
        within.submit(submission(first))
        with engine.connect() as two, two.begin(), lent(ledger, two) as other:
            with pytest.raises(KeyBusy, match=f"'{first}' is pending") as caught:
                (other if inside else ledger).submit(submission(first))
            other.submit(submission(second))
    engine.dispose()

    assert (caught.value.task, caught.value.key) == ("shop.charge", first)
    assert {r.idempotency_key for r in rows(ledger)} == {first, second}, "each transaction could go on"


SETTINGS = {
    "postgresql": ("SET lock_timeout = '17s'", "SHOW lock_timeout", "17s"),
    "mysql": ("SET innodb_lock_wait_timeout = 17", "SELECT @@innodb_lock_wait_timeout", 17),
}


def test_rule_20_the_callers_own_patience_is_left_alone(ledger, engine):
    if ledger.dialect.name not in SETTINGS:
        return  # SQLite has none but the connection's
    change, show, value = SETTINGS[ledger.dialect.name]
    with engine.connect() as connection, connection.begin(), lent(ledger, connection) as within:
        connection.exec_driver_sql(change)
        taken = submission("order-1")
        within.submit(taken)
        within.submit(submission("order-1"))
        with pytest.raises(KeyConflict):
            within.submit(submission("order-1"), on_conflict="raise")
        assert connection.exec_driver_sql(show).scalar() == value


def test_rule_20_a_deadlock_is_the_callers_to_try_again(mariadb_ledger):
    ledger = mariadb_ledger
    engine = sa.create_engine(ledger.db.url)
    one, two = dead(ledger, "order-1"), dead(ledger, "order-2")
    session = orm.Session(engine)
    tell, seen, lender = told(ledger, session)
    within = ledger.within(lender)
    began = threading.Event()

    def other() -> None:
        with transaction(ledger) as theirs:
            # The heavier transaction survives a deadlock.
            theirs.execute(sa.update(ledger.t.event).values(reason="heavy"))
            theirs.execute(sa.update(ledger.t.task).values(on_loss="dead").where(ledger.t.task.c.id == two.row_id))
            began.set()
            until_blocked(ledger)
            lock(ledger, theirs, one.row_id)

    with session:
        lender.after_commit(tell, [within.submit(submission("order-1")).row_id])
        thread = Background(other)
        assert began.wait(30)
        with pytest.raises(exc.OperationalError, match="1213"):
            within.submit(submission("order-2"))
        session.rollback()
        thread.answer()
        assert seen == []
        assert {r.state for r in rows(ledger)} == {"dead"}
        with session.begin():
            assert within.submit(submission("order-2")).outcome == "replayed"
    engine.dispose()


def test_rule_20_a_serialization_failure_is_the_callers_to_try_again(postgres_ledger):
    ledger = postgres_ledger
    engine = sa.create_engine(ledger.db.url, isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        connection.execute(sa.select(ledger.t.task)).all()
        holder = queued(ledger, "order-1")
        with lent(ledger, connection) as within, pytest.raises(exc.DBAPIError) as caught:
            within.submit(submission("order-1"))
        assert caught.value.orig.sqlstate == "40001"
        connection.rollback()
        with lent(ledger, connection) as within:
            assert within.submit(submission("order-1")).task_id == holder.task_id
    engine.dispose()


# --- SQLite ------------------------------------------------------------------------------------------


def test_rule_25_pythons_late_begin_is_made_up_for(sqlite_ledger):
    ledger = sqlite_ledger
    engine = sa.create_engine(ledger.db.url)
    with orm.Session(engine) as session, lent(ledger, session) as within:
        session.execute(sa.select(ledger.t.task)).all()  # the driver has not begun anything yet
        within.submit(submission())
        session.rollback()
    engine.dispose()

    assert rows(ledger) == []


def test_rule_25_a_transaction_that_read_first_is_told_how_to_begin(sqlite_ledger):
    ledger = sqlite_ledger
    engine = sa.create_engine(ledger.db.url, connect_args={"isolation_level": None, "timeout": 0.1})
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    with engine.connect() as connection, lent(ledger, connection) as within:
        connection.execute(sa.select(ledger.t.task)).all()
        queued(ledger)
        with pytest.raises(LedgerUnavailable, match="BEGIN IMMEDIATE"):
            within.submit(submission())
    engine.dispose()


# --- what is refused ---------------------------------------------------------------------------------


def test_autocommit_is_refused(ledger, engine):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("SELECT 1"))
        with lent(ledger, connection) as within, pytest.raises(SubmitError, match="AUTOCOMMIT"):
            within.submit(submission())

    assert rows(ledger) == []


def test_a_transaction_that_is_over_is_refused(ledger, engine):
    with engine.connect() as connection, lent(ledger, connection) as within:
        within.submit(submission())
        connection.commit()
        with pytest.raises(SubmitError, match="is over"):
            within.submit(submission())
        with connection.begin():
            within.submit(submission())

    assert len(rows(ledger)) == 2


def test_a_database_without_a_ledger_is_refused_and_the_transaction_goes_on(ledger, make_database):
    dialect = "mariadb" if ledger.dialect.name == "mysql" else ledger.dialect.name
    engine = sa.create_engine(make_database(dialect))
    with engine.connect() as connection, connection.begin(), lent(ledger, connection) as within:
        connection.exec_driver_sql("CREATE TABLE shop (n INTEGER)")
        with pytest.raises(LedgerSchemaError, match=r"has no celery-durable tables; the ledger is .* same database"):
            within.submit(submission())
        connection.exec_driver_sql("INSERT INTO shop VALUES (1)")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT n FROM shop").scalar() == 1
    engine.dispose()


def test_another_ledger_and_another_kind_of_database_are_refused(postgres_ledger, sqlite_ledger, make_database):
    twin = opened(make_database("sqlite"))
    twin.migrate()
    for ledger, message in ((sqlite_ledger, "has a ledger of its own"), (postgres_ledger, "is on sqlite")):
        with twin.db.engine.connect() as connection, pytest.raises(SubmitError, match=message):
            ledger.within(ledger.lender(connection)).submit(submission())
    twin.db.dispose()


def test_a_session_that_knows_no_database_for_our_tables_is_refused(sqlite_ledger):
    with orm.Session() as session, pytest.raises(SubmitError, match="does not say in which database durable_task is"):
        sqlite_ledger.within(sqlite_ledger.lender(session)).submit(submission())


class AsyncLooking:
    run_sync = None


@pytest.mark.parametrize(("given", "message"), [(object(), "takes a Session or"), (AsyncLooking(), "run_sync")])
def test_what_is_no_session_or_connection_is_refused(sqlite_ledger, given, message):
    with pytest.raises(BadRequest, match=message):
        sqlite_ledger.lender(given)


def test_the_sessions_of_a_registry_are_taken(sqlite_ledger):
    registry = orm.scoped_session(orm.sessionmaker(sqlite_ledger.db.engine))
    with lent(sqlite_ledger, registry) as within:
        within.submit(submission())
    registry.commit()
    registry.remove()

    assert len(rows(sqlite_ledger)) == 1


def test_a_claim_does_not_wait_for_a_submission(ledger, engine):
    """Whoever runs a task goes on while its key is submitted in a long transaction."""
    if ledger.dialect.name == "sqlite":
        return
    claim = running(ledger, "order-1")
    with engine.connect() as connection, connection.begin(), lent(ledger, connection) as within:
        within.submit(submission("order-1"))
        within.submit(submission("order-1", awaited=True))
        Background(lambda: succeed(ledger, claim)).answer(10)
        claimed(ledger, queued(ledger, "order-2").task_id)

    assert row_of(ledger, claim.row_id).state == "succeeded"
