"""Verbs of pauses: tasks and queues that an operator holds back, and what that means for their rows.

Lock order: a pause's own row comes before the rows of tasks. Who holds rows back shares a lock on the pauses that it
acts on, so that a resume, which deletes them, waits for it and finds what it wrote.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.errors import BadRequest
from celery_durable.ledger.base import Room
from celery_durable.ledger.moves import micros
from celery_durable.records import Pause

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery_durable.states import When

#: Rows per batch when a pause or its end moves what it concerns.
BATCH = 500
#: The kinds of targets.
TASK, QUEUE = "task", "queue"


class Pausing(Room):
    """What is paused shows as waiting, kind ``paused``, with who and why."""

    def pause(self, kind: str, target: str, reason: str, *, until: When | None, actor: str) -> int:
        """Hold back a task (by name) or a queue; return how many queued rows wait from now on.

        What runs goes on; what is queued, or arrives later, shows as waiting, kind ``paused``. A second pause of
        the same target takes the place of the first. After a crash the pause either stands or does not; where it
        stands, rows that are queued still are held when a worker meets them.

        Raises:
            BadRequest: ``until`` has passed already.
        """
        p = self.t.pause

        def work(connection: sa.Connection) -> bool:
            self._one_at_a_time(connection)
            same = sa.and_(p.c.kind == kind, p.c.target == target)
            renewed = connection.execute(sa.delete(p).where(same)).rowcount
            connection.execute(sa.delete(p).where(p.c.until <= self.dialect.instant_sql))
            connection.execute(
                sa.insert(p).values(
                    kind=kind, target=target, reason=reason, actor=actor[:255],
                    since=self.dialect.clock_sql, until=self.writer.value(until),
                )
            )  # fmt: skip
            if not any((x.kind, x.target) == (kind, target) for x in self._pauses(connection)):
                raise BadRequest(f"The pause of {kind} {target!r} would be over already: say a later time.")
            return bool(renewed)

        if self.db.run(work):
            self._look_again(kind, target, actor, "another pause ended")
        return sum(self._hold(ids) for ids in self._ids(kind, target, self.in_state(states.QUEUED)))

    def resume(self, kind: str, target: str, reason: str = "", *, actor: str) -> int:
        """End the pause of a task or queue and queue what it held; return how many rows that were.

        What another pause concerns as well goes on waiting for that one. After a crash half-way some rows still wait:
        running it again goes on with them, and a sweep does within ``states.PAUSE_INTERVAL`` seconds.
        """
        p = self.t.pause

        def work(connection: sa.Connection) -> None:
            self._one_at_a_time(connection)
            connection.execute(sa.delete(p).where(p.c.kind == kind, p.c.target == target))

        self.db.run(work)
        told = f"{kind} {target!r} was resumed" + (f": {reason}" if reason else "")
        return self._look_again(kind, target, actor, told)

    def hold(self, task_id: str) -> bool:
        """Hold back a queued row that a pause concerns; False when none does any more."""
        c = self.t.task.c
        query = sa.select(c.id).where(c.task_id == task_id, c.observed == 0)
        ids = self.db.run(lambda connection: connection.execute(query).scalars().all(), read_only=True)
        return bool(self._hold(ids))

    def pauses(self) -> list[Pause]:
        """List what is held back, the oldest first."""
        return self.db.run(self._pauses, read_only=True)

    def kinds_of(self, name: str) -> list[str]:
        """Say which kinds of target a bare name may mean: those that workers, live rows or pauses know."""
        w, c, p = self.t.worker.c, self.t.task.c, self.t.pause.c
        known = {row.kind for row in self._ask(sa.select(p.kind).where(p.target == name))}
        for worker in self._ask(sa.select(w.tasks, w.queues)):
            known |= {kind for kind, names in ((TASK, worker.tasks), (QUEUE, worker.queues)) if name in _read(names)}
        for kind, column in ((TASK, c.task), (QUEUE, c.queue)):
            live = (c.state.in_(sorted(states.LIVE)), c.finished_at.is_(None), column == name)
            if kind not in known and self._ask(sa.select(c.id).where(*live).limit(1)):
                known.add(kind)
        return sorted(known)

    def is_paused(self) -> sa.ColumnElement[bool]:
        """Return the condition that a pause concerns a task row."""
        p, c = self.t.pause.c, self.t.task.c
        concerned = sa.or_(sa.and_(p.kind == QUEUE, p.target == c.queue), sa.and_(p.kind == TASK, p.target == c.task))
        lasting = sa.or_(p.until.is_(None), p.until > self.dialect.instant_sql)
        return sa.select(sa.literal(1)).where(concerned, lasting).exists()

    # Rows ---------------------------------------------------------------------------------------------

    def _ids(self, kind: str, target: str, *where: sa.ColumnElement[bool]) -> Iterator[Sequence[int]]:
        """Batches of the rows of a target as they are now; whoever arrives later looks at the pauses itself."""
        c = self.t.task.c
        mine = (c.finished_at.is_(None), c.observed == 0, (c.task if kind == TASK else c.queue) == target)
        query = sa.select(c.id).where(*where, *mine)
        ids = self.db.run(lambda connection: sorted(connection.execute(query).scalars()), read_only=True)
        for start in range(0, len(ids), BATCH):
            yield ids[start : start + BATCH]

    def _hold(self, ids: Sequence[int]) -> int:
        """Move those of these rows that are queued and that a pause concerns to ``waiting``."""
        c = self.t.task.c
        columns = (c.id, c.state, c.claims, c.task, c.queue)

        def work(connection: sa.Connection) -> int:
            pauses = self._pauses(connection, shared=True)
            if not pauses:
                return 0
            rows = self.writer.lock(
                connection, c.id.in_(ids), self.in_state(states.QUEUED), columns=columns, limit=len(ids), order=c.id
            )
            held = [(row, pause) for row in rows if (pause := _concerning(pauses, row)) is not None]
            for pause in {pause for _, pause in held}:
                move = states.hold(pause.sentence, _wake(pause))
                those = [row for row, by in held if by == pause]
                self.writer.write_all(connection, those, move, actor=pause.actor)
            return len(held)

        return self.db.run(work) if ids else 0

    def _look_again(self, kind: str, target: str, actor: str, reason: str) -> int:
        """Queue the held rows of a target that no pause concerns any more; return how many."""
        c = self.t.task.c
        held = (self.in_state(states.WAITING), c.wait_kind == states.PAUSED)
        columns = (c.id, c.state, c.claims, c.wait_kind, c.task, c.queue)

        def batch(ids: Sequence[int]) -> int:
            def work(connection: sa.Connection) -> int:
                pauses = self._pauses(connection, shared=True)
                rows = self.writer.lock(connection, c.id.in_(ids), *held, columns=columns, order=c.id)
                return self._let_go(connection, rows, pauses, actor=actor, reason=reason)

            return self.db.run(work)

        return sum(batch(ids) for ids in self._ids(kind, target, *held))

    def _let_go(
        self, connection: sa.Connection, rows: Sequence[sa.Row[Any]], pauses: Sequence[Pause], *, actor: str,
        reason: str = "",
    ) -> int:  # fmt: skip
        """Queue locked waiting rows, except those that a pause still holds: they are told by whom and until when."""
        c = self.t.task.c
        free: dict[str, list[sa.Row[Any]]] = {}
        held: dict[Pause, list[int]] = {}
        for row in rows:
            pause = _concerning(pauses, row) if row.wait_kind == states.PAUSED else None
            if pause is None:
                free.setdefault(reason or f"{row.wait_kind} is due", []).append(row)
            else:
                held.setdefault(pause, []).append(row.id)
        for pause, ids in held.items():
            told = {"wait_reason": pause.sentence, "wake_at": _wake(pause)}
            connection.execute(sa.update(self.t.task).where(c.id.in_(ids)).values(told))
        for why, those in free.items():
            self.writer.write_all(
                connection, those, states.Move("release", states.QUEUED, states.into_queued(), why), actor=actor
            )
        return sum(map(len, free.values()))

    # Pauses -------------------------------------------------------------------------------------------

    def _one_at_a_time(self, connection: sa.Connection) -> None:
        """Let one pause or resume change the table at a time: two first ones of a target would collide."""
        connection.execute(sa.select(self.t.ledger.c.id).with_for_update()).all()

    def _pauses(self, connection: sa.Connection, *, shared: bool = False) -> list[Pause]:
        p, now = self.t.pause, self.dialect.instant_sql
        query = sa.select(p, now.label("now")).where(sa.or_(p.c.until.is_(None), p.c.until > now)).order_by(p.c.since)
        rows = connection.execute(query.with_for_update(read=True) if shared else query)
        return [Pause(r.kind, r.target, r.reason, r.actor, r.since, r.until, r.now) for r in rows]


def _concerning(pauses: Sequence[Pause], row: sa.Row[Any]) -> Pause | None:
    return next((p for p in pauses if p.concerns(row.task, row.queue)), None)


def _wake(pause: Pause) -> int:
    """When a held row is looked at: at the pause's end, or before, should the release be lost with a resume."""
    soon = pause.now + micros(states.PAUSE_INTERVAL)
    return soon if pause.until is None else min(pause.until, soon)


def _read(names: str) -> list[str]:
    return list(json.loads(names))
