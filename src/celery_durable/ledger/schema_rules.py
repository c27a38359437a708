"""Rows the database itself refuses to hold, whoever writes them, and how it is told so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: What every row of the task table fulfils: name and condition, in SQL that all databases read alike.
TASK_CHECKS = {
    "state_known": "state IN ('queued','running','waiting','succeeded','dead','cancelled')",
    "running_leased": (
        "(state = 'running' AND lease_owner IS NOT NULL AND started_at IS NOT NULL"
        " AND (observed = 1 OR (lease_expires_at IS NOT NULL AND claim_token IS NOT NULL)))"
        " OR (state <> 'running' AND lease_owner IS NULL AND lease_expires_at IS NULL)"
    ),
    "waiting_explained": (
        "(state = 'waiting' AND wait_kind IS NOT NULL AND wait_reason IS NOT NULL AND wait_reason <> ''"
        " AND wait_since IS NOT NULL AND (wake_at IS NOT NULL OR observed = 1))"
        " OR (state <> 'waiting' AND wait_kind IS NULL AND wake_at IS NULL)"
    ),
    "dead_has_kind": ("(state = 'dead' AND failure_kind IS NOT NULL) OR (state <> 'dead' AND failure_kind IS NULL)"),
    "terminal_finished": (
        "(state IN ('succeeded','dead','cancelled') AND finished_at IS NOT NULL)"
        " OR (state IN ('queued','running','waiting') AND finished_at IS NULL)"
    ),
    "queued_rung": "state <> 'queued' OR publish_at IS NOT NULL OR observed = 1",
    "owing_rung": "continuation_pending IS NULL OR (finished_at IS NOT NULL AND publish_at IS NOT NULL)",
    "rung_for_a_reason": "publish_at IS NULL OR state = 'queued' OR continuation_pending IS NOT NULL",
    "keyed_or_alias": (
        "(key_digest IS NOT NULL AND duplicate_of IS NULL) OR (key_digest IS NULL AND duplicate_of IS NOT NULL)"
    ),
    "counters": (
        "claims >= 0 AND losses >= 0 AND retries >= 0 AND publish_count >= 0 AND rings >= 0"
        " AND deferrals >= 0 AND envelope_no >= 1 AND max_losses >= 1"
    ),
    "on_loss_known": "on_loss IN ('retry','dead')",
    # What is merely observed is due at no time: no sweep sees it.
    "observed_unpromised": (
        "observed = 0 OR (observed = 1 AND lease_expires_at IS NULL AND wake_at IS NULL AND publish_at IS NULL"
        " AND deadline_at IS NULL AND continuation_pending IS NULL AND claim_token IS NULL)"
    ),
    # What keeps a pruned row is its key alone: it has no message that could run.
    "pruned_over": "pruned_at IS NULL OR (finished_at IS NOT NULL AND continuation_pending IS NULL)",
}


def checks(table: str, prefix: str, rules: Mapping[str, str]) -> Iterable[sa.CheckConstraint]:
    """Make the CHECK constraints of a table: one for each rule; on PostgreSQL one for all of them.

    PostgreSQL reads the text of each CHECK anew in every statement that writes: twelve of them took a third of the time
    that it spent on a task. A function's body it reads once for each connection.
    """
    for name, rule in rules.items():
        yield sa.CheckConstraint(rule, name=f"{prefix}{name}").ddl_if(callable_=_reads_once)
    yield sa.CheckConstraint(f"{table}_legal({table})", name=f"{table}_legal").ddl_if(dialect="postgresql")


def guard(table: sa.Table, prefix: str, rules: Mapping[str, str]) -> None:
    """Have PostgreSQL's function made before its table, and dropped after it."""
    texts = {
        "before_create": function(table, prefix, rules),
        "after_drop": f"DROP FUNCTION IF EXISTS {table.name}_legal(record)",
    }
    for when, text in texts.items():
        event.listen(table, when, sa.DDL(text).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]


def _reads_once(*_: Any, dialect: sa.Dialect, **__: Any) -> bool:
    return dialect.name != "postgresql"


def function(table: sa.Table, prefix: str, rules: Mapping[str, str]) -> str:
    """Write the function: all rules at once, and only where that fails one by one, to name the one that is broken."""
    column = re.compile(r"\b(" + "|".join(table.c.keys()) + r")\b(?=(?:[^']*'[^']*')*[^']*$)")  # not within a literal
    conditions = {prefix + name: column.sub(r"r.\1", f"({rule})") for name, rule in rules.items()}
    named = " ".join(f"WHEN {rule} IS FALSE THEN '{name}'" for name, rule in conditions.items())
    return f"""CREATE OR REPLACE FUNCTION {table.name}_legal(r record) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE broken text;
BEGIN
  IF ({" AND ".join(conditions.values())}) IS NOT FALSE THEN
    RETURN TRUE;
  END IF;
  broken := CASE {named} END;
  RAISE check_violation USING TABLE = '{table.name}', CONSTRAINT = broken,
    MESSAGE = 'new row for relation "{table.name}" violates check constraint "' || broken || '"';
END $$"""
