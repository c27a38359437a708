"""The crash kit finds tasks that do not survive a crash, and passes those that do."""

from __future__ import annotations

import time
import uuid
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from celery import Celery

from celery_durable import DurableTask
from celery_durable.testing import CrashTestFailed, SandboxError

PLANTED, SOUND = {}, {}


def planted(found):
    """A task that is broken on purpose; `found` is in the message that says so."""

    def add(make):
        PLANTED[make.__name__] = (make, found)
        return make

    return add


def sound(make):
    SOUND[make.__name__] = make
    return make


@planted("after step 'charge', before it was recorded: check() failed: 2 charges")
def charges_without_a_token(task, world):
    @task
    def body(self):
        self.step("charge", world.add, "charge")


@planted("after the body, before the success was recorded: check() failed: 2 charges")
def counts_outside_of_a_step(task, world):
    @task
    def body(self):
        world.add("charge")


@planted("check() failed: 2 charges")
def sends_mail_before_a_transactional_step(task, world):
    @task
    def body(self):
        world.add("charge")
        self.step("book", lambda connection: connection.execute(sa.text("SELECT 1")).scalar(), transaction=True)


@planted("check() failed: 2 charges")
def makes_its_token_in_the_body(task, world):
    @task
    def body(self):
        token = str(uuid.uuid4())
        self.step("charge", lambda: world.add("charge", token=token))


@planted("before line")
def forgets_what_it_was_about_to_do(task, world):
    def charge():
        if not world.count("begun"):
            world.add("begun")
            world.add("charge")

    @task
    def body(self):
        self.step("charge", charge)


@planted("its path differs between runs")
def names_a_step_anew_in_every_run(task, world):
    @task
    def body(self):
        self.step(f"charge-{uuid.uuid4()}", lambda: world.add("charge", token="the order"))


@sound
def passes_the_steps_own_token(task, world):
    @task
    def body(self):
        self.step("charge", lambda: world.add("charge", token=self.step_key("charge")))


@sound
def passes_a_token_of_the_order(task, world):
    @task
    def body(self):
        world.add("charge", token="order-1")


@sound
def waits_and_sleeps_on_the_way(task, world):
    @task
    def body(self):
        token = self.step("token", lambda: "t-1")
        self.sleep(3600, "the market is closed")
        if not world.count("seen"):
            world.add("seen", token="seen")
            self.wait("rates have not arrived", retry_in=600)
        self.step("charge", lambda: world.add("charge", token=token))


@sound
def retries_what_fails_at_first(task, world):
    @task
    def body(self):
        if not world.count("tried"):
            world.add("tried", token="tried")
            raise self.retry(countdown=600)
        self.step("charge", lambda: world.add("charge", token=self.step_key("charge")))


@sound
def keeps_checkpoints(task, world):
    @task
    def body(self):
        for n in range(self.restore(0), 3):
            world.add("charge" if n == 2 else f"page-{n}", token=f"page-{n}")
            self.checkpoint(n + 1)


@pytest.fixture
def broken_down(durable, durable_effects):
    """Crash a task everywhere: `broken_down(make)`; its one effect is called "charge"."""

    def everywhere(make):
        made = []

        def task(body):
            made.append(durable.app.task(base=DurableTask, bind=True, name="shop.charge", shared=False)(body))

        make(task, durable_effects)

        def check():
            assert durable_effects.count("charge") == 1, f"{durable_effects.count('charge')} charges"

        return durable.crash_everywhere(made[0], check=check, reset=durable_effects.clear)

    return everywhere


@pytest.mark.parametrize("name", list(PLANTED))
def test_what_is_not_idempotent_is_found_and_named(broken_down, name):
    make, found = PLANTED[name]

    with pytest.raises(CrashTestFailed) as failed:
        broken_down(make)

    assert found.lower() in str(failed.value).lower()


@pytest.mark.parametrize("name", list(SOUND))
def test_what_is_sound_passes(broken_down, name):
    report = broken_down(SOUND[name])

    assert report.ok
    assert len(report.verdicts) >= 3, report.verdicts


def test_a_transactional_step_is_struck_at_each_statement_and_commit(durable):
    engine = sa.create_engine(durable.url, poolclass=sa.NullPool)  # the file is another one after each reset

    @durable.app.task(base=DurableTask, bind=True, name="book", shared=False)
    def book(self):
        self.step("book", write, transaction=True)

    def write(connection):
        connection.execute(sa.text("CREATE TABLE IF NOT EXISTS booking (what TEXT)"))
        connection.execute(sa.text("INSERT INTO booking VALUES ('order-1')"))

    def check():
        with engine.connect() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM booking")).scalar() == 1

    report = durable.crash_everywhere(book, check=check)

    points = [v.point for v in report.verdicts]
    assert any("INSERT INTO booking" in p and "before" in p for p in points), points
    assert any("before its COMMIT" in p for p in points), points
    assert "after step 'book' was committed" in points


def test_what_follows_is_struck_as_well_and_what_nobody_runs_is_told(durable, durable_effects):
    @durable.app.task(base=DurableTask, bind=True, name="pay", shared=False)
    def pay(self):
        self.step("pay", lambda: durable_effects.add("paid", token=self.step_key("pay")))

    @durable.app.task(base=DurableTask, name="book", shared=False)
    def book(_paid):
        durable_effects.add("booked", token="booking")

    @durable.app.task(name="tell", shared=False)
    def tell(_booked):
        pass

    def check():
        assert sorted(durable_effects.all()) == ["booked", "paid"]

    chained = [book.s(), tell.s()]
    report = durable.crash_everywhere(pay, check=check, reset=durable_effects.clear, chain=chained[::-1])

    assert "book: after the body, before the success was recorded" in [v.point for v in report.verdicts]
    assert report.strays == ("tell",)
    assert "Sent and not run, since they are not durable: tell." in str(report)


def test_pauses_events_and_endings_are_gone_through_without_sleeping(durable, durable_effects):
    @durable.app.task(base=DurableTask, bind=True, name="order", shared=False)
    def order(self):
        self.step("flaky", flaky, retries=2, backoff=4)
        approved = self.wait_for_event("approved", timeout=60)
        durable_effects.add(f"approved by {approved}", token="approval")
        raise ValueError("refused")

    def flaky():
        if not durable_effects.count("tried"):
            durable_effects.add("tried")
            raise OSError("try again")

    how = {
        "check": lambda: durable_effects.count("approved by me") == 1, "reset": durable_effects.clear,
        "events": {"approved": "me"},
    }  # fmt: skip
    with pytest.raises(SandboxError, match=r"order is dead without a crash already, not succeeded: .*refused"):
        durable.crash_everywhere(order, **how)
    before = time.monotonic()
    report = durable.crash_everywhere(order, ends="dead", **how)

    assert "after a wait, a retry or a failure was recorded (time 2)" in [v.point for v in report.verdicts]
    # Each of its runs would have slept for four seconds.
    assert time.monotonic() - before < 4 * len(report.verdicts)


def test_what_is_done_again_and_again_is_struck_the_first_times(durable, durable_effects):
    @durable.app.task(base=DurableTask, bind=True, name="count", shared=False)
    def count(self):
        for n in range(6):
            self.checkpoint(n)
        durable_effects.add("counted", token="counted")

    report = durable.crash_everywhere(count, check=lambda: durable_effects.count() == 1, reset=durable_effects.clear)

    assert [v.point for v in report.verdicts if "after a checkpoint" in v.point] == [
        "after a checkpoint was recorded",
        "after a checkpoint was recorded (time 2)",
        "after a checkpoint was recorded (time 3)",
    ]
    assert report.left_out == 6  # three times, before and after
    assert "Not struck: 6 repetitions of these points." in str(report)


def test_a_check_that_sees_nothing_is_refused(durable, durable_effects):
    task = durable.app.task(base=DurableTask, name="nothing", shared=False)(_nothing)

    with pytest.raises(SandboxError, match="passes before nothing has run"):
        durable.crash_everywhere(task, check=lambda: True)


def test_a_task_that_fails_by_itself_is_refused(durable, durable_effects):
    task = durable.app.task(base=DurableTask, name="nothing", shared=False)(_nothing)

    with pytest.raises(SandboxError, match="fails without a crash already: check\\(\\) returned False"):
        durable.crash_everywhere(task, check=lambda: False)


def test_the_apps_own_ledger_and_broker_are_not_touched(durable_app, tmp_path):
    from celery_durable.testing import Durable
    from celery_durable.wiring import plugin

    durable_app.conf.update(broker_url="redis://nowhere.invalid/0", durable_ledger_url="sqlite:////nowhere/x.db")
    durable_app.conf.update(broker_transport_options={"visibility_timeout": 60})
    task = durable_app.task(base=DurableTask, name="nothing", shared=False)(_nothing)
    folder = tmp_path / "kit"
    folder.mkdir()
    with Durable(durable_app, folder) as kit:
        result = task.delay()
        kit.work()
        kit.assert_succeeded(result)

    assert durable_app.conf.broker_url == "redis://nowhere.invalid/0"
    assert durable_app.conf.broker_transport_options == {"visibility_timeout": 60}
    assert plugin(durable_app).settings.ledger_url == "sqlite:////nowhere/x.db"


def _nothing():
    """Do nothing."""


def test_an_eager_app_with_djangos_namespace_is_put_into_the_sandbox(tmp_path):
    from celery_durable.testing import Durable

    settings = SimpleNamespace(
        CELERY_BROKER_URL="redis://nowhere.invalid/0", CELERY_RESULT_BACKEND="redis://nowhere.invalid/1",
        CELERY_TASK_ALWAYS_EAGER=True, CELERY_DURABLE_LEDGER_URL="postgresql://nowhere.invalid/shop",
    )  # fmt: skip
    app = Celery("shop", set_as_current=False)
    app.config_from_object(settings, namespace="CELERY")
    task = app.task(base=DurableTask, name="nothing", shared=False)(_nothing)
    with Durable(app, tmp_path) as kit:
        assert kit.crash_everywhere(task).ok

    assert app.conf.task_always_eager is True
    assert app.conf.broker_url == "redis://nowhere.invalid/0"
    assert app.conf.result_backend == "redis://nowhere.invalid/1"
