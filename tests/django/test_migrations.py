"""What Django's migrations make is the ledger's own schema, wherever they begin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from django.apps import apps
from django.core.management import call_command
from django.db import connections
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.loader import MigrationLoader
from django.test.utils import override_settings

from celery_durable.contrib.django import models
from celery_durable.contrib.django.operations import LedgerRevision, bring
from celery_durable.ledger import migrating
from tests.ledger.definitions import told
from tests.ledger.kit import cancelled, dead, opened, running, succeeded, waiting

ROOT = Path(__file__).parents[2]
LATER = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{revision}", "{before}"

def upgrade(prefix):
    op.add_column(f"{{prefix}}worker", sa.Column("told_{revision}", sa.Integer))
"""


def migrate(alias, **options):
    call_command("migrate", "celery_durable", database=alias, verbosity=0, **options)


@pytest.fixture
def ledger(alias, ledger_url):
    """The ledger on Django's database, by a way of its own; nothing is made yet."""
    found = opened(ledger_url)
    yield found
    found.db.dispose()


@pytest.fixture
def plain(ledger, tmp_path, request):
    """The same dialect's schema as Alembic alone makes it: table -> its definition."""
    if ledger.dialect.name == "sqlite":
        twin = opened(f"sqlite:///{tmp_path / 'twin.db'}")
    else:
        server = {"postgresql": "postgres_server", "mysql": "mariadb_server"}[ledger.dialect.name]
        twin = opened(request.getfixturevalue(server).database())
    twin.migrate()
    yield told(twin, "durable_")
    twin.db.dispose()


def test_django_makes_what_alembic_makes(alias, ledger, plain):
    migrate(alias)

    assert told(ledger, "durable_") == plain
    assert ledger.migrate() == (migrating.HEAD, migrating.HEAD)
    assert ledger.uuid


def test_a_ledger_that_is_there_already_is_left_as_it_is(alias, ledger, plain):
    ledger.migrate()
    identity = ledger.uuid

    migrate(alias)

    assert (told(ledger, "durable_"), ledger.uuid) == (plain, identity)


@pytest.fixture
def later(tmp_path, monkeypatch):
    """Two more revisions, as those that will come."""
    scripts = tmp_path / "scripts"
    shutil.copytree(Path(migrating.__file__).parent / "migrations", scripts)
    names = [*migrating.revisions(), "8001", "8002"]
    for before, revision in zip(names[-3:], names[-2:], strict=False):
        (scripts / "versions" / f"v{revision}.py").write_text(LATER.format(revision=revision, before=before))
    monkeypatch.setattr(migrating, "_scripts", lambda: ScriptDirectory(str(scripts)))
    return names


def columns_of_workers(ledger):
    import sqlalchemy as sa

    with ledger.db.connection(read_only=True) as connection:
        return {c["name"] for c in sa.inspect(connection).get_columns("durable_worker")}


def test_from_nothing_and_from_every_earlier_revision_to_the_newest(alias, ledger, later):
    """Each step is one migration with its one line, and finds what an earlier version has left."""
    came = set()
    for revision in later:
        bring(connections[alias], revision)
        assert migrating.revision(ledger.db, ledger.t) == revision
        came = columns_of_workers(ledger)
        bring(connections[alias], later[0])  # an older one changes nothing
        assert migrating.revision(ledger.db, ledger.t) == revision
    assert came >= {"told_8001", "told_8002"}


def test_to_the_newest_at_once(alias, ledger, later):
    bring(connections[alias], later[-1])

    assert migrating.revision(ledger.db, ledger.t) == later[-1]
    assert columns_of_workers(ledger) >= {"told_8001", "told_8002"}


def test_each_revision_of_the_ledger_has_its_migration():
    loader = MigrationLoader(None, ignore_no_migrations=True)
    names = sorted(name for app, name in loader.disk_migrations if app == "celery_durable")
    operations = [op for name in names for op in loader.disk_migrations["celery_durable", name].operations]
    found = [op.revision for op in operations if isinstance(op, LedgerRevision)]

    assert found == migrating.revisions(), (
        "A revision of the ledger has no migration of Django's (or has it in the wrong order): add "
        "contrib/django/migrations/NNNN_name.py, whose operations are LedgerRevision('NNNN'), and see the one before."
    )


def test_makemigrations_finds_nothing_to_do():
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_another_prefix(tmp_path):
    """Models and migrations follow it."""
    (tmp_path / "prefixed.py").write_text(
        "from tests.django.settings import *\nCELERY_DURABLE_TABLE_PREFIX = 'jobs_'\n"
        f"DATABASES = {{'default': {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': {str(tmp_path / 'p.db')!r}}}}}\n"
    )
    code = (
        "from django.core.management import execute_from_command_line as run\n"
        "run(['m', 'makemigrations', '--check', '--dry-run'])\n"
        "run(['m', 'migrate', 'celery_durable', '-v', '0'])\n"
        "from celery_durable.contrib.django.models import Task\n"
        "print(Task._meta.db_table, Task.objects.count())\n"
    )
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "prefixed", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert done.stdout.splitlines()[-1:] == ["jobs_task 0"], done.stderr


@pytest.mark.parametrize("url", ["django://default", "sqlite:///elsewhere.db"])
def test_a_database_without_the_ledger_is_left_alone(alias, ledger, url):
    with override_settings(CELERY_DURABLE_LEDGER_URL=url):
        migrate(alias)

    assert told(ledger, "durable_") == {}


def test_without_migrations_the_tables_are_the_same(alias, ledger, plain):
    """As with `pytest --nomigrations`: Django would make tables from the models, without checks and indexes."""
    with override_settings(MIGRATION_MODULES={"celery_durable": None}):
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)

    assert {name: text for name, text in told(ledger, "durable_").items() if name in plain} == plain
    assert ledger.uuid


def test_a_ledger_is_not_migrated_away(alias, ledger):
    migrate(alias)
    with pytest.raises(IrreversibleError):
        call_command("migrate", "celery_durable", "zero", database=alias, verbosity=0)

    assert migrating.revision(ledger.db, ledger.t) == migrating.HEAD


def test_models_read_what_the_ledger_has(alias, ledger):
    migrate(alias)
    succeeded(ledger, "done"), cancelled(ledger), dead(ledger), waiting(ledger), running(ledger)
    ledger.pause("queue", "celery", "gateway is down", until=None, actor="ann")

    for model in apps.get_app_config("celery_durable").get_models():
        assert isinstance(list(model.objects.all()), list)
    done = models.Task.objects.get(idempotency_key="done")
    assert (done.state, done.submitted_at) == ("succeeded", ledger.get("done").submitted_at)
    assert done.result == b"42"
    assert [e.verb for e in models.Event.objects.filter(task_row=done.pk)] == ["submit", "claim", "succeed"]
    failure = models.Failure.objects.select_related("task_row").get()
    assert failure.task_row.state == "dead"
    assert models.Pause.objects.get().reason == "gateway is down"


def test_models_have_the_tables_columns(alias, ledger):
    migrate(alias)
    with connections[alias].cursor() as cursor:
        for model in apps.get_app_config("celery_durable").get_models():
            there = connections[alias].introspection.get_table_description(cursor, model._meta.db_table)
            described = {f.column: f.null for f in model._meta.concrete_fields}
            assert described == {c.name: bool(c.null_ok) for c in there}


def test_flush_empties_the_ledger_and_keeps_who_it_is(alias, ledger):
    """What `TransactionTestCase` does after each test."""
    migrate(alias)
    dead(ledger)
    identity = ledger.uuid

    call_command("flush", database=alias, interactive=False, verbosity=0, inhibit_post_migrate=True)

    assert (models.Task.objects.count(), models.Failure.objects.count(), models.Event.objects.count()) == (0, 0, 0)
    assert ledger.uuid == identity
    assert succeeded(ledger)
