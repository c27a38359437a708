"""What failed, across tasks: failures one by one, or grouped by what they have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger.moves import micros
from celery_durable.ledger.replaying import Replaying
from celery_durable.records import Failure, isotime
from celery_durable.states import After

if TYPE_CHECKING:
    from celery_durable.states import When


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Which failures: of a task name, a kind, a fingerprint, not older than ``since``. Nothing given means all.

    A kind is the failure's own, or that of the task which died of it (a task that is ``poison`` died of a loss).
    ``since`` is a time, or seconds after now (a negative number) on the database's clock.
    """

    task: str | None = None
    kind: str | None = None
    fingerprint: str | None = None
    since: When | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A failure with the task that it is of, and the state in which that stands now."""

    task_id: str
    task: str
    key: str
    state: str
    failure: Failure
    now: int

    def as_json(self) -> dict[str, Any]:
        """Return the contract's JSON form."""
        named = {"task_id": self.task_id, "task": self.task, "key": self.key, "state": self.state}
        return named | self.failure.as_json()


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one fingerprint, kind, exception and task; times in microseconds.

    ``dead`` counts the tasks that died of it and are dead still: what a replay of the fingerprint brings back, but for
    those that were merely observed. ``message`` is that of the latest.
    """

    fingerprint: str
    kind: str
    exception: str
    task: str
    count: int
    dead: int
    first_seen: int
    last_seen: int
    message: str
    now: int

    def as_json(self) -> dict[str, Any]:
        """Return the contract's JSON form."""
        return {
            "fingerprint": self.fingerprint, "kind": self.kind, "exception": self.exception, "task": self.task,
            "count": self.count, "dead": self.dead, "first_seen": isotime(self.first_seen),
            "last_seen": isotime(self.last_seen), "message": self.message,
        }  # fmt: skip


class Reporting(Replaying):
    """Reads of failures; nothing here writes."""

    def failed(self, which: Which, limit: int) -> list[Failed]:
        """List failures, newest first."""
        c, f = self.t.task.c, self.t.failure.c
        # By the fingerprint's own index where there is one to go by, else by that of the time.
        order = (f.id.desc(),) if which.fingerprint is not None else (f.occurred_at.desc(), f.id.desc())
        named = (c.task_id, c.task, c.idempotency_key.label("key"), c.state)
        query = self._joined(which, *self.t.failure.c, *named, self.dialect.instant_sql.label("now"))
        rows = self._ask(query.order_by(*order).limit(limit))
        return [Failed(r.task_id, r.task, r.key, r.state, failure_of(r), r.now) for r in rows]

    def failure_groups(self, which: Which, limit: int) -> list[FailureGroup]:
        """List groups of failures, the largest first."""
        c, f = self.t.task.c, self.t.failure.c
        group = (f.fingerprint, f.kind, f.exception, c.task)
        dead = sa.case((sa.and_(self.in_state(states.DEAD), self.is_last()), 1), else_=0)
        count, last_seen = sa.func.count().label("failures"), sa.func.max(f.occurred_at).label("last_seen")
        query = self._joined(
            which, *group, count, last_seen, sa.func.sum(dead).label("dead"), sa.func.max(f.id).label("latest"),
            sa.func.min(f.occurred_at).label("first_seen"),
        )  # fmt: skip
        rows = self._ask(query.group_by(*group).order_by(count.desc(), last_seen.desc()).limit(limit))
        latest = sa.select(f.id, f.message, self.dialect.instant_sql.label("now"))
        messages = {r.id: r for r in self._ask(latest.where(f.id.in_([r.latest for r in rows])))} if rows else {}
        return [
            FailureGroup(
                r.fingerprint, r.kind, r.exception, r.task, r.failures, int(r.dead), r.first_seen, r.last_seen,
                messages[r.latest].message, messages[r.latest].now,
            )
            for r in rows if r.latest in messages
        ]  # fmt: skip

    def _joined(self, which: Which, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        c, f = self.t.task.c, self.t.failure.c
        where: list[sa.ColumnElement[bool]] = []
        if which.task is not None:
            where.append(c.task == which.task)
        if which.fingerprint is not None:
            where.append(f.fingerprint == which.fingerprint)
        if which.kind is not None:
            died_of_it = sa.and_(c.failure_kind == which.kind, self.is_last())
            where.append(sa.or_(f.kind == which.kind, died_of_it))
        if which.since is not None:
            since = which.since
            now = self.dialect.instant_sql
            where.append(f.occurred_at >= (now + micros(since.seconds) if isinstance(since, After) else since.micros))
        return sa.select(*columns).select_from(self.t.failure.join(self.t.task, c.id == f.task_row)).where(*where)


def failure_of(row: sa.Row[Any]) -> Failure:
    """Make the view of a failure row."""
    return Failure(
        kind=row.kind, exception=row.exception, message=row.message, traceback=row.traceback,
        fingerprint=row.fingerprint, retryable=bool(row.retryable), retry_at=row.retry_at, worker=row.worker,
        pid=row.pid, claim=row.claim, occurred_at=row.occurred_at, host=row.host, verdict=row.verdict,
        causes=row.causes, arguments=row.arguments, runtime_micros=row.runtime_micros,
        memory_bytes=row.memory_bytes, code_version=row.code_version, exception_args=row.exception_args,
    )  # fmt: skip
