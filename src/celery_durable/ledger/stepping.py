"""Verbs of steps and checkpoints: what a task has done is written under its claim, once."""

from __future__ import annotations

import itertools
import random
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql

from celery_durable import states
from celery_durable.errors import LeaseLost
from celery_durable.ledger.claiming import Claims, proof_of
from celery_durable.ledger.database import TRIES
from celery_durable.ledger.enclosing import Enclosure, Own, session_class
from celery_durable.ledger.moves import micros
from celery_durable.ledger.prepared import Prepared, fixed, given
from celery_durable.steps import Content, Memory, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.records import Claim

#: The checkpoint of a task has no other name.
_ONLY = "-"


class _Fenced(Exception):
    """Zero rows: the transaction is rolled back, then it is looked at why."""


class _Raised(Exception):
    """The user's function raised: whatever it was, it passes through."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Stepping(Claims):
    """Progress is idempotent: a step is recorded once, and only by the live claim."""

    # What was done before --------------------------------------------------------------------------------

    def remembered(self, claim: Claim) -> Memory:
        """Return what earlier runs of a task have left, in one statement."""
        s = self.t.step.c
        query = sa.select(s.kind, s.name, s.result, s.result_type).where(
            s.task_row == claim.row_id, s.kind != states.SLEPT
        )
        rows = self._ask(query)
        contents = [(r.kind, r.name, Content(bytes(r.result), r.result_type)) for r in rows]
        return Memory(
            steps={name: content for kind, name, content in contents if kind == states.STEP},
            tries={name: int(content.data) for kind, name, content in contents if kind == states.TRIES},
            checkpoint=next((content for kind, _, content in contents if kind == states.CHECKPOINT), None),
        )

    def steps(self, row_id: int) -> list[Step]:
        """Return the steps that a task has done, oldest first."""
        s = self.t.step.c
        query = sa.select(self.t.step).where(s.task_row == row_id, s.kind == states.STEP)
        # SQLite's clock counts milliseconds, of which one may see several steps; its rows are numbered.
        order = sa.literal_column("rowid") if self.dialect.name == "sqlite" else s.started_at
        rows = self._ask(query.order_by(s.finished_at, order, s.name))
        return [
            Step(r.name, r.claim, Content(bytes(r.result), r.result_type), r.started_at, r.finished_at) for r in rows
        ]

    # What is done now ------------------------------------------------------------------------------------

    def record_step(self, claim: Claim, name: str, result: Content, *, seconds: float, actor: str) -> None:
        """Record a step that took ``seconds``: one statement on PostgreSQL. Doing it twice is doing it once.

        Raises:
            LeaseLost: the claim is over; nothing was written but a ``fenced`` event.
            LedgerUnavailable: the database did not answer; the step counts as not done.
        """

        def work(connection: sa.Connection) -> bool:
            return self._insert_step(connection, claim, name, result, seconds)

        one = self.dialect.one_statement
        try:
            written = self.db.run(work, autocommit=one, task_id=claim.task_id)
        except exc.IntegrityError:
            if self.step_stands(claim, name) is None:
                raise
            return  # our own, and the reply to it was lost
        if not written:
            self._refuse_claim(claim, "step", actor)

    def enclosure(self, fn: Callable[..., Any]) -> Enclosure:
        """Return a transaction on the ledger's own connection, which ``fn`` gets as it asks for it."""
        return Own(self.db, session_class(fn))

    def transact_step(
        self, claim: Claim, name: str, enclosure: Enclosure, call: Callable[..., Content], *, actor: str
    ) -> Content:
        """Do a step in a transaction that commits what it wrote together with its row; return its result.

        ``call`` is given what the enclosure lends, and returns the result of the step's function. It is called again
        when the transaction was rolled back by a deadlock, a serialization failure or a broken connection; after a
        lost reply to COMMIT only if the ledger then has no such step (PROTOCOL 22). The claim's row is locked last, so
        that the lease is renewed meanwhile.

        Raises:
            LeaseLost: the claim is over; all was rolled back.
            LedgerUnavailable: the database did not answer; ``outcome`` tells whether it may have been committed.
            StepError: the function tried to end the transaction.
            Exception: whatever ``call`` raises; all was rolled back.
        """

        def work(connection: sa.Connection) -> Content:
            began = time.monotonic()
            with enclosure.lend(connection) as given:
                try:
                    result = call(*given)
                except Exception as error:
                    raise _Raised(error) from error
            if not self._insert_step(connection, claim, name, result, time.monotonic() - began):
                raise _Fenced
            return result

        for tries in itertools.count(1):
            try:
                return enclosure.run_once(work, claim.task_id)
            except _Fenced:
                self._refuse_claim(claim, "step", actor)
            except _Raised as raised:
                self._try_again(raised.cause, tries, at_work=True)
            except (exc.DBAPIError, self.db.driver_error) as error:
                stands = self.step_stands(claim, name)
                if stands is not None:
                    return stands
                self._try_again(error, tries, at_work=False)
            time.sleep(random.uniform(0, 0.02 * 2**tries))  # noqa: S311 - spreading, not secrecy
        raise AssertionError  # it counts for ever

    def step_stands(self, claim: Claim, name: str) -> Content | None:
        """Return the result of a step that this claim has recorded, None when it has not and nothing is under way.

        The task's row is locked first: a transaction whose reply was lost holds that lock until it is over.

        Raises:
            LeaseLost: the claim is over.
            LedgerUnavailable: the database did not answer.
        """
        c, s = self.t.task.c, self.t.step.c

        def work(connection: sa.Connection) -> tuple[bool, Any]:
            query = sa.select(c.id).where(*self._proof()).with_for_update()
            live = connection.execute(query, proof_of(claim)).all()
            query = sa.select(s.result, s.result_type).where(
                s.task_row == claim.row_id, s.kind == states.STEP, s.name == name, s.claim == claim.claims
            )
            return bool(live), connection.execute(query).first()

        live, row = self.db.run(work, task_id=claim.task_id)
        if not live:
            self._refuse_claim(claim, "step", "")
        return None if row is None else Content(bytes(row.result), row.result_type)

    def write_checkpoint(self, claim: Claim, value: Content, *, progress: bool, actor: str) -> None:
        """Put the checkpoint of a task in place of the one before; one statement on PostgreSQL.

        ``progress`` tells that it is ahead of where the task was: the next loss does not count.

        Raises:
            LeaseLost: the claim is over; nothing was written but a ``fenced`` event.
            LedgerUnavailable: the database did not answer.
        """
        key = {"task_row": claim.row_id, "kind": states.CHECKPOINT, "name": _ONLY}
        clock = self.dialect.clock_sql
        said = {
            "claim": claim.claims, "result": value.data, "result_type": value.type, "started_at": clock,
            "finished_at": clock,
        }  # fmt: skip
        step = self.t.step

        def at_once(connection: sa.Connection) -> bool:
            live = self._touched(progress=progress).returning(self.t.task.c.id).cte("live")
            there = {"task_row": live.c.id} | {k: v for k, v in key.items() if k != "task_row"} | said
            source = sa.select(*_columns(step, there)).select_from(live)
            put = postgresql.insert(step).from_select(list(there), source)
            over = put.on_conflict_do_update(index_elements=list(key), set_={n: put.excluded[n] for n in said})
            return connection.execute(over.returning(step.c.claim), proof_of(claim)).first() is not None

        def locked(connection: sa.Connection) -> bool:
            if connection.execute(self._touched(progress=progress), proof_of(claim)).rowcount == 0:
                return False
            changed = sa.update(step).where(*(step.c[n] == v for n, v in key.items()))
            if connection.execute(changed.values(said)).rowcount == 0:
                connection.execute(sa.insert(step).values(key | said))
            return True

        one = self.dialect.one_statement
        if not self.db.run(at_once if one else locked, autocommit=one, task_id=claim.task_id):
            self._refuse_claim(claim, "checkpoint", actor)

    # How it is written -----------------------------------------------------------------------------------

    def _insert_step(self, connection: sa.Connection, claim: Claim, name: str, result: Content, seconds: float) -> bool:
        """Insert the row of a step and touch the task's, if the claim is live; False if it is not."""
        told = {
            "v_name": name, "v_content": result.data, "v_type": result.type, "v_took": micros(seconds),
            **proof_of(claim),
        }  # fmt: skip
        if self.dialect.one_statement:
            return bool(self._step_at_once.rows(connection, told))
        if connection.execute(self._touched(progress=True), proof_of(claim)).rowcount == 0:
            return False
        connection.execute(sa.insert(self.t.step).values(self._step_row), told)
        return True

    @cached_property
    def _step_row(self) -> dict[str, sa.ColumnElement[Any]]:
        s, clock = self.t.step.c, self.dialect.clock_sql
        return {
            "task_row": given("row", s.task_row.type), "kind": fixed(states.STEP, s.kind.type),
            "name": given("name", s.name.type), "claim": given("claims", s.claim.type),
            "result": given("content", s.result.type), "result_type": given("type", s.result_type.type),
            "started_at": clock - given("took", s.started_at.type), "finished_at": clock,
        }  # fmt: skip

    @cached_property
    def _step_at_once(self) -> Prepared:
        step = self.t.step
        live = self._touched(progress=True).returning(self.t.task.c.id).cte("live")
        row = self._step_row | {"task_row": live.c.id}
        source = sa.select(*_columns(step, row)).select_from(live)
        return Prepared(sa.insert(step).from_select(list(row), source).returning(step.c.claim))

    def _touched(self, *, progress: bool) -> sa.Update:
        """Lock the row of a live claim, and note that it has come further; ``proof_of`` has the parameters."""
        c = self.t.task.c
        values = self.writer.fixed(states.PROGRESS) if progress else {"claims": c.claims}
        return sa.update(self.t.task).where(*self._proof()).values(values)

    def _try_again(self, error: Exception, tries: int, *, at_work: bool) -> None:
        """Return if a transaction that was rolled back may be tried again, else raise what went wrong."""
        fault = self.db.fault(error)
        if tries < TRIES.get(fault or "", 1):
            return
        if at_work or fault is None:
            raise error
        raise self.db.unavailable(error, None, reached=False) from error

    def _refuse_claim(self, claim: Claim, verb: str, actor: str) -> None:
        """Refuse a claim that is over.

        Raises:
            LeaseLost: always.
        """
        self._own_or_fenced(claim, verb, actor)
        raise LeaseLost(f"{claim.task_id}: claim {claim.claims} is over; what this attempt did is thrown away.")


def _columns(table: sa.Table, row: dict[str, Any]) -> list[sa.ColumnElement[Any]]:
    """Values as typed expressions, to be selected."""
    return [(v if isinstance(v, sa.ColumnElement) else sa.literal(v, table.c[n].type)).label(n) for n, v in row.items()]
