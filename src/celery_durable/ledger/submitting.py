"""Verbs that make rows: submit, adopt, park; and what happens when the key is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from celery_durable import keys, states
from celery_durable.errors import KeyBusy, KeyConflict, TaskIdConflict
from celery_durable.ledger.database import Busy
from celery_durable.ledger.dialects import hasty
from celery_durable.ledger.moves import Entry, micros, queue_of
from celery_durable.ledger.placeholders import gives_way
from celery_durable.ledger.prepared import Prepared, fixed, given
from celery_durable.ledger.replacing import Replacing, Submitted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.records import Failure, Submission

_MYSQL_DUPLICATE = 1062
#: Tries at insert, then look, then insert again, while others delete or finish beneath us.
_ROUNDS = 5


class Submitting(Replacing):
    """Submissions become rows before a broker or worker sees them."""

    def submit(
        self, sub: Submission, *, on_conflict: str = "return", verb: str = "submit", actor: str = ""
    ) -> Submitted:
        """Write a submission: one statement on PostgreSQL when the key is free.

        After a crash either the whole row with its history exists or nothing does. A reply that was
        lost is found again by ``task_id`` (PROTOCOL 23).

        Raises:
            KeyConflict: the key belongs to a live or succeeded row and ``on_conflict`` is ``"raise"``.
            KeyBusy: the key is pending in a transaction that does not end.
            TaskIdConflict: the task id belongs to another task or key.
            LedgerUnavailable: the database did not answer; nothing may be published.
        """
        actor = actor or sub.submitted_by
        values = self._values(sub)
        # Whoever submits can try again; a message that is adopted has nobody who would.
        how: dict[str, Any] = {"task_id": sub.task_id, "impatient": verb == "submit"}
        try:
            for _ in range(_ROUNDS):
                row_id = self.db.run(
                    lambda c: self._insert(c, values, verb, actor), autocommit=self.dialect.one_statement, **how
                )
                if row_id is not None:
                    state = str(values["state"])
                    return Submitted("new", row_id, sub.task_id, state, publish=state == states.QUEUED)
                # A conflict is judged in a new transaction: this one may see an old state (PROTOCOL 19).
                found = self.db.run(lambda c: self._conflict(c, sub, on_conflict, actor, verb), **how)
                if found is not None:
                    return found
        except Busy as busy:
            raise KeyBusy(sub.task, sub.key) from busy
        raise TaskIdConflict(f"{sub.task}: the key {sub.key!r} keeps changing hands; submit again.")

    def submit_within(self, connection: sa.Connection, sub: Submission, *, actor: str) -> Submitted:
        """Write a submission in a transaction of the ledger's own, together with what else that does.

        Raises:
            TaskIdConflict: the task id belongs to another task or key.
        """
        values = self._values(sub)
        for _ in range(_ROUNDS):
            row_id = self._insert(connection, values, "submit", actor)
            if row_id is not None:
                state = str(values["state"])
                return Submitted("new", row_id, sub.task_id, state, publish=state == states.QUEUED)
            found = self._conflict(connection, sub, "return", actor, "submit")
            if found is not None:
                return found
        raise TaskIdConflict(f"{sub.task}: the key {sub.key!r} keeps changing hands; submit again.")

    def park(self, sub: Submission, failure: Failure, *, actor: str) -> int | None:
        """Keep a message that must not run as a dead row; None when its id or key is known already."""
        values = self._values(sub) | states.into_terminal(states.DEAD, owed=None, failure_kind=failure.kind)

        def work(connection: sa.Connection) -> int | None:
            row_id = self._insert(connection, values, "park", actor, failure.message)
            if row_id is not None:
                self.writer.failure(connection, row_id, 0, failure)
            return row_id

        return self.db.run(work, task_id=sub.task_id)

    def unpublished(self, row_id: int, envelope_no: int) -> None:
        """Note that the broker did not take the message: the next sweep sends it."""
        c = self.t.task.c
        self.db.run(
            lambda connection: connection.execute(
                sa.update(self.t.task)
                .where(c.id == row_id, self.in_state(states.QUEUED), c.envelope_no == envelope_no, c.rings == 1)
                .values(publish_at=self.dialect.clock_sql, rings=0, publish_count=c.publish_count - 1)
            ),
            autocommit=True,
        )

    def _values(self, sub: Submission, *, now: int | None = None) -> dict[str, Any]:
        """Return the columns of a new row, times as a decision says them, or as numbers where ``now`` is the time."""
        values = {
            "task_id": sub.task_id, "task": sub.task, "key_digest": keys.digest(sub.task, sub.key),
            "idempotency_key": sub.key, "queue": queue_of(sub.envelope), "priority": sub.priority,
            "broker": sub.broker, "root_id": sub.root_id, "parent_id": sub.parent_id, "envelope_no": 1,
            "envelope": sub.envelope.meta(), "body": sub.envelope.stored_body(), "max_losses": sub.max_losses,
            "on_loss": sub.on_loss, "retries": sub.retries, "owes": int(sub.owes), "deadline_at": sub.deadline_at,
            "submitted_at": states.After(), "submitted_by": sub.submitted_by[:255],
        }  # fmt: skip
        if sub.wake is None:
            values |= states.into_queued() | self._rung(0)
        else:
            values |= states.into_waiting(states.SCHEDULED, "not before its ETA", sub.wake)
        if now is not None:
            then = {k: now + micros(v.seconds) for k, v in values.items() if isinstance(v, states.After)}
            values |= then
        return values

    def _rung(self, before: int) -> dict[str, Any]:
        """Columns of a row that its submitter rings at once; the sweep does should that not be enough.

        In somebody else's transaction it is due at once: whoever comes first after COMMIT rings it (PROTOCOL 21).
        """
        if self.db.lent:
            return {"publish_count": before, "published_at": None}
        return {
            "publish_at": states.After(self.republish_after), "rings": 1, "publish_count": before + 1,
            "published_at": states.After(),
        }  # fmt: skip

    def _insert(
        self, connection: sa.Connection, values: dict[str, Any], verb: str, actor: str, reason: str = ""
    ) -> int | None:
        """Insert a row and its history row; None when its task id or key is there already."""
        target = str(values["state"])
        if self.dialect.one_statement:
            form, told = self.writer.parted({k: v for k, v in values.items() if k != "envelope_no"})
            told |= {"v_verb": verb, "v_target": target, "v_actor": actor[:255], "v_reason": reason}
            found = self._statement(("insert", form), lambda: self._insert_at_once(form)).first(connection, told)
            return None if found is None else int(found.id)
        row_id = self._insert_row(connection, values)
        if row_id is not None:
            self.writer.note(connection, row_id, Entry(verb, None, target, 0, actor, reason))
        return row_id

    def _insert_at_once(self, form: tuple[tuple[str, str], ...]) -> Prepared:
        task, event = self.t.task, self.t.event.c
        # In the statement itself: SET LOCAL would be a round trip.
        values = self.writer.formed(form) | {"envelope_no": sa.case((hasty() == "", 1), else_=1)}
        new = postgresql.insert(task).values(values).on_conflict_do_nothing().returning(task.c.id).cte("new")
        logged = self.writer.logged(
            new, verb=given("verb", event.verb.type), from_state=None, to_state=given("target", event.to_state.type),
            claim=fixed(0), actor=given("actor", event.actor.type), reason=given("reason", event.reason.type),
        )  # fmt: skip
        return Prepared(sa.select(new.c.id).add_cte(logged))

    def _insert_row(self, connection: sa.Connection, values: dict[str, Any]) -> int | None:
        task = self.t.task
        form, told = self.writer.parted(values)
        if self.dialect.name == "sqlite":

            def build() -> sa.Insert:
                insert = sqlite.insert(task).values(self.writer.formed(form))
                return insert.on_conflict_do_nothing().returning(task.c.id)

            row_id: int | None = connection.execute(self._statement(("insert", form), build), told).scalar()
            return row_id
        try:
            # No savepoint: InnoDB takes back the statement alone, and a deadlock would take the savepoint with it.
            insert = self._statement(("insert", form), lambda: sa.insert(task).values(self.writer.formed(form)))
            result = connection.execute(insert, told)
        except exc.IntegrityError as error:
            if error.orig is not None and error.orig.args[0] == _MYSQL_DUPLICATE:
                return None
            raise
        key = result.inserted_primary_key
        return int(key[0]) if key else None

    def _conflict(
        self, connection: sa.Connection, sub: Submission, on_conflict: str, actor: str, verb: str
    ) -> Submitted | None:
        """Judge a submission whose id or key is there; None when it is gone again."""
        c = self.t.task.c
        if self.dialect.one_statement:
            connection.execute(sa.select(hasty()))
        own = self._met(connection, c.task_id == sub.task_id)
        if own and gives_way(own[0]):
            row_id = self.make_way(connection, own[0], self._values(sub), actor)
            state = states.QUEUED if sub.wake is None else states.WAITING
            return None if row_id is None else Submitted("new", row_id, sub.task_id, state, publish=sub.wake is None)
        if own:
            return self.replaced_by(connection, own[0], sub, actor) or self._own(own[0], sub)
        held = self._met(connection, c.key_digest == keys.digest(sub.task, sub.key))
        if not held:
            return None
        first = held[0]
        if first.state in {states.DEAD, states.CANCELLED}:
            replayed = self._resubmit(connection, first, sub.alone or sub, actor)
            if not sub.awaited:
                return replayed
        elif on_conflict == "raise" and not self._brought_back(connection, first.id, sub):
            raise KeyConflict(sub.task, sub.key, first.task_id, first.state)
        if sub.awaited:
            return self._alias(connection, first, sub, actor, verb)
        return Submitted(
            "existing", first.id, first.task_id, first.state, first.envelope_no,
            result=first.result, result_type=first.result_type,
        )  # fmt: skip

    def _met(self, connection: sa.Connection, where: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
        """Return the row that a submission met, locked.

        In somebody else's transaction only where it will be written: the lock would last until their commit, and
        keep whoever runs the row from renewing and settling it. What others have committed counts for more than
        what that transaction saw when it began.
        """
        if not self.db.lent:
            return self.writer.lock(connection, where)
        query = sa.select(self.t.task).where(where)
        seen = self._ask(query) or connection.execute(query).all()
        ends = {states.DEAD, states.CANCELLED}
        if seen and (seen[0].state in ends or seen[0].wait_kind == states.REPLACED or gives_way(seen[0])):
            return self.writer.lock(connection, where)
        return seen

    def _brought_back(self, connection: sa.Connection, row_id: int, sub: Submission) -> bool:
        """Whether this very submission replayed the row, and the reply was lost."""
        e = self.t.event.c
        mine = (e.task_row == row_id, e.verb == "replay", e.reason == _replay_reason(sub))
        return connection.execute(sa.select(e.id).where(*mine).limit(1)).first() is not None

    def _own(self, row: sa.Row[Any], sub: Submission) -> Submitted:
        if (row.task_id, row.task, row.idempotency_key) != (sub.task_id, sub.task, sub.key):
            raise TaskIdConflict(
                f"The task id {sub.task_id!r} belongs to {row.task} with key {row.idempotency_key!r}; it cannot "
                f"also be {sub.task} with key {sub.key!r}. Leave task_id out, or choose another."
            )
        return Submitted(
            "own",
            row.id,
            row.task_id,
            row.state,
            row.envelope_no,
            result=row.result,
            result_type=row.result_type,
        )

    def _resubmit(self, connection: sa.Connection, first: sa.Row[Any], sub: Submission, actor: str) -> Submitted:
        """Bring a dead or cancelled row back with the new message, under its own id (PROTOCOL 4)."""
        move = replace(
            states.replay(_replay_reason(sub), sub.wake),
            envelope=sub.envelope.readdressed(first.task_id),
        )
        changes = move.changes | {
            "deadline_at": sub.deadline_at, "owes": int(sub.owes), "max_losses": sub.max_losses,
            "on_loss": sub.on_loss, "broker": sub.broker,
        }  # fmt: skip
        # The submitter rings only what it is answered with; an alias' first is left to the next sweep.
        publish = move.to == states.QUEUED and not sub.awaited
        if publish:
            changes |= self._rung(first.publish_count)
        if first.pruned_at is not None:  # its history is gone, up to the number of claims
            gone = Entry("prune", first.state, first.state, first.claims, actor, "its history was pruned")
            self.writer.note(connection, first.id, gone)
        self.writer.write(connection, first, replace(move, changes=changes), actor=actor)
        return Submitted("replayed", first.id, first.task_id, move.to, first.envelope_no + 1, publish=publish)

    def _alias(
        self, connection: sa.Connection, first: sa.Row[Any], sub: Submission, actor: str, verb: str
    ) -> Submitted | None:
        """Give a submission that is awaited under its own id a row that follows the holder of its key.

        None when it has that row already.
        """
        wake = states.After(0 if first.state in states.TERMINAL else states.FOLLOW_INTERVAL)
        waiting = states.into_waiting(states.DUPLICATE, f"{first.task_id} holds the same key", wake)
        values = self._values(sub) | waiting | {
            "key_digest": None, "duplicate_of": first.id, "rings": 0, "publish_count": 0, "published_at": None,
        }  # fmt: skip
        row_id = self._insert(connection, values, verb, actor, f"alias of {first.task_id}")
        if row_id is None:  # this very submission came twice at once: look again, its row is there now
            return None
        if not self.db.lent:  # there it would lock a row that runs; the alias looks by itself, only later
            told = sa.update(self.t.task).where(self.t.task.c.id == first.id)
            connection.execute(told.values(aliases=self.t.task.c.aliases + 1))
        return Submitted("alias", row_id, sub.task_id, states.WAITING)


def _replay_reason(sub: Submission) -> str:
    return f"its key was submitted again as {sub.task_id}"
