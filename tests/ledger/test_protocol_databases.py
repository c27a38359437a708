"""The rules of the protocol about transactions and each database: each fails when its rule is taken out."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from celery_durable import states
from celery_durable.errors import LedgerUnavailable
from celery_durable.ledger.dialects import READ_ONLY
from celery_durable.records import Failure
from tests.ledger.kit import (
    Background,
    claimed,
    lock,
    opened,
    queued,
    race,
    row_of,
    rows,
    running,
    submission,
    succeed,
    transaction,
    until_blocked,
)


def attempt(ledger, task_id, token):
    return ledger.claim(task_id, token, owner="w", pid=1, lease=30)


def insert_by_hand(ledger, connection, sub):
    """What another process' submission has written and not yet committed."""
    connection.execute(sa.insert(ledger.t.task).values(ledger.writer.values(ledger._values(sub))))


def test_rule_19_a_conflict_with_an_uncommitted_submission_is_judged_after_its_commit(ledger):
    first = submission("order-1")
    with transaction(ledger) as connection:
        insert_by_hand(ledger, connection, first)
        second = Background(lambda: queued(ledger, "order-1"))
        until_blocked(ledger)

    assert (second.answer().outcome, second.answer().task_id) == ("existing", first.task_id)


def test_rule_19_a_rolled_back_submission_holds_no_key(ledger):
    with ledger.db.engine.connect() as connection:
        with connection.begin() as begun:
            insert_by_hand(ledger, connection, submission("order-1"))
            second = Background(lambda: queued(ledger, "order-1"))
            until_blocked(ledger)
            begun.rollback()
        assert second.answer().outcome == "new"


def test_rule_19_a_refused_claim_is_judged_by_the_row_as_it_became(ledger):
    row = queued(ledger, owes=True)
    over = ledger.writer.values(states.into_terminal(states.CANCELLED, owed="owed"))
    with transaction(ledger) as connection:
        connection.execute(sa.update(ledger.t.task).where(ledger.t.task.c.id == row.row_id).values(over))
        second = Background(lambda: attempt(ledger, row.task_id, "t"))
        until_blocked(ledger)

    assert second.answer().why == "owing"


def test_rule_23_a_submission_asked_for_again_is_found_by_its_id(ledger):
    sub = submission("order-1")
    first = ledger.submit(sub)

    again = ledger.submit(sub, on_conflict="raise")

    assert (again.outcome, again.row_id) == ("own", first.row_id)
    assert len(rows(ledger)) == 1


def test_rule_23_ones_own_row_is_known_even_when_it_is_an_alias(ledger):
    queued(ledger, "order-1")
    sub = submission("order-1", awaited=True)
    first = ledger.submit(sub)

    assert ledger.submit(sub, on_conflict="raise").row_id == first.row_id


@pytest.mark.parametrize(
    "url", ["postgresql://shop@127.0.0.1:1/shop", "mysql://shop@127.0.0.1:1/shop", "sqlite:////nowhere/ledger.db"]
)
def test_rule_23_a_database_that_is_not_there_is_unavailable_and_nothing_was_written(url):
    with pytest.raises(LedgerUnavailable) as caught:
        opened(url).submit(submission(task_id="mine"))

    assert (caught.value.task_id, caught.value.outcome) == ("mine", "not recorded")


def test_rule_24_mariadb_reads_committed_rows(mariadb_ledger):
    with transaction(mariadb_ledger) as connection:
        assert connection.exec_driver_sql("SELECT @@tx_isolation").scalar() == "READ-COMMITTED"


def test_rule_24_nothing_that_is_long_is_cut(ledger):
    """BLOB and TEXT of MySQL end at 64 KiB."""
    long = "ä" * 100_000
    sub = submission(body=b"x" * 200_000, priority=1)
    ledger.submit(sub)
    claim = claimed(ledger, sub.task_id)
    failure = Failure("permanent", "ValueError", long, traceback=long)
    ledger.settle(claim, lambda row: states.fail(row, failure, "t", owes=False, ring=1, retry=None), actor="w")
    other = running(ledger)
    succeed(ledger, other, b"y" * 200_000)

    assert row_of(ledger, claim.row_id).body == b"x" * 200_000
    assert ledger.failures(claim.row_id)[0].message == long
    assert ledger.failures(claim.row_id)[0].traceback == long
    assert row_of(ledger, other.row_id).result == b"y" * 200_000


def test_rule_24_a_key_of_full_length_is_kept_whole(ledger):
    first, second = "🎉" * 254 + "a", "🎉" * 254 + "b"

    assert queued(ledger, first).outcome == queued(ledger, second).outcome == "new"
    assert ledger.get(first).key == first


def test_rule_24_a_deadlock_is_tried_again(mariadb_ledger):
    """Two rows locked in opposite orders: the database ends one of the two, and nobody hears of it."""
    ledger = mariadb_ledger
    first, second = queued(ledger), queued(ledger)
    tries = []

    def work(connection):
        tries.append(1)
        lock(ledger, connection, second.row_id)
        lock(ledger, connection, first.row_id)
        return "done"

    with transaction(ledger) as connection:
        connection.execute(sa.update(ledger.t.task).values(priority=1).where(ledger.t.task.c.id == first.row_id))
        other = Background(lambda: ledger.db.run(work))
        until_blocked(ledger)
        connection.execute(sa.update(ledger.t.task).values(priority=1).where(ledger.t.task.c.id == second.row_id))

    assert other.answer() == "done"
    assert len(tries) == 2


def test_rule_25_sqlite_writers_queue_up_instead_of_failing(sqlite_ledger):
    ledger = sqlite_ledger
    made = [queued(ledger) for _ in range(4)]

    def reads_then_writes(number):
        for _ in range(5):
            ledger.db.run(lambda c: (c.execute(sa.select(ledger.t.task)).all(), _touch(ledger, c, made[number].row_id)))
        return "done"

    assert race(4, reads_then_writes) == ["done"] * 4


def _touch(ledger, connection, row_id):
    connection.execute(sa.update(ledger.t.task).values(priority=1).where(ledger.t.task.c.id == row_id))


def test_rule_25_sqlite_loses_no_commit_with_its_power(sqlite_ledger):
    with sqlite_ledger.db.connection() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_rule_25_sqlite_readers_wait_for_nobody(sqlite_ledger):
    row = queued(sqlite_ledger)
    with transaction(sqlite_ledger) as connection:
        assert connection.get_execution_options().get(READ_ONLY) is None
        assert Background(lambda: sqlite_ledger.get(row.task_id)).answer(5).state == "queued"
