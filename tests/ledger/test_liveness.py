"""The lock by which a worker shows that it lives, on every database."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from celery_durable.ledger.liveness import FileLock
from celery_durable.ledger.liveness_session import MySQLLock, PostgresLock, SessionLock
from tests.ledger.kit import opened
from tests.ledger.test_registry import presence
from tests.waiting import wait_until

#: Ends a session, as an administrator would, or a pooler.
ENDED_BY = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}"}
SESSION = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}


@pytest.fixture
def lock(ledger):
    made = ledger.liveness_lock()
    yield made
    made.release()


@pytest.fixture
def watcher(ledger):
    """Another worker's lock, through which it looks at ours."""
    made = ledger.liveness_lock()
    assert made.acquire() is not None
    yield made
    made.release()


def enter(ledger, lock, name="w"):
    ledger.enter(presence(name, lock=lock.held))


def end_session(ledger, lock):
    session = lock._connection.exec_driver_sql(SESSION[ledger.dialect.name]).scalar()
    ledger.db.run(lambda c: c.exec_driver_sql(ENDED_BY[ledger.dialect.name].format(session)))


def test_each_database_has_its_kind(ledger):
    kinds = {"sqlite": FileLock, "postgresql": PostgresLock, "mysql": MySQLLock}
    assert type(ledger.liveness_lock()) is kinds[ledger.dialect.name]


def test_it_is_held_until_it_is_released(ledger, lock, watcher):
    held = lock.acquire()
    enter(ledger, lock)

    assert watcher.peers("me") == [("w", held.number, False, True)]
    assert lock.stands()
    assert not lock.lost()
    lock.release()
    assert lock.held is None
    if ledger.dialect.name != "sqlite":  # its file is gone: that tells nothing
        assert wait_until(lambda: watcher.peers("me")[0].free)


def test_it_is_free_when_its_process_is_gone_without_a_word(ledger, lock, watcher):
    held = lock.acquire()
    enter(ledger, lock)

    lock.leave_to_parent()  # closes it, as the system does

    assert wait_until(lambda: [p for p in watcher.peers("me") if p.free]) == [("w", held.number, True, True)]
    watcher.forget(held.number)
    if ledger.dialect.name == "sqlite":
        assert not Path(f"{ledger.db.url.database}-worker-{held.number:08x}").exists()


def test_one_s_own_and_those_without_a_lock_are_no_peers(ledger, lock, watcher):
    enter(ledger, watcher, "me")
    enter(ledger, lock, "old")

    assert watcher.peers("me") == []


def test_it_is_another_one_each_time(lock):
    assert len({lock.acquire().number for _ in range(5)}) == 5


def test_looking_disturbs_nobody(ledger, lock, watcher):
    """Two that look at a free lock at once do not take each other for its holder."""
    lock.acquire()
    enter(ledger, lock)
    lock.leave_to_parent()
    second = ledger.liveness_lock()
    second.acquire()
    assert wait_until(lambda: watcher.peers("me")[0].free)
    for _ in range(20):
        assert watcher.peers("me")[0].free
        assert second.peers("me")[0].free
    second.release()


def test_a_session_that_was_ended_is_noticed_without_asking(ledger, lock):
    if not isinstance(lock, SessionLock):
        pytest.skip("nobody can take away the lock on a file")
    lock.acquire()
    assert not lock.lost()

    end_session(ledger, lock)

    assert wait_until(lock.lost)
    assert not lock.stands()
    assert lock.acquire() is not None
    assert not lock.lost()


def test_a_look_in_a_session_that_was_ended_fails(ledger, lock):
    if not isinstance(lock, SessionLock):
        pytest.skip("nobody can take away the lock on a file")
    lock.acquire()
    end_session(ledger, lock)

    with pytest.raises(sa.exc.SQLAlchemyError):
        wait_until(lambda: lock.peers("me"))


def test_a_server_that_is_away_refuses(ledger):
    if ledger.dialect.name == "sqlite":
        pytest.skip("no server")
    lock = opened(ledger.db.url.set(port=1).render_as_string(hide_password=False)).liveness_lock()

    assert lock.acquire() is None
    assert lock.refused
    assert lock.peers("me") == []


def test_through_a_pooler_there_is_none(ledger, lock, monkeypatch):
    """Which shows by another number of the session: that one outlives the process."""
    if not isinstance(lock, SessionLock):
        pytest.skip("no sessions")
    direct = lock._direct
    monkeypatch.setattr(lock, "_direct", lambda _said, session: direct(4711, session))

    assert lock.acquire() is None
    assert "goes through a pooler (session 4711 there" in lock.refused


def test_a_ledger_in_memory_has_none():
    lock = opened("sqlite:///:memory:").liveness_lock()

    assert lock.acquire() is None
    assert "no file beside which" in lock.refused
