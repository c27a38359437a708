"""Steps: done once in the life of a task, whatever becomes of the runs."""

from __future__ import annotations

import functools
import json
import time

import pytest
import sqlalchemy as sa

from celery_durable import DurableTask, StepError, ledger, watch
from celery_durable.errors import LeaseLost, LedgerUnavailable, StepResultError
from tests.task.running import Killed, lose, run, seen, steps_of, wake, witnesses
from tests.worker.kit import alter, record, statements, the_ledger, verbs


@pytest.fixture(scope="module")
def ledger_url(tmp_path_factory):
    """One ledger for all: no test looks at another's rows."""
    return f"sqlite:///{tmp_path_factory.mktemp('steps') / 'ledger.db'}"


@pytest.fixture
def shop(make, ledger_url):
    """An app that needs no broker."""
    return make(broker="memory://", ledger_url=ledger_url)


class Calls:
    """A function that counts its calls, and fails or is killed when it is told to."""

    def __init__(self, *outcomes):
        self.outcomes, self.calls = list(outcomes), []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        outcome = self.outcomes.pop(0) if self.outcomes else len(self.calls)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def __len__(self):
        return len(self.calls)


def body(app, **options):
    """Make a task of a function of `self`."""
    return app.task(base=DurableTask, bind=True, shared=False, **options)


def failure(app, result):
    return the_ledger(app).failures(record(app, result).id)[-1]


def test_a_step_is_done_once_and_its_result_comes_back_in_every_run(shop):
    charge, got = Calls("token-1"), []

    @body(shop)
    def pay(self, order):
        got.append(self.step("charge", charge, order, cents=5))
        if len(got) < 3:
            raise Killed
        return got[-1]

    result = pay.delay("ORD-1")
    assert [run(shop, result, "ORD-1").state for _ in range(3)] == ["queued", "queued", "succeeded"]

    assert charge.calls == [(("ORD-1",), {"cents": 5})]
    assert got == ["token-1"] * 3
    [step] = [s.as_json() for s in the_ledger(shop).steps(record(shop, result).id)]
    assert (step["name"], step["claim"], step["result"]) == ("charge", 1, "token-1")
    assert step["started_at"] <= step["finished_at"]


def test_a_run_sends_one_statement_per_step_and_one_for_all_it_remembers(shop):
    ends = Calls(Killed(), None)

    @body(shop)
    def fetch(self):
        for n in range(10 if not ends.calls else 12):
            self.step(f"page-{n}", int, n)
        ends()

    result = fetch.delay()
    with statements(shop) as first:
        run(shop, result)
    with statements(shop) as second:
        run(shop, result)

    inserts = [s for s in first if "durable_step" in s]
    assert [s.split()[0] for s in inserts] == ["INSERT"] * 10
    assert [s.split()[0] for s in second if "durable_step" in s] == ["SELECT", "INSERT", "INSERT"]


def test_what_fn_raises_passes_and_is_not_recorded(shop):
    flaky = Calls(ConnectionError("no"), "yes")

    @body(shop)
    def fetch(self):
        return self.step("get", flaky)

    result = fetch.delay()
    assert run(shop, result).state == "waiting", "the task's own retry"
    assert steps_of(shop, result) == {}
    wake(shop, result)
    assert run(shop, result).state == "succeeded"
    assert steps_of(shop, result) == {"get": "yes"}


def test_a_name_can_be_tried_again_in_a_run_until_it_is_done(shop):
    flaky = Calls(ConnectionError("no"), "yes")

    @body(shop)
    def fetch(self):
        with pytest.raises(ConnectionError):
            self.step("get", flaky)
        assert self.step("get", flaky) == "yes"
        self.step("get", flaky)

    result = fetch.delay()
    assert run(shop, result).state == "dead"
    assert "two steps 'get' in one run" in failure(shop, result).message
    assert len(flaky) == 2


@pytest.mark.parametrize("later", [False, True])
def test_two_steps_of_one_name_in_a_run_are_refused_whether_recorded_or_not(shop, later):
    runs = Calls(Killed()) if later else Calls()

    @body(shop)
    def fetch(self):
        self.step("get", int)
        runs()
        self.step("get", int)

    result = fetch.delay()
    states = [run(shop, result).state for _ in range(1 + later)]
    assert states[-1] == "dead"
    assert failure(shop, result).exception.endswith("StepError")


def test_a_step_within_a_step_is_refused_and_nothing_is_recorded(shop):
    inner = Calls()

    @body(shop)
    def nest(self):
        self.step("outer", lambda: self.step("inner", inner))

    result = nest.delay()
    assert run(shop, result).state == "dead"
    assert "'inner' is asked for inside step 'outer'" in failure(shop, result).message
    assert (len(inner), steps_of(shop, result)) == (0, {})


async def _coroutine(): ...


class _Awaited:
    async def __call__(self): ...


@pytest.mark.parametrize("fn", [_coroutine, functools.partial(_coroutine), _Awaited()])
def test_coroutine_functions_are_refused_before_they_are_called(shop, fn):
    @body(shop)
    def fetch(self):
        self.step("get", fn)

    result = fetch.delay()
    assert run(shop, result).state == "dead"
    assert "'async def'" in failure(shop, result).message
    with pytest.raises(StepError, match="async def"):
        fetch()


@pytest.mark.parametrize("fn", [lambda: _coroutine(), lambda: (n for n in [1])])  # noqa: PLW0108
def test_what_runs_later_is_no_result(shop, fn):
    @body(shop)
    def fetch(self):
        self.step("get", fn)

    result = fetch.delay()
    assert run(shop, result).state == "dead"
    assert "does its work later" in failure(shop, result).message


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\0", "\ud800", "x" * 256, 7, None])
def test_names_that_cannot_be_told_apart_or_stored_are_refused(shop, name):
    @body(shop)
    def fetch(self):
        for use in (lambda: self.step(name, int), lambda: self.step_key(name)):
            with pytest.raises(StepError):
                use()

    fetch()
    result = fetch.delay()
    assert run(shop, result).state == "succeeded"


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 255, "日本", "Page 1/ä", "PAGE-1", "sleep:1"])
def test_names_up_to_255_characters_of_any_script_are_kept_apart(shop, name):
    @body(shop)
    def fetch(self):
        return self.step(name, int, 7) + self.step("page-1", int, 1)

    result = fetch.delay()
    assert run(shop, result).decoded_result() == 8
    assert steps_of(shop, result) == {name: 7, "page-1": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"retries": -1}, "retries is -1"), ({"backoff": -0.5}, "backoff is -0.5"), ({"backoff": float("nan")}, "nan")],
)
def test_options_that_make_no_sense_are_refused(shop, options, words):
    @body(shop)
    def fetch(self):
        self.step("get", int, **options)

    with pytest.raises(StepError, match=words):
        fetch()


# Results ----------------------------------------------------------------------------------------------


def test_the_first_run_sees_what_later_runs_will_see(shop):
    @body(shop)
    def fetch(self):
        seen.append(self.step("get", lambda: {1: (2, 3)}))
        if len(seen) == 1:
            raise Killed

    seen = []
    result = fetch.delay()
    run(shop, result)
    run(shop, result)
    assert seen == [{"1": [2, 3]}] * 2


def test_results_go_through_the_serializer_of_the_task(make, ledger_url):
    shop = make(broker="memory://", ledger_url=ledger_url, accept_content=["pickle", "json"])
    seen = []

    @body(shop, serializer="pickle")
    def fetch(self):
        seen.append(self.step("get", lambda: {1: {2, None}}))
        if len(seen) == 1:
            raise Killed

    result = fetch.delay()
    run(shop, result)
    run(shop, result)
    assert seen == [{1: {2, None}}] * 2
    [shown] = steps_of(shop, result).values()
    assert shown == {"content_type": "application/x-python-serialize;binary", "bytes": shown["bytes"]}


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize("outcome", [object(), "x" * 2_000])
def test_a_result_that_cannot_be_recorded_ends_the_task_dead_and_is_not_done_again(
    make, ledger_url, outcome, swallowed
):
    shop = make(broker="memory://", ledger_url=ledger_url, durable_max_message_bytes=1_000)
    charge, after = Calls(outcome), Calls()

    @body(shop, autoretry_for=(Exception,))
    def pay(self):
        try:
            self.step("charge", charge)
        except Exception:
            if not swallowed:
                raise
        with pytest.raises(StepResultError):
            self.step("after", after)
        with pytest.raises(StepResultError):
            self.wait("as if nothing had happened")

    result = pay.delay()
    row = run(shop, result)
    assert (row.state, row.failure_kind) == ("dead", "permanent")
    assert "'charge' was done, but its result" in failure(shop, result).message
    assert (len(charge), len(after)) == (1, 0)


# Outside a durable run --------------------------------------------------------------------------------


def test_outside_a_durable_run_a_step_calls_the_function(shop):
    got = object()

    @body(shop)
    def fetch(self, name="get"):
        self.checkpoint(got)
        return self.step(name, lambda *a, **k: (got, a, k), 1, x=2), self.restore("none"), self.fence

    assert fetch() == ((got, (1,), {"x": 2}), "none", 0)
    assert fetch.apply().get()[0] == (got, (1,), {"x": 2})
    shop.conf.task_always_eager = True
    assert fetch.delay().get()[0][0] is got


def test_a_task_called_directly_within_another_has_no_steps_of_it(shop):
    inner = Calls()

    @body(shop)
    def other(self):
        return self.step("get", inner), self.step_key("get")

    @body(shop)
    def fetch(self):
        first, second = other(), other()
        assert first[1] != second[1], "two calls, two effects"
        return self.step("get", int, 7)

    result = fetch.delay()
    assert run(shop, result).decoded_result() == 7
    assert (len(inner), steps_of(shop, result)) == (2, {"get": 7})


def test_a_task_that_calls_itself_directly_has_one_journal(shop):
    @body(shop)
    def fetch(self, depth=0):
        if depth < 2:
            return self(depth + 1) + self.step(f"at-{depth}", int, depth)
        return 0

    result = fetch.delay()
    assert run(shop, result).decoded_result() == 1
    assert steps_of(shop, result) == {"at-1": 1, "at-0": 0}


# Tokens -----------------------------------------------------------------------------------------------


def test_the_token_of_a_step_is_the_same_in_every_run_and_replay_and_no_other(shop):
    tokens = []

    @body(shop)
    def pay(self):
        tokens.append([self.step_key("charge"), self.step_key("book")])
        raise Killed if len(tokens) == 1 else ValueError

    result = pay.delay()
    assert [run(shop, result).state for _ in range(2)] == ["queued", "dead"]
    for fresh in (False, True):
        ledger(shop).replay(result.id, fresh=fresh)
        run(shop, result)
    run(shop, pay.delay())

    assert tokens[:-1] == [tokens[0]] * 4
    assert len({*tokens[0], *tokens[-1]}) == 4
    assert all(len(t) == 36 and t.isascii() for t in tokens[0])


def test_outside_a_durable_run_a_token_lasts_for_one_call(shop):
    @body(shop)
    def pay(self):
        return self.step_key("charge"), self.step_key("charge"), self.step_key("book")

    first, second = pay(), pay()
    assert first[0] == first[1] != first[2]
    assert not {*first} & {*second}
    assert pay.apply().get()[0] not in {*first, *second}


# Replay and replace -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fresh", "calls"), [(False, 1), (True, 2)])
def test_a_replay_goes_on_and_a_fresh_one_starts_over(shop, fresh, calls):
    charge, seen = Calls(), []

    @body(shop)
    def pay(self):
        seen.append(self.restore("nothing"))
        self.step("charge", charge)
        self.checkpoint("half")
        if len(seen) == 1:
            raise ValueError("wrong")

    result = pay.delay()
    run(shop, result)
    ledger(shop).replay(result.id, fresh=fresh)
    assert run(shop, result).state == "succeeded"
    assert len(charge) == calls
    assert seen == ["nothing", "nothing" if fresh else "half"]


def test_a_task_that_replaces_another_has_steps_and_tokens_of_its_own(shop):
    tokens, done = [], Calls()

    @body(shop)
    def page(self, n):
        tokens.append(self.step_key("get"))
        assert self.restore() is None
        self.step("get", done, n)
        self.checkpoint(n)
        if n < 2:
            self.replace(page.s(n + 1))
        return n

    result = page.delay(0)
    for n in range(3):
        run(shop, result, n)
    assert record(shop, result).state == "succeeded"
    assert [a for a, _ in done.calls] == [(0,), (1,), (2,)]
    assert len(set(tokens)) == 3


# Progress (PROTOCOL 9 and 17) -------------------------------------------------------------------------


def test_losses_count_only_without_a_new_step_between(shop):
    @body(shop, max_losses=2)
    def fetch(self):
        n = record(shop, result).claims
        if n <= 4 or n == 6:
            self.step(f"page-{n}", int)
        raise Killed

    result = fetch.delay()
    losses = []
    while run(shop, result).state == "queued":
        losses.append(record(shop, result).losses)
    row = record(shop, result)
    assert losses == [0, 0, 0, 0, 1, 0, 1]
    assert (row.state, row.failure_kind, row.losses) == ("dead", "poison", 2)


def test_give_up_after_counts_from_the_last_new_step(shop):
    @body(shop)
    def fetch(self):
        n = record(shop, result).claims
        if n == 3:
            self.step("page", int)
        self.wait("rates are late", retry_in=0, give_up_after=600)

    result = fetch.delay()
    for waits in (1, 2):
        assert run(shop, result).waits == waits
        wake(shop, result)
    alter(shop, result, waiting_from=record(shop, result).now - 500_000_000)
    row = run(shop, result)
    assert (row.state, row.waits) == ("waiting", 1)
    assert row.give_up_at > row.now + 590_000_000


# Control (PROTOCOL 16) --------------------------------------------------------------------------------


def test_a_swallowed_wait_is_raised_again_by_the_next_step(shop):
    after = Calls()

    @body(shop)
    def fetch(self):
        for act in (lambda: self.wait("late"), lambda: self.step("get", after), lambda: self.checkpoint(1)):
            try:
                act()
            except Exception:  # noqa: BLE001, S112 - users do
                continue
        return "done"

    result = fetch.delay()
    row = run(shop, result)
    assert (row.state, row.wait_reason, len(after)) == ("waiting", "late", 0)


def test_a_step_of_a_claim_that_is_over_is_refused_and_so_is_all_that_follows(shop):
    after = Calls()

    @body(shop)
    def fetch(self):
        with pytest.raises(LeaseLost):
            self.step("get", lambda: lose(shop, result))
        with pytest.raises(LeaseLost):
            self.step("after", after)
        with pytest.raises(LeaseLost):
            self.restore()
        return "done"

    result = fetch.delay()
    row = run(shop, result)
    assert (row.state, row.claims, len(after)) == ("queued", 1, 0)
    assert steps_of(shop, result) == {}
    assert verbs(shop, result) == ["submit", "claim", "lose", "fenced"]


def test_a_step_is_refused_once_the_lease_has_passed(shop, monkeypatch):
    get = Calls()
    monkeypatch.setattr(watch, "LOOK_EVERY", 3600)  # nobody tells of a renewal

    @body(shop, lease=0.001)
    def fetch(self):
        time.sleep(0.002)
        for name in ("one", "two"):
            with pytest.raises(LeaseLost, match="passed"):
                self.step(name, get)

    result = fetch.delay()
    assert (run(shop, result).state, len(get)) == ("running", 0)


def test_a_ledger_that_stays_down_ends_the_run(shop, monkeypatch):
    after = Calls()

    @body(shop, lease=1.1)  # from a second on it may be asked whether the lease was renewed
    def fetch(self):
        monkeypatch.setattr(the_ledger(shop), "record_step", Calls(*[LedgerUnavailable("down")] * 99))
        with pytest.raises(LedgerUnavailable):
            self.step("get", int)
        with pytest.raises(LedgerUnavailable):
            self.step("after", after)
        return "done"

    result = fetch.delay()
    row = run(shop, result)
    assert (row.state, row.wait_kind, len(after)) == ("waiting", "retry", 0)


def test_what_fn_itself_raises_of_ours_is_the_bodys_to_handle(shop):
    @body(shop)
    def fetch(self):
        with pytest.raises(LedgerUnavailable):
            self.step("get", Calls(LedgerUnavailable("another ledger")))
        return "done"

    result = fetch.delay()
    assert run(shop, result).state == "succeeded"


# A step's own retries ---------------------------------------------------------------------------------


def test_a_step_is_tried_again_in_the_worker_while_pauses_are_short(shop):
    flaky = Calls(RuntimeError("1"), ValueError("2"), "yes")

    @body(shop)
    def fetch(self):
        return self.step("get", flaky, retries=2, backoff=0)

    result = fetch.delay()
    row = run(shop, result)
    assert (row.state, row.decoded_result(), row.claims, len(flaky)) == ("succeeded", "yes", 1, 3)


def test_a_step_is_not_tried_more_often_than_it_may_nor_what_the_task_expects(shop):
    class Declined(Exception):
        pass

    flaky, declined = Calls(*[RuntimeError("no")] * 9), Calls(Declined())

    @body(shop, throws=(Declined,))
    def fetch(self):
        with pytest.raises(RuntimeError):
            self.step("get", flaky, retries=3, backoff=0)
        self.step("charge", declined, retries=3)

    result = fetch.delay()
    assert run(shop, result).state == "dead"
    assert (len(flaky), len(declined)) == (4, 1)


def test_a_long_pause_is_a_wait_that_burns_no_retry_and_counts_its_tries(shop):
    flaky = Calls(*[ConnectionError("no")] * 4)

    @body(shop)
    def fetch(self):
        try:
            return self.step("get", flaky, retries=2, backoff=60)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - swallowed
            return "done"

    result = fetch.delay()
    for tries in (1, 2):
        row = run(shop, result)
        assert (row.state, row.wait_kind, row.retries) == ("waiting", "retry", 0)
        assert f"try {tries + 1} of 3 of step 'get' after ConnectionError: no" in row.wait_reason
        assert abs(row.wake_at - row.now - 60e6 * tries) < 30e6
        wake(shop, result)
    row = run(shop, result)
    assert (row.retries, len(flaky)) == (1, 3), "used up: now it is the task's retry"
    wake(shop, result)
    assert run(shop, result).retries == 1, "and the step has its tries again"
    assert [f.exception for f in the_ledger(shop).failures(row.id)] == ["ConnectionError"] * 4


# Transactions -----------------------------------------------------------------------------------------


@pytest.fixture
def witness(shop):
    """A table of the user's in the ledger's database, empty."""
    table = witnesses(the_ledger(shop))
    the_ledger(shop).db.run(lambda connection: connection.execute(sa.delete(table)))
    return table


def test_a_transactional_step_takes_effect_once_and_its_result_comes_back(shop, witness):
    got = []

    def book(connection, what, *, twice):
        connection.execute(sa.insert(witness), [{"what": what}] * (2 if twice else 1))
        return {"booked": (what,)}

    @body(shop)
    def pay(self):
        got.append(self.step("book", book, "a", twice=True, transaction=True))
        if len(got) < 3:
            raise Killed

    result = pay.delay()
    for _ in range(3):
        run(shop, result)
    assert got == [{"booked": ["a"]}] * 3
    assert seen(the_ledger(shop), witness) == ["a", "a"]


def test_a_transactional_step_that_fails_leaves_nothing_and_is_done_in_the_next_run(shop, witness):
    flaky = Calls(ConnectionError("no"), "yes")

    def book(session, what):
        session.execute(sa.insert(witness).values(what=what))
        return flaky()

    @body(shop)
    def pay(self):
        return self.step("book", book, "a", transaction=True)

    result = pay.delay()
    assert run(shop, result).state == "waiting"
    assert seen(the_ledger(shop), witness) == []
    wake(shop, result)
    assert run(shop, result).decoded_result() == "yes"
    assert seen(the_ledger(shop), witness) == ["a"]


def test_nothing_else_is_written_while_a_transaction_is_open(shop, witness):
    """Another connection would wait for the lock that this one holds: on SQLite until both give up."""

    def book(connection, task):
        task.progress(1, 2, "half")
        with pytest.raises(StepError, match="not be part of its transaction"):
            task.checkpoint(1)
        connection.execute(sa.insert(witness).values(what="a"))

    @body(shop)
    def pay(self):
        began = time.monotonic()
        self.step("book", book, self, transaction=True)
        assert time.monotonic() - began < 20

    result = pay.delay()
    assert run(shop, result).state == "succeeded"
    assert record(shop, result).as_json()["progress"]["note"] == "half"


def test_a_result_that_cannot_be_recorded_takes_what_was_written_with_it(shop, witness):
    def book(connection):
        connection.execute(sa.insert(witness).values(what="a"))
        return object()

    @body(shop)
    def pay(self):
        self.step("book", book, transaction=True)

    result = pay.delay()
    assert (run(shop, result).failure_kind, seen(the_ledger(shop), witness)) == ("permanent", [])


def test_a_transactional_step_outside_a_durable_run_has_a_transaction_of_its_own(shop, witness):
    def book(connection, what):
        connection.execute(sa.insert(witness).values(what=what))
        if what == "bad":
            raise ValueError(what)
        return what

    @body(shop)
    def pay(self, what):
        return self.step("book", book, what, transaction=True)

    assert pay("good") == "good"
    with pytest.raises(ValueError, match="bad"):
        pay("bad")
    assert seen(the_ledger(shop), witness) == ["good"]


def test_a_submission_can_be_a_step(shop):
    @body(shop)
    def other(self): ...

    @body(shop)
    def pay(self):
        return self.step("notify", other.delay)

    result = pay.delay()
    [[task_id, _], _] = run(shop, result).decoded_result()
    assert record(shop, task_id).state == "queued"


# Checkpoints ------------------------------------------------------------------------------------------


def test_a_checkpoint_is_the_last_value_in_every_later_run(shop):
    seen = []

    @body(shop)
    def load(self):
        seen.append(start := self.restore(0))
        for n in range(start, start + 3):
            self.checkpoint({"row": n} if n == 99 else n + 1)
            assert self.restore() == n + 1
        raise Killed if len(seen) < 3 else ValueError

    result = load.delay()
    for _ in range(3):
        run(shop, result)
    assert seen == [0, 3, 6]
    assert steps_of(shop, result) == {}


def test_the_same_checkpoint_again_costs_no_statement(shop):
    @body(shop)
    def load(self):
        with statements(shop) as sent:
            for _ in range(5):
                self.checkpoint([1])
        return len(sent)

    result = load.delay()
    first = run(shop, result).decoded_result()
    assert first <= 4


def test_checkpoints_that_cannot_be_kept_are_refused_and_the_task_may_go_on(make, ledger_url):
    shop = make(broker="memory://", ledger_url=ledger_url, durable_max_message_bytes=1_000)

    @body(shop)
    def load(self):
        for value in (object(), "x" * 2_000):
            with pytest.raises(StepError, match="checkpoint"):
                self.checkpoint(value)
        return "done"

    result = load.delay()
    assert run(shop, result).state == "succeeded"


def test_a_checkpoint_counts_as_progress_in_a_run_that_took_up_the_one_before(shop):
    @body(shop, max_losses=2)
    def load(self):
        n = record(shop, result).claims
        if n <= 3:
            self.checkpoint(self.restore(0) + 1)
        else:
            self.checkpoint(n)  # it starts over each time
        raise Killed

    result = load.delay()
    losses = [run(shop, result).losses for _ in range(5)]
    assert losses == [0, 0, 0, 1, 2]
    assert record(shop, result).failure_kind == "poison"


def test_a_claim_that_is_over_keeps_no_checkpoint(shop):
    @body(shop)
    def load(self):
        lose(shop, result)
        self.checkpoint(1)

    result = load.delay()
    assert run(shop, result).state == "queued"
    claim = the_ledger(shop).claim(result.id, "another", owner="w", pid=1, lease=9).claim
    assert the_ledger(shop).remembered(claim).checkpoint is None


# Shown ------------------------------------------------------------------------------------------------


def test_secrets_in_results_of_steps_are_not_shown(shop):
    @body(shop, redact=["iban"])
    def fetch(self):
        self.step("account", lambda: {"iban": "DE02120300000000202051", "password": "hunter2!", "city": "Bonn"})
        self.step("api_token", lambda: "s3cr3t-value")
        self.step("list", lambda: [1, {"card": "4111 1111 1111 1111"}])

    result = fetch.delay()
    run(shop, result)
    shown = {s.name: s.as_json(fetch.redact)["result"] for s in the_ledger(shop).steps(record(shop, result).id)}
    assert shown["account"]["city"] == "Bonn"
    text = json.dumps(shown, default=str)
    assert not any(secret in text for secret in ("DE0212", "hunter2", "s3cr3t", "4111"))
