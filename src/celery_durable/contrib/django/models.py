"""The ledger's tables as Django models, to be read: whatever changes a row is a verb of the ledger.

Their fields are those of ``celery_durable.ledger.schema``, column for column, and follow it by themselves. Times are
microseconds since the epoch. Queries go to the database that ``CELERY_DURABLE_LEDGER_URL`` names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models

from celery_durable.contrib.django.place import ledger_alias, table_prefix
from celery_durable.ledger.described import columns

if TYPE_CHECKING:
    from celery_durable.ledger.described import Column

_FIELDS = {
    "small": models.SmallIntegerField, "big": models.BigIntegerField, "integer": models.IntegerField,
    "text": models.TextField, "string": models.CharField, "bytes": models.BinaryField,
}  # fmt: skip


class LedgerManager(models.Manager):
    """Reads where the ledger is."""

    def get_queryset(self) -> Any:
        """Return a query on the ledger's database."""
        found = super().get_queryset()
        return found if self._db else found.using(ledger_alias() or "default")


def _model(name: str, table: str, doc: str, **meta: Any) -> Any:
    """Make the model of a table."""
    db_table, described = columns(table_prefix(), table)
    keys = [c.name for c in described if c.key]
    fields: dict[str, Any] = {c.name: _field(c, alone=keys == [c.name]) for c in described}
    if len(keys) > 1:
        fields |= _composite(keys, fields)
    options = {"db_table": db_table, "default_permissions": ("view",)} | meta
    attributes = {"__module__": __name__, "__doc__": doc, "objects": LedgerManager(), "Meta": type("Meta", (), options)}
    return type(name, (models.Model,), fields | attributes)


def _field(column: Column, *, alone: bool) -> Any:
    if column.name == "task_row":
        return models.ForeignKey(
            "celery_durable.Task", on_delete=models.DO_NOTHING, db_column="task_row", db_constraint=False,
            db_index=False, related_name="+",
        )  # fmt: skip
    if alone and column.kind == "big":
        return models.BigAutoField(primary_key=True)
    given: dict[str, Any] = {"max_length": column.length} if column.kind == "string" else {}
    return _FIELDS[column.kind](null=column.nullable, primary_key=alone, **given)


def _composite(keys: list[str], fields: dict[str, Any]) -> dict[str, Any]:
    """Name a key of several columns; before Django 5.2 only the last of them can be said to be it."""
    if hasattr(models, "CompositePrimaryKey"):
        return {"pk": models.CompositePrimaryKey(*keys)}
    fields[keys[-1]].primary_key = True
    return {}


Task = _model(
    "Task", "task", "A task, whatever became of it.",
    ordering=["-id"],
    permissions=[
        ("replay_task", "Can queue dead and cancelled tasks again"),
        ("cancel_task", "Can cancel tasks"),
        ("pause_task", "Can pause and resume tasks and queues"),
    ],
)  # fmt: skip
Failure = _model("Failure", "failure", "An attempt that failed or was lost.", ordering=["-id"])


class FailureGroup(Failure):  # type: ignore[misc, valid-type]
    """Failures that are alike, as one entry of the admin's index."""

    class Meta:
        """The same table, and no permission of its own."""

        proxy = True
        default_permissions = ()
        verbose_name_plural = "failures by likeness"


Event = _model("Event", "event", "A line of the history.", ordering=["id"], verbose_name_plural="history")
Step = _model("Step", "step", "A step that is done, or what a run keeps for the next.")
Signal = _model("Signal", "signal", "An event that was sent to a task.")
Pause = _model("Pause", "pause", "A task or a queue that is held back.")
Worker = _model("Worker", "worker", "A worker as it last reported itself.", ordering=["-heartbeat_at"])
Result = _model("Result", "result", "A result that has no row.")
Chord = _model("Chord", "chord", "A chord that is counted.")
Part = _model("Part", "part", "A part of a chord.")
