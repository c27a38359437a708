"""Steps and checkpoints are written once and under the live claim; a transactional step whole, or not at all."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from celery_durable import failpoints, states
from celery_durable.errors import LeaseLost, LedgerUnavailable, StepError, StepResultError
from celery_durable.steps import Content, Memory
from tests.ledger.kit import (
    captured,
    change,
    claimed,
    gone,
    make_due,
    now,
    opened,
    row_of,
    running,
    verbs,
)
from tests.task.running import seen, witnesses

RESULT, OTHER = Content(b"42", "application/json"), Content(b"43", "application/json")


@pytest.fixture
def witness(ledger):
    """A table of the user's in the same database, empty."""
    table = witnesses(ledger)
    ledger.db.run(lambda connection: connection.execute(sa.delete(table)))
    return table


def record(ledger, claim, name="charge", result=RESULT, seconds=0.5):
    ledger.record_step(claim, name, result, seconds=seconds, actor="w")


def transact(ledger, claim, call, fn=lambda connection: None, name="book"):
    return ledger.transact_step(claim, name, ledger.enclosure(fn), call, actor="w")


def noting(witness, what="row", then=None):
    """A step that writes a row, then does something else in its transaction."""

    def call(given):
        given.execute(sa.insert(witness).values(what=what))
        if then is not None:
            then(given)
        return RESULT

    return call


def lose(ledger, claim):
    return ledger.lose(claim.task_id, claim.token, gone(), owed_token="o", actor="k")


# Recording --------------------------------------------------------------------------------------------


def test_a_step_is_a_row_under_its_claim(ledger):
    claim = running(ledger)
    record(ledger, claim, seconds=2)

    [step] = ledger.steps(claim.row_id)
    assert (step.name, step.claim, step.result) == ("charge", 1, RESULT)
    assert 1_900_000 < step.finished_at - step.started_at < 2_100_000
    assert abs(step.finished_at - now(ledger)) < 30_000_000
    assert verbs(ledger, claim.row_id) == ["submit", "claim"], "no history row per step"


def test_what_recording_costs(ledger):
    claim = running(ledger)
    with captured(ledger) as sent:
        record(ledger, claim)
    writes = [s for s, _ in sent if not s.startswith("BEGIN")]
    assert len(writes) == (1 if ledger.dialect.one_statement else 2)


def test_what_earlier_runs_have_left_takes_one_statement(ledger):
    claim = running(ledger)
    for n in range(3):
        record(ledger, claim, f"page-{n}", Content(str(n).encode(), "application/json"))
    ledger.write_checkpoint(claim, OTHER, progress=False, actor="w")
    rest = states.Wait(states.SLEEP, "rest", states.After(9), sleep="s:1")
    ledger.settle(claim, lambda row: states.wait(row, rest, gone(), token="o", owes=False, ring=9), actor="w")
    with captured(ledger) as sent:
        memory = ledger.remembered(claim)
    assert len(sent) == 1
    assert memory == Memory({f"page-{n}": Content(str(n).encode(), "application/json") for n in range(3)}, {}, OTHER)


def test_names_differ_by_case_accent_and_script(ledger):
    claim = running(ledger)
    names = ["charge", "Charge", "chargé", "charg", "充电", "x" * 255, "ä" * 255]
    for name in names:
        record(ledger, claim, name)
    assert {s.name for s in ledger.steps(claim.row_id)} == set(names)


def test_steps_are_told_in_the_order_in_which_they_were_done(ledger):
    claim = running(ledger)
    for n in range(12):
        record(ledger, claim, f"page-{n}", seconds=n % 3)
    assert [s.name for s in ledger.steps(claim.row_id)] == [f"page-{n}" for n in range(12)]


def test_a_step_of_a_task_that_is_not_there_is_a_violation(ledger):
    claim = running(ledger)
    record(ledger, claim)
    assert ledger.verify() == []
    ledger.db.run(lambda c: c.execute(sa.update(ledger.t.step).values(task_row=claim.row_id + 1)))
    assert [(v.invariant, v.detail) for v in ledger.verify()] == [(5, "1 step row of a task that is not there")]


def test_recording_twice_is_recording_once(ledger):
    claim = running(ledger)
    record(ledger, claim)
    record(ledger, claim)
    assert len(ledger.steps(claim.row_id)) == 1


def overtaken(ledger):
    """A claim that was lost, and whose row runs under another."""
    claim = running(ledger)
    lose(ledger, claim)
    claimed(ledger, claim.task_id)
    return claim


@pytest.mark.parametrize(
    "write",
    [
        record,
        lambda ledger, claim: ledger.write_checkpoint(claim, RESULT, progress=True, actor="w"),
        lambda ledger, claim: transact(ledger, claim, lambda given: RESULT),
    ],
    ids=["step", "checkpoint", "transaction"],
)
def test_rule_01_a_claim_that_is_over_records_nothing(ledger, write):
    claim = overtaken(ledger)
    before = row_of(ledger, claim.row_id)

    with pytest.raises(LeaseLost):
        write(ledger, claim)

    assert row_of(ledger, claim.row_id) == before
    assert ledger.remembered(claim) == Memory()
    assert verbs(ledger, claim.row_id)[-1] == "fenced"


def test_a_lease_that_ran_out_unseen_still_records(ledger):
    claim = running(ledger)
    make_due(ledger, claim.row_id, "lease_expires_at")
    record(ledger, claim)
    assert len(ledger.steps(claim.row_id)) == 1


def test_a_checkpoint_takes_the_place_of_the_one_before(ledger):
    claim = running(ledger)
    for value in (RESULT, OTHER):
        ledger.write_checkpoint(claim, value, progress=False, actor="w")
        assert ledger.remembered(claim).checkpoint == value
    assert ledger.steps(claim.row_id) == []


# Progress ---------------------------------------------------------------------------------------------

PROGRESS = {
    "step": record,
    "transaction": lambda ledger, claim: transact(ledger, claim, lambda given: RESULT),
    "checkpoint": lambda ledger, claim: ledger.write_checkpoint(claim, RESULT, progress=True, actor="w"),
}


@pytest.mark.parametrize("progress", PROGRESS)
def test_rule_09_a_loss_after_a_new_step_does_not_count(ledger, progress):
    claim = running(ledger, max_losses=2)
    PROGRESS[progress](ledger, claim)
    assert lose(ledger, claim) == "queued"
    assert row_of(ledger, claim.row_id).losses == 0
    states_reached = [lose(ledger, claimed(ledger, claim.task_id)) for _ in range(2)]
    assert states_reached == ["queued", "dead"]
    assert row_of(ledger, claim.row_id).failure_kind == "poison"


def test_rule_09_a_checkpoint_that_leads_nowhere_is_no_progress(ledger):
    claim = running(ledger, max_losses=1)
    ledger.write_checkpoint(claim, RESULT, progress=False, actor="w")
    assert lose(ledger, claim) == "dead"


@pytest.mark.parametrize("progress", PROGRESS)
def test_rule_17_a_new_step_ends_a_series_of_waits(ledger, progress):
    claim = running(ledger)
    change(ledger, claim.row_id, waits=5, waiting_from=7, give_up_at=8, wait_event="e")
    PROGRESS[progress](ledger, claim)
    row = row_of(ledger, claim.row_id)
    assert (row.waits, row.waiting_from, row.give_up_at, row.wait_event) == (0, None, None, None)


# Transactions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [lambda connection: None, lambda session: None], ids=["connection", "session"])
def test_what_a_step_writes_and_its_row_are_committed_together(ledger, witness, fn):
    claim = running(ledger)
    given = []

    assert transact(ledger, claim, noting(witness, then=given.append), fn) == RESULT

    assert isinstance(given[0], Session if fn.__code__.co_varnames == ("session",) else sa.Connection)
    assert seen(ledger, witness) == ["row"]
    assert [s.name for s in ledger.steps(claim.row_id)] == ["book"]


def fails(given):
    raise ValueError("no")


@pytest.mark.parametrize("fn", [lambda connection: None, lambda session: None], ids=["connection", "session"])
def test_what_a_step_wrote_that_raises_is_rolled_back(ledger, witness, fn):
    claim = running(ledger)
    with pytest.raises(ValueError, match="no"):
        transact(ledger, claim, noting(witness, then=fails), fn)
    assert (seen(ledger, witness), ledger.steps(claim.row_id)) == ([], [])
    transact(ledger, claim, noting(witness, "again"), fn)
    assert seen(ledger, witness) == ["again"]


def test_rule_22_a_claim_that_ends_meanwhile_takes_all_with_it(ledger, witness):
    """On SQLite nobody else can write meanwhile: there it has ended before."""
    claim = running(ledger)
    if ledger.dialect.name == "sqlite":
        lose(ledger, claim)
        meanwhile = None
    else:
        meanwhile = lambda _: lose(ledger, claim)  # noqa: E731 - the third word of three
    with pytest.raises(LeaseLost):
        transact(ledger, claim, noting(witness, then=meanwhile))
    assert (seen(ledger, witness), ledger.steps(claim.row_id)) == ([], [])
    assert verbs(ledger, claim.row_id)[-2:] == ["lose", "fenced"]


@pytest.mark.parametrize("dialect", ["postgres_ledger", "mariadb_ledger"])
def test_rule_22_the_lease_is_renewed_while_a_step_is_in_its_transaction(request, dialect):
    ledger = request.getfixturevalue(dialect)
    claim, witness = running(ledger), witnesses(ledger)
    renewed = []
    renew = lambda _: renewed.append(ledger.renew({claim.task_id: claim.token}, 60))  # noqa: E731
    transact(ledger, claim, noting(witness, then=renew))
    assert renewed[0][claim.task_id] is not None


@contextmanager
def broken(ledger, point):
    """The same ledger, in whose process a failpoint breaks the connection; and how often that was come by."""
    failpoints.arm(point)
    far = opened(ledger.db.url.render_as_string(hide_password=False))
    [armed] = next(iter(failpoints._armed.values()))
    try:
        yield far, armed
    finally:
        failpoints.arm("")
        far.db.dispose()


@pytest.mark.parametrize("fn", [lambda connection: None, lambda session: None], ids=["connection", "session"])
@pytest.mark.parametrize("place", ["statement", "commit"])
@pytest.mark.parametrize("after", ["", "execute-then-"])
def test_rule_22_a_connection_that_breaks_anywhere_leaves_the_step_done_once(ledger, witness, fn, place, after):
    """At each statement of it in turn, the user's included, before it and after it; and at the commit."""
    for number in itertools.count(1):
        claim = running(ledger)
        ledger.db.run(lambda connection: connection.execute(sa.delete(witness)))
        with broken(ledger, f"transact_step.{place}={after}raise@{number}") as (far, armed):
            assert transact(far, claim, noting(witness), fn) == RESULT
        assert seen(ledger, witness) == ["row"]
        assert len(ledger.steps(claim.row_id)) == 1
        if armed.seen < number:
            break
    assert number > (4 if place == "statement" else 1)


def test_rule_22_a_lost_reply_to_the_commit_is_looked_into_before_anything_is_done_again(ledger, lossy, wire, witness):
    for number in itertools.count(1):
        claim = running(ledger)
        ledger.db.run(lambda connection: connection.execute(sa.delete(witness)))
        calls = []
        wire.lose(number)
        assert transact(lossy, claim, noting(witness, then=calls.append)) == RESULT
        assert (len(calls), seen(ledger, witness)) == (1, ["row"])
        if wire.commits < number:
            break
    assert number > 1


def test_a_database_that_is_gone_after_the_commit_says_that_nobody_knows(ledger, lossy, wire, witness):
    claim = running(ledger)
    wire.lose(1, for_good=True)
    with pytest.raises(LedgerUnavailable):
        transact(lossy, claim, noting(witness))
    wire.lose(0)
    assert seen(ledger, witness) == ["row"]
    assert ledger.remembered(claim).steps == {"book": RESULT}, "the next run finds it"


_CONFLICTS = {
    "postgresql": ["DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$", "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"],
    "mysql": ["SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213", "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1205"],
}


@pytest.mark.parametrize("dialect", ["postgres_ledger", "mariadb_ledger"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_conflict_with_another_transaction_is_tried_again_whole(request, dialect, which):
    ledger = request.getfixturevalue(dialect)
    claim, witness = running(ledger), witnesses(ledger)
    ledger.db.run(lambda connection: connection.execute(sa.delete(witness)))
    calls = []

    def conflict(given):
        calls.append(given)
        if len(calls) < 3:
            given.exec_driver_sql(_CONFLICTS[ledger.dialect.name][which])

    transact(ledger, claim, noting(witness, then=conflict))

    assert (len(calls), seen(ledger, witness)) == (3, ["row"])


def test_errors_of_the_users_own_statements_pass_as_they_are(ledger, witness):
    claim = running(ledger)
    calls = []

    def twice(given):
        calls.append(given)
        given.execute(sa.insert(witness), [{"id": 7, "what": "a"}, {"id": 7, "what": "b"}])

    with pytest.raises(sa.exc.IntegrityError):
        transact(ledger, claim, noting(witness, then=twice))
    with pytest.raises(sa.exc.DBAPIError, match="nowhere"):
        transact(ledger, claim, noting(witness, then=lambda given: given.execute(sa.text("SELECT 1 FROM nowhere"))))
    assert (len(calls), seen(ledger, witness)) == (1, [])


@pytest.mark.parametrize(
    ("fn", "end"),
    [
        (lambda connection: None, lambda c: c.commit()),
        (lambda connection: None, lambda c: c.rollback()),
        (lambda connection: None, lambda c: c.get_transaction().commit()),
        (lambda connection: None, lambda c: c.close()),
        (lambda session: None, lambda s: s.commit()),
        (lambda session: None, lambda s: s.connection().commit()),
    ],
)
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_step_that_would_end_its_transaction_is_refused_before_it_does(ledger, witness, fn, end, swallowed):
    claim = running(ledger)

    def ends(given):
        try:
            end(given)
        except Exception:
            if not swallowed:
                raise

    with pytest.raises(StepError, match="neither commits nor rolls back"):
        transact(ledger, claim, noting(witness, then=ends), fn)
    assert (seen(ledger, witness), ledger.steps(claim.row_id)) == ([], [])
    transact(ledger, claim, noting(witness, "again"))
    assert seen(ledger, witness) == ["again"]


@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK", "driver"])
def test_a_transaction_that_was_ended_behind_our_back_is_noticed(ledger, witness, how):
    claim = running(ledger)

    def ends(connection):
        if how == "driver":
            connection.connection.commit()
        else:
            connection.exec_driver_sql(how)

    with pytest.raises(StepResultError, match="has ended its transaction"):
        transact(ledger, claim, noting(witness, then=ends))
    assert ledger.steps(claim.row_id) == []


def test_ddl_ends_a_transaction_on_mariadb(mariadb_ledger):
    claim, witness = running(mariadb_ledger), witnesses(mariadb_ledger)
    ddl = lambda c: c.exec_driver_sql("CREATE TABLE IF NOT EXISTS made (id INT)")  # noqa: E731
    with pytest.raises(StepResultError, match="MySQL"):
        transact(mariadb_ledger, claim, noting(witness, then=ddl))


def test_a_caught_error_is_refused_where_it_has_ended_the_transaction(ledger, witness):
    claim = running(ledger)

    def catches(given):
        with pytest.raises(sa.exc.DBAPIError):
            given.execute(sa.insert(witness), [{"id": 7, "what": "a"}, {"id": 7, "what": "b"}])

    if ledger.dialect.name == "postgresql":
        with pytest.raises(StepError, match="begin_nested"):
            transact(ledger, claim, noting(witness, then=catches))
        assert seen(ledger, witness) == []
    else:
        transact(ledger, claim, noting(witness, then=catches))
        assert "row" in seen(ledger, witness)


@pytest.mark.parametrize("fn", [lambda connection: None, lambda session: None], ids=["connection", "session"])
def test_savepoints_within_a_step_are_the_users(ledger, witness, fn):
    claim = running(ledger)

    def tries(given):
        part = given.begin_nested()
        given.execute(sa.insert(witness).values(what="lost"))
        part.rollback()
        with given.begin_nested():
            given.execute(sa.insert(witness).values(what="kept"))

    transact(ledger, claim, noting(witness, then=tries), fn)
    assert seen(ledger, witness) == ["row", "kept"]


def test_a_session_may_go_back_to_where_the_step_began(ledger, witness):
    claim = running(ledger)

    def back(session):
        session.rollback()
        session.execute(sa.insert(witness).values(what="second"))

    transact(ledger, claim, noting(witness, then=back), lambda session: None)
    assert seen(ledger, witness) == ["second"]


class Own(Session):
    """A project's own class of session."""


def _annotated(first: Session): ...


def _named_otherwise(session: sa.Connection): ...


def _none(): ...


def _own(x): ...


_own.__annotations__["x"] = Own


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (_annotated, Session),
        (_named_otherwise, sa.Connection),
        (_own, Own),
        (_none, sa.Connection),
        (print, sa.Connection),
    ],
)
def test_a_function_says_by_its_first_parameter_what_it_takes(sqlite_ledger, fn, kind):
    given = []
    transact(sqlite_ledger, running(sqlite_ledger), lambda g: given.append(type(g)) or RESULT, fn)
    assert given == [kind]
