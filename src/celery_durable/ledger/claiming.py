"""Verbs of one attempt: claim, renew, succeed, fail, wait, lose. Every write proves its claim."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.errors import LeaseLost
from celery_durable.ledger.listening import lock_of
from celery_durable.ledger.moves import Entry, micros
from celery_durable.ledger.placeholders import gives_way
from celery_durable.ledger.prepared import Prepared, fixed, given
from celery_durable.ledger.waiting import Waiting
from celery_durable.records import Claim

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_durable.records import Failure
    from celery_durable.states import Move


@dataclass(frozen=True, slots=True)
class Claiming:
    """The answer to a claim.

    ``claim`` is set when it was granted. Else ``why`` is ``absent`` (no row), ``stale`` (an old
    doorbell), ``busy`` (running or waiting), ``expired``, ``paused``, ``done`` (over, nothing owed), ``owing``
    (over, its outcome has still to be told) or ``free`` (it changed beneath us: look again), and
    ``row`` is the row as it stands.
    """

    claim: Claim | None
    why: str = "granted"
    row: sa.Row[Any] | None = None


class Claims(Waiting):
    """At most one live claim at a time; a stale one can change nothing."""

    def claim(
        self, task_id: str, token: str, *, owner: str, pid: int, lease: float, envelope_no: int | None = None
    ) -> Claiming:
        """Take a queued row: one statement on PostgreSQL. Counted before any user code runs.

        ``token`` is random and new for every delivery; a reply that was lost is recognised by it alone
        (PROTOCOL 1). ``envelope_no`` refuses a doorbell whose message has moved on (PROTOCOL 2).
        ``lease`` is in seconds.

        Raises:
            LedgerUnavailable: the database did not answer; nothing may run.
        """
        which = {"v_ref": task_id, "v_number": envelope_no}
        said = {"v_token": token, "v_owner": owner, "v_pid": pid, "v_lease": micros(lease)}

        def at_once(connection: sa.Connection) -> Claiming:
            row = self._claim_at_once.first(connection, which | said)
            if row is not None:
                return Claiming(_claim(row, token, row.claims))
            row = connection.execute(self._judged, {"v_ref": task_id}).first()
            return self._refused(row, token, envelope_no)

        def locked(connection: sa.Connection) -> Claiming:
            row = connection.execute(self._judged.with_for_update(), {"v_ref": task_id}).first()
            if row is not None and row.task_id != task_id:  # MySQL passes over trailing blanks
                row = None
            answer = self._refused(row, token, envelope_no)
            if answer.why != "free" or row is None:
                return answer
            connection.execute(self._claim_locked, said | {"v_row": row.id})
            fence = row.claims + 1
            self.writer.note(connection, row.id, Entry("claim", row.state, states.RUNNING, fence, owner, ""))
            return Claiming(_claim(row, token, fence))

        if self.dialect.one_statement:
            return self.db.run(at_once, autocommit=True, task_id=task_id)
        return self.db.run(locked, task_id=task_id)

    @cached_property
    def _claim_changes(self) -> dict[str, Any]:
        c, clock = self.t.task.c, self.dialect.clock_sql
        return self.writer.fixed({
            "state": states.RUNNING, "claims": c.claims + fixed(1), "claim_token": given("token", sa.String),
            "lease_owner": given("owner", sa.String), "lease_pid": given("pid", sa.Integer),
            "lease_expires_at": clock + given("lease", sa.BigInteger), "started_at": clock,
            "publish_at": None, "rings": 0, "deferrals": 0, "failure_kind": None,
        })  # fmt: skip

    @cached_property
    def _claim_at_once(self) -> Prepared:
        c, number = self.t.task.c, given("number", sa.Integer)
        update = sa.update(self.t.task).where(
            c.task_id == given("ref", sa.String), self.in_state(states.QUEUED), c.observed == fixed(0),
            sa.or_(c.deadline_at.is_(None), c.deadline_at > self.dialect.instant_sql), ~self.is_paused(),
            sa.or_(number.is_(None), c.envelope_no == number),
        )  # fmt: skip
        returned = (c.id, c.task_id, c.claims, c.retries, c.losses, c.owes, c.replaces)
        moved = update.values(self._claim_changes).returning(*returned).cte("moved")
        logged = self.writer.logged(
            moved, verb=fixed("claim"), from_state=fixed(states.QUEUED), to_state=fixed(states.RUNNING),
            claim=moved.c.claims, actor=given("owner", sa.String), reason=fixed(""),
        )  # fmt: skip
        return Prepared(sa.select(moved).add_cte(logged))

    @cached_property
    def _claim_locked(self) -> sa.Update:
        row = self.t.task.c.id == given("row", sa.BigInteger)
        return sa.update(self.t.task).where(row).values(self._claim_changes)

    @cached_property
    def _judged(self) -> sa.Select[Any]:
        now = self.dialect.instant_sql.label("now")
        mine = self.t.task.c.task_id == given("ref", sa.String)
        return sa.select(self.t.task, now, self.is_paused().label("paused")).where(mine)

    def _refused(self, row: sa.Row[Any] | None, token: str, envelope_no: int | None) -> Claiming:
        """Say why a row cannot be claimed, or that it is free; a claim of one's own is a success."""
        if row is None or gives_way(row):
            return Claiming(None, "absent")
        if row.state == states.RUNNING and row.claim_token == token:
            return Claiming(_claim(row, token, row.claims))
        return Claiming(None, _standing(row, envelope_no), row)

    def renew(self, tokens: Mapping[str, str], lease: float) -> dict[str, bool]:
        """Extend the leases of these claims (task id -> token); locked rows are passed over.

        Returns, for each claim that is still live, whether its cancellation was asked for.
        """
        if not tokens:
            return {}
        c = self.t.task.c
        live = (
            sa.select(c.id)
            .where(
                c.task_id.in_(list(tokens)),
                self.in_state(states.RUNNING),
                c.claim_token.in_(list(tokens.values())),
            )
            .with_for_update(skip_locked=self.dialect.skip_locked)
        )
        values = {"lease_expires_at": self.dialect.clock_sql + micros(lease)}
        returned = (c.task_id, c.cancel_requested_at)

        def at_once(connection: sa.Connection) -> dict[str, bool]:
            update = sa.update(self.t.task).where(c.id.in_(live.scalar_subquery())).values(values)
            rows = connection.execute(update.returning(*returned))
            return {r.task_id: r.cancel_requested_at is not None for r in rows}

        def locked(connection: sa.Connection) -> dict[str, bool]:
            rows = connection.execute(live.add_columns(*returned)).all()
            if rows:
                ids = [r.id for r in rows]
                connection.execute(sa.update(self.t.task).where(c.id.in_(ids)).values(values))
            return {r.task_id: r.cancel_requested_at is not None for r in rows}

        if self.dialect.one_statement:
            return self.db.run(at_once, autocommit=True)
        return self.db.run(locked)

    def succeed(
        self, claim: Claim, result: bytes | None, result_type: str | None, *, owes: bool, actor: str,
        continuation_grace: float,
    ) -> bool:  # fmt: skip
        """Store the result: one statement on PostgreSQL. Returns whether somebody may listen for results.

        ``owes`` says that somebody has yet to be told; should the teller die, a sweep rings the
        row ``continuation_grace`` seconds later.

        Raises:
            LeaseLost: another claim took over; nothing was written but a ``fenced`` event.
            LedgerUnavailable: the database did not answer; the work counts as not done.
        """
        told = {"v_result": result, "v_result_type": result_type, **proof_of(claim)}

        def at_once(connection: sa.Connection) -> tuple[int, bool] | None:
            row = self._succeed_at_once(owes, continuation_grace).first(connection, {**told, "v_actor": actor[:255]})
            return None if row is None else (int(row.aliases), not row.unheard)

        def locked(connection: sa.Connection) -> tuple[int, bool] | None:
            row = connection.execute(self._live, proof_of(claim)).first()
            if row is None:
                return None
            connection.execute(self._succeed_locked(owes, continuation_grace), told)
            self.writer.note(
                connection, row.id, Entry("succeed", states.RUNNING, states.SUCCEEDED, claim.claims, actor)
            )
            return int(row.aliases), True

        done = self.db.run(
            at_once if self.dialect.one_statement else locked,
            autocommit=self.dialect.one_statement,
            task_id=claim.task_id,
        )
        if done is None:
            self._own_or_fenced(claim, "succeed", actor)
            return True
        aliases, heard = done
        if aliases:
            self.wake_aliases(claim.row_id)
        return heard

    def _success(self, grace: float, *, owes: bool) -> dict[str, Any]:
        owed = given("token", sa.String)
        changes = states.into_terminal(states.SUCCEEDED, owed="owed" if owes else None, ring=grace)
        changes |= {"continuation_pending": owed} if owes else {}
        results = {n: given(n, self.t.task.c[n].type) for n in ("result", "result_type")}
        return self.writer.fixed(changes | results)

    def _succeed_at_once(self, owes: bool, grace: float) -> Prepared:  # noqa: FBT001 - of a statement, not of a caller
        def build() -> Prepared:
            c = self.t.task.c
            update = sa.update(self.t.task).where(*self._proof()).values(self._success(grace, owes=owes))
            moved = update.returning(c.id, c.aliases).cte("moved")
            logged = self.writer.logged(
                moved, verb=fixed("succeed"), from_state=fixed(states.RUNNING), to_state=fixed(states.SUCCEEDED),
                claim=given("claims", sa.Integer), actor=given("actor", sa.String), reason=fixed(""),
            )  # fmt: skip
            # Whoever listens shares this lock; two that settle at once may take each other for one, which costs a hint.
            unheard = sa.func.pg_try_advisory_xact_lock(fixed(lock_of(self.channel), sa.BigInteger)).label("unheard")
            return Prepared(sa.select(moved.c.aliases, unheard).add_cte(logged))

        return self._statement(("succeed", owes, grace), build)

    def _succeed_locked(self, owes: bool, grace: float) -> sa.Update:  # noqa: FBT001 - as above
        def build() -> sa.Update:
            return sa.update(self.t.task).where(*self._proof()).values(self._success(grace, owes=owes))

        return self._statement(("succeed locked", owes, grace), build)

    @cached_property
    def _live(self) -> sa.Select[Any]:
        c = self.t.task.c
        return sa.select(c.id, c.aliases).where(*self._proof()).with_for_update()

    def settle(
        self, claim: Claim, decide: Callable[[sa.Row[Any]], Move], *, actor: str,
        along: Callable[[sa.Connection], None] | None = None,
    ) -> str:  # fmt: skip
        """End the attempt as ``decide`` says, in one transaction; return the state reached.

        ``along`` is done in that transaction, unless the row was cancelled.

        Raises:
            LeaseLost: another claim took over; nothing was written but a ``fenced`` event.
            LedgerUnavailable: the database did not answer; the attempt counts as lost.
        """
        verb = ""

        def work(connection: sa.Connection) -> tuple[str, int] | None:
            nonlocal verb
            rows = self.writer.lock(connection, self.t.task.c.id == claim.row_id)
            if not rows or not _proven(rows[0], claim):
                return None
            move = decide(rows[0])
            event = move.changes.get("wait_event")
            if event is not None and self._sent(connection, claim.row_id, event):
                # It arrived while the task made up its mind to wait: nothing else would wake it.
                move = replace(move, changes=move.changes | {"wake_at": states.After()})
            verb = move.verb
            self.writer.write(connection, rows[0], move, actor=actor)
            if along is not None and move.to != states.CANCELLED:
                along(connection)
            return move.to, int(rows[0].aliases)

        done = self.db.run(work, task_id=claim.task_id)
        if done is None:
            return self._own_or_fenced(claim, verb or "settle", actor)
        state, aliases = done
        if aliases and state in states.TERMINAL:
            self.wake_aliases(claim.row_id)
        return state

    def lose(self, task_id: str, token: str, failure: Failure, *, owed_token: str, actor: str) -> str | None:
        """End an attempt whose process is known to be gone; None when that claim is not live any more."""
        return self.end(task_id, token, lambda row: states.lose(row, failure, owed_token), actor=actor)

    def end(self, task_id: str, token: str, decide: Callable[[sa.Row[Any]], Move], *, actor: str) -> str | None:
        """End an attempt in the place of its process; None when that claim is not live any more."""
        c = self.t.task.c

        def work(connection: sa.Connection) -> tuple[str, int, int] | None:
            where = (c.task_id == task_id, self.in_state(states.RUNNING), c.claim_token == token)
            rows = self.writer.lock(connection, *where)
            if not rows:
                return None
            move = decide(rows[0])
            self.writer.write(connection, rows[0], move, actor=actor)
            return move.to, int(rows[0].aliases), int(rows[0].id)

        done = self.db.run(work, task_id=task_id)
        if done is None:
            return None
        state, aliases, row_id = done
        if aliases and state in states.TERMINAL:
            self.wake_aliases(row_id)
        return state

    def _proof(self) -> tuple[sa.ColumnElement[bool], ...]:
        """The condition that every write of a claimed row carries; ``proof_of`` has its parameters."""
        c = self.t.task.c
        return (
            c.id == given("row", sa.BigInteger), self.in_state(states.RUNNING),
            c.claims == given("claims", sa.Integer),
            c.claim_token == given("token", sa.String),
        )  # fmt: skip

    def _own_or_fenced(self, claim: Claim, verb: str, actor: str) -> str:
        """After zero rows: our own write whose reply was lost, or a claim that is over."""

        def work(connection: sa.Connection) -> tuple[bool, str]:
            c = self.t.task.c
            rows = self.writer.lock(connection, c.id == claim.row_id, columns=(c.state, c.claim_token, c.claims))
            if not rows:
                return False, "gone"
            row = rows[0]
            # lose and a later claim change the token: one's own on a row at rest is one's own settle.
            if row.state != states.RUNNING and row.claim_token == claim.token and row.claims == claim.claims:
                return True, str(row.state)
            reason = f"{verb} refused: claim {claim.claims} is over, the row is {row.state} at claim {row.claims}"
            self.writer.note(
                connection, claim.row_id, Entry("fenced", row.state, row.state, claim.claims, actor, reason)
            )
            return False, str(row.state)

        own, state = self.db.run(work, task_id=claim.task_id)
        if not own:
            raise LeaseLost(
                f"{claim.task_id}: claim {claim.claims} is over, the row is {state}; what this attempt did is "
                "thrown away. It was away for longer than its lease (durable_lease), or was taken for dead."
            )
        return state


def proof_of(claim: Claim) -> dict[str, Any]:
    """Return what a write has to prove, as the parameters of a statement."""
    return {"v_row": claim.row_id, "v_claims": claim.claims, "v_token": claim.token}


def _claim(row: Any, token: str, fence: int) -> Claim:
    return Claim(row.id, row.task_id, fence, token, row.retries, row.losses, bool(row.owes), row.replaces)


def _standing(row: sa.Row[Any], envelope_no: int | None) -> str:
    """Say in a word what stands between a row and a claim; "free" is nothing, or something that has just gone."""
    if row.state in states.TERMINAL:
        return "owing" if row.continuation_pending else "done"
    if row.state != states.QUEUED:
        return "busy"
    if envelope_no is not None and row.envelope_no != envelope_no:
        return "stale"
    if row.deadline_at is not None and row.deadline_at <= row.now:
        return "expired"
    return "paused" if row.paused else "free"


def _proven(row: sa.Row[Any], claim: Claim) -> bool:
    return bool(row.state == states.RUNNING) and row.claims == claim.claims and row.claim_token == claim.token
