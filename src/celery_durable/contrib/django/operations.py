"""What the migrations consist of: the ledger's own revisions, run on Django's connection.

Alembic's scripts stay the one truth: they run here as they do for ``celery durable migrate``, and write the same
version. A ledger that is as new already, whoever made it, is left alone.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps as installed
from django.db import connections, migrations, router
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ModelState

from celery_durable.contrib.django.place import ledger_alias, table_prefix
from celery_durable.ledger.driving import driven
from celery_durable.ledger.migrating import HEAD, upgrade_on
from celery_durable.ledger.schema import tables


class LedgerRevision(Operation):
    """Bring the ledger to a revision, on the database that holds it; a no-op on every other one."""

    reversible = False  # the ledger is what must not be lost

    def __init__(self, revision: str) -> None:
        """Take the name of one of the ledger's revisions."""
        self.revision = revision

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Leave the state alone: the models follow the tables by themselves."""

    def database_forwards(self, app_label: str, schema_editor: Any, *_states: Any) -> None:
        """Run what is missing; in Django's transaction where the database can take DDL back."""
        connection = schema_editor.connection
        if not _holds_ledger(connection.alias, app_label):
            return
        if schema_editor.collect_sql:
            schema_editor.collected_sql.append(f"-- {self.describe()}: told by Alembic's script as it runs")
            return
        bring(connection, self.revision)

    def describe(self) -> str:
        """Say what it does."""
        return f"Bring the ledger to revision {self.revision}"

    @property
    def migration_name_fragment(self) -> str:
        """Name a migration that holds nothing else."""
        return f"ledger_{self.revision}"


def before_migrate(sender: Any, using: str, **_: Any) -> None:
    """Make the tables where the project has switched migrations off (``pytest --nomigrations``).

    Django would make them from the models: without the checks, the indexes and the row that says which ledger it is.
    """
    disabled = MigrationLoader.migrations_module(sender.label)[0] is None
    if disabled and _holds_ledger(using, sender.label):
        bring(connections[using], HEAD)


def _holds_ledger(alias: str, app_label: str) -> bool:
    return alias == ledger_alias() and bool(router.allow_migrate(alias, app_label))


def bring(connection: Any, revision: str) -> None:
    """Bring the ledger to a revision on a connection of Django's."""
    connection.ensure_connection()
    backend = connection.vendor
    place = f"{backend} database {connection.settings_dict['NAME']}"
    with driven(connection.connection, connection.Database, backend) as lent:
        upgrade_on(lent, tables(table_prefix()), revision, place=place)


def models_as_they_are() -> list[Any]:
    """Describe the models as the running version has them: that they lag behind their tables cannot happen."""
    states = [ModelState.from_model(model) for model in installed.get_app_config("celery_durable").get_models()]
    return [
        migrations.CreateModel(s.name, list(s.fields.items()), s.options, s.bases, list(s.managers)) for s in states
    ]
