"""Beside django-celery-beat, django-celery-results and `manage.py shell`, in one project."""

from __future__ import annotations

import pytest
from celery import Celery, _state, chord
from django.core.management import call_command
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler
from django_celery_results.backends.database import DatabaseBackend
from django_celery_results.models import TaskResult

from celery_durable import DurableTask
from celery_durable.doctor import of_configuration
from celery_durable.wiring import plugin
from tests.ledger.kit import empty
from tests.waiting import wait_until
from tests.worker.kit import closed, on_redis, over, record, rows, settled, working


@pytest.fixture(scope="session")
def tables():
    """Those of all apps in the default database."""
    call_command("migrate", verbosity=0)


@pytest.fixture
def app(tables, redis_server, monkeypatch):
    """The project's app: its ledger, its results and its schedule are in the default database."""
    made = Celery("project", broker=redis_server.db(), set_as_current=False)
    made.conf.update(
        durable_ledger_url="django://default", result_backend="django-db", result_extended=True,
        durable_sweep_interval=0.1, durable_republish_after=0.5, worker_hijack_root_logger=False, broker_heartbeat=0,
    )  # fmt: skip
    monkeypatch.setattr(_state, "default_app", made)
    monkeypatch.setattr(_state._tls, "current_app", None)
    for model in (TaskResult, PeriodicTask, IntervalSchedule):
        model.objects.all().delete()
    empty(plugin(made).ledger)

    @made.task(base=DurableTask, name="project.report", shared=False)
    def report(*args, fail=""):
        if fail:
            raise ValueError(fail)
        return list(args)

    @made.task(base=DurableTask, name="project.once", idempotency_key="the only one", shared=False)
    def once():
        pass

    made.report = report
    yield made
    closed(made)


def entry(name, task="project.report", **options):
    every, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
    return PeriodicTask.objects.create(name=name, task=task, interval=every, **options)


class Beat(DatabaseScheduler):
    """Beat's scheduler, which tells what it sends."""

    def __init__(self, app):
        self.sent = []
        super().__init__(app=app, lazy=False, max_interval=0.1)
        PeriodicTask.objects.exclude(task__startswith="project.").delete()  # Celery's own cleanup

    def apply_async(self, entry, **options):
        self.sent.append(super().apply_async(entry, **options).id)

    def send(self, count):
        """Tick until so many were sent, and return their ids."""

        def done():
            self.tick()
            return len(self.sent) >= count

        wait_until(done, timeout=30)
        self.sync()
        return self.sent


@pytest.fixture
def beat(app):
    """Makes a beat over the database's entries."""
    made = []

    def make():
        made.append(Beat(app))
        return made[-1]

    yield make
    for each in made:
        each.close()


# --- django-celery-beat -------------------------------------------------------------------------------


def test_an_entry_of_the_database_submits_a_durable_task(app, beat):
    entry("every second", args='["monday"]')
    (task_id,) = beat().send(1)
    assert [(r.task_id, r.task, r.state) for r in rows(app)] == [(task_id, "project.report", "queued")]
    assert [m["headers"]["id"] for m in on_redis(app.conf.broker_url)] == [task_id]
    assert PeriodicTask.objects.get().total_run_count == 1
    with working(app):
        assert over(app, task_id).state == "succeeded"
        settled(app, task_id)
    told = TaskResult.objects.get(task_id=task_id)
    assert (told.status, told.result, told.periodic_task_name) == ("SUCCESS", '["monday"]', "every second")


def test_an_entry_whose_task_has_one_key_runs_once(app, beat):
    entry("every second", task="project.once")
    first, second = beat().send(2)
    assert first == second
    assert [(r.task_id, r.key) for r in rows(app)] == [(first, "the only one")]


def test_an_entry_that_expires_and_has_a_queue(app, beat):
    entry("every second", queue="reports", expire_seconds=3600, priority=3)
    beat().send(1)
    (row,) = rows(app)
    assert (row.queue, row.priority) == ("reports", 3)
    assert 3500 < (row.deadline_at - row.now) / 1e6 <= 3600


# --- django-celery-results ----------------------------------------------------------------------------


def test_results_and_failures_are_stored_as_ever(app):
    with working(app):
        good, bad = app.report.delay(1, 2), app.report.delay(fail="no paper")
        assert good.get(timeout=30) == [1, 2]
        with pytest.raises(ValueError, match="no paper"):
            bad.get(timeout=30)
    stored = {r.task_id: r for r in TaskResult.objects.all()}
    assert (stored[good.id].status, stored[bad.id].status) == ("SUCCESS", "FAILURE")
    assert "no paper" in stored[bad.id].traceback
    assert stored[good.id].task_name == "project.report"
    assert record(app, bad).state == "dead"


def test_a_result_that_could_not_be_stored_is_stored_by_a_later_sweep(app, monkeypatch):
    store, refused = DatabaseBackend._store_result, []

    def refuse_once(self, *args, **options):
        if not refused:
            refused.append(args)
            raise ConnectionError("the result store is away")
        return store(self, *args, **options)

    monkeypatch.setattr(DatabaseBackend, "_store_result", refuse_once)
    with working(app):
        result = app.report.delay("once")
        assert over(app, result).claims == 1
        assert result.get(timeout=30) == ["once"]
        assert settled(app, result).claims == 1
    assert refused


def test_a_chord_is_counted_by_it(app):
    with working(app):
        done = chord([app.report.s(1), app.report.s(2)], app.report.s())()
        assert sorted(done.get(timeout=30)[0]) == [[1], [2]]


def test_the_doctor_says_what_it_counts_by(app):
    assert "chord-counts-twice" in {f.id for f in of_configuration(app)[1]}


# --- manage.py shell ----------------------------------------------------------------------------------


def test_a_shell_submits_and_asks(app, capsys):
    call_command(
        "shell",
        command=(
            "from celery import current_app\n"
            "from django.db import transaction\n"
            "import celery_durable\n"
            "with transaction.atomic():\n"
            "    result = current_app.tasks['project.report'].delay('from a shell')\n"
            "print(celery_durable.ledger(current_app).get(result.id).state)\n"
            "from celery_durable.contrib.django.models import Task\n"
            "print(Task.objects.get(task_id=result.id).task)\n"
        ),
    )
    assert capsys.readouterr().out.splitlines()[-2:] == ["queued", "project.report"]
    assert len(on_redis(app.conf.broker_url)) == 1
