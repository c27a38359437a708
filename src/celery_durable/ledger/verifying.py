"""The audit of a live ledger against the five invariants: what slipped past the CHECKs or escapes them.

Nothing here writes, and no statement holds the ledger up: the history is read in slices of rows, what
is overdue by its own index. Each statement judges one consistent view, so that work under way is no finding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger.registry import Registry
from celery_durable.ledger.schema_rules import TASK_CHECKS
from celery_durable.wording import SECOND, span

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The invariants, by their number in the documentation.
EXISTS, CLAIMED, FAILED, WAITS, IDEMPOTENT = 1, 2, 3, 4, 5
#: Which of them each CHECK of the schema serves.
CHECKED = {
    "state_known": EXISTS, "running_leased": CLAIMED, "waiting_explained": WAITS, "dead_has_kind": FAILED,
    "terminal_finished": EXISTS, "queued_rung": EXISTS, "owing_rung": EXISTS, "rung_for_a_reason": EXISTS,
    "keyed_or_alias": IDEMPOTENT, "counters": CLAIMED, "on_loss_known": CLAIMED, "observed_unpromised": EXISTS,
    "pruned_over": IDEMPOTENT,
}  # fmt: skip
#: Task rows per slice, and how many violations of one kind are told per slice.
SLICE, TOLD = 5_000, 100
#: Seconds: how late something due may be while a worker sweeps, or the outcome that an alias waits for.
GRACE, ALIAS_GRACE = 60.0, 180.0


@dataclass(frozen=True, slots=True)
class Violation:
    """One finding: the number of the invariant, the task id (or row) concerned, and what is wrong."""

    invariant: int
    ref: str
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Return the contract's JSON form of a violation."""
        return {"invariant": self.invariant, "ref": self.ref, "detail": self.detail}


class Verifying(Registry):
    """An audit that may run at any time, beside working workers."""

    def verify(self, *, lease: float = 30.0) -> list[Violation]:
        """Return every violation found; ``lease`` (seconds) is the longest lease in use.

        A claim is called overdue two leases (at least a minute) after its expiry; waits and messages a minute
        after they were due, and only if a worker of their broker has been sweeping for that long.

        Raises:
            LedgerUnavailable: the database did not answer.
        """
        found: list[Violation] = []
        for low, high in self._audit_slices():
            found += self._audit_rules(low, high)
            found += self._audit_dead(low, high)
            found += self._audit_histories(low, high)
            found += self._audit_moves(low, high)
            found += self._audit_orphans(low, high)
        found += self._audit_claims(max(2 * lease, GRACE))
        found += self._audit_due()
        found += self._audit_aliases()
        return found

    # --- rows and their history, a slice at a time --------------------------------------------------

    def _audit_slices(self) -> Iterator[tuple[int, int]]:
        """Ranges of row ids that cover every row, and whatever history points outside."""
        c = self.t.task.c
        bounds = self._ask(sa.select(sa.func.min(c.id).label("first"), sa.func.max(c.id).label("last")))[0]
        low, top = 0, 2**62
        for high in range((bounds.first or 0) + SLICE, bounds.last or 0, SLICE):
            yield low, high
            low = high
        yield low, top

    def _audit_rules(self, low: int, high: int) -> Iterator[Violation]:
        """Rows that a CHECK should have refused, had it been on."""
        c = self.t.task.c
        broken = {name: sa.literal_column(f"(NOT ({rule}))", sa.Boolean) for name, rule in TASK_CHECKS.items()}
        marks = [sa.case((condition, 1), else_=0).label(name) for name, condition in broken.items()]
        query = sa.select(c.task_id, c.state, *marks).where(c.id > low, c.id <= high, sa.or_(*broken.values()))
        for row in self._ask(query.order_by(c.id).limit(TOLD)):
            for name in broken:
                if row._mapping[name]:
                    detail = f"a row that is {row.state} breaks the rule {name}: {TASK_CHECKS[name]}"
                    yield Violation(CHECKED[name], row.task_id, detail)

    def _audit_dead(self, low: int, high: int) -> Iterator[Violation]:
        c, f = self.t.task.c, self.t.failure.c
        told = sa.select(sa.literal(1)).where(f.task_row == c.id).exists()
        query = sa.select(c.task_id, c.failure_kind).where(
            c.id > low, c.id <= high, c.state == states.DEAD, sa.not_(told)
        )
        for row in self._ask(query.order_by(c.id).limit(TOLD)):
            yield Violation(FAILED, row.task_id, f"dead ({row.failure_kind}) without a failure row")

    def _audit_histories(self, low: int, high: int) -> Iterator[Violation]:
        """Rows that their own history contradicts."""
        c, e = self.t.task.c, self.t.event.c
        moved = e.verb.not_in(states.NOTES)

        def count(verb: str) -> sa.ColumnElement[int]:
            return sa.func.count(sa.case((e.verb == verb, e.id)))

        claim = sa.case((e.verb == "claim", e.claim))
        # Of what came back after it was pruned, the history begins at the number of claims that it had.
        pruned = sa.func.coalesce(sa.func.max(sa.case((e.verb == "prune", e.claim))), 0)
        told = (
            sa.select(
                e.task_row, sa.func.max(sa.case((moved, e.id))).label("last_id"),
                (count("claim") + pruned).label("claims"),
                (sa.func.count(sa.distinct(claim)) + pruned).label("fences"), sa.func.max(claim).label("fence"),
                count("succeed").label("successes"),
            )
            .where(e.task_row > low, e.task_row <= high)
            .group_by(e.task_row)
            .subquery()
        )  # fmt: skip
        last = self.t.event.alias("last")
        query = (
            sa.select(
                c.task_id, c.state, c.claims.label("fenced"), last.c.verb, last.c.to_state, told.c.claims,
                told.c.fences, told.c.fence, told.c.successes,
            )
            .select_from(self.t.task)
            .outerjoin(told, told.c.task_row == c.id)
            .outerjoin(last, last.c.id == told.c.last_id)
            .where(
                c.id > low, c.id <= high, c.observed == 0, c.pruned_at.is_(None),
                sa.or_(
                    last.c.id.is_(None), last.c.to_state != c.state, told.c.claims != c.claims,
                    told.c.fences != told.c.claims, told.c.fence > c.claims, told.c.successes > 1,
                ),
            )
            .order_by(c.id)
            .limit(TOLD)
        )  # fmt: skip
        for row in self._ask(query):
            yield from _contradictions(row)

    def _audit_moves(self, low: int, high: int) -> Iterator[Violation]:
        """Events that the table of moves does not have, and events that do not follow one another."""
        e = self.t.event.c
        steps = (
            sa.select(
                e.task_row, e.verb, e.from_state, e.to_state, e.id,
                sa.func.lag(e.to_state).over(partition_by=e.task_row, order_by=e.id).label("stood"),
            )
            .where(e.task_row > low, e.task_row <= high, e.verb.not_in(states.NOTES - {"prune"}))
            .subquery()
        )  # fmt: skip
        came, went = sa.func.coalesce(steps.c.from_state, ""), steps.c.to_state
        legal = sa.or_(
            steps.c.verb.in_(states.SIGHTINGS | {"prune"}),
            *(
                sa.and_(steps.c.verb == verb, came.in_([s or "" for s in sources]), went.in_(targets))
                for verb, (sources, targets) in states.MOVES.items()
            ),
        )
        c = self.t.task.c
        query = (
            sa.select(c.task_id, steps.c.verb, came.label("came"), went, steps.c.stood, legal.label("legal"))
            .join_from(steps, self.t.task, c.id == steps.c.task_row)
            .where(sa.or_(sa.not_(legal), came != sa.func.coalesce(steps.c.stood, "")), steps.c.verb != "prune")
            .order_by(steps.c.id)
            .limit(TOLD)
        )
        for row in self._ask(query):
            move = f"{row.verb}: {row.came or 'no row'} -> {row.to_state}"
            if not row.legal:
                yield Violation(CLAIMED, row.task_id, f"the history has a move that is not allowed, {move}")
            else:
                stood = row.stood or "not there"
                yield Violation(CLAIMED, row.task_id, f"the history has a gap: {move}, but the row was {stood}")

    def _audit_orphans(self, low: int, high: int) -> Iterator[Violation]:
        """History without a row: work that was accepted and is gone."""
        for table, invariant in ((self.t.event, EXISTS), (self.t.failure, FAILED), (self.t.step, IDEMPOTENT)):
            there = sa.select(sa.literal(1)).where(self.t.task.c.id == table.c.task_row).exists()
            query = (
                sa.select(table.c.task_row, sa.func.count().label("n"))
                .where(table.c.task_row > low, table.c.task_row <= high, sa.not_(there))
                .group_by(table.c.task_row)
                .limit(TOLD)
            )
            name = table.name.removeprefix(self.t.prefix)
            for row in self._ask(query):
                detail = f"{row.n} {name} row{'s' if row.n > 1 else ''} of a task that is not there"
                yield Violation(invariant, f"row {row.task_row}", detail)

    # --- what is overdue, by its index --------------------------------------------------------------

    def _audit_claims(self, grace: float) -> Iterator[Violation]:
        """Claims that should have expired; whether or not a worker is there to see to it is told."""
        c, now = self.t.task.c, self.dialect.instant_sql
        query = (
            sa.select(c.task_id, c.lease_owner, c.lease_pid, c.lease_expires_at, now.label("now"))
            .where(self.in_state(states.RUNNING), c.lease_expires_at < now - round(grace * SECOND))
            .order_by(c.lease_expires_at)
            .limit(TOLD)
        )
        live = [w for w in self.workers() if w.live]
        by = "although live workers sweep" if live else "and no live worker sweeps"
        for row in self._ask(query):
            late = span(row.now - row.lease_expires_at)
            owner = f"{row.lease_owner} (pid {row.lease_pid})"
            yield Violation(CLAIMED, row.task_id, f"running, but the lease of {owner} passed {late} ago, {by}")

    def _audit_due(self) -> Iterator[Violation]:
        """Waits and messages that are due, although a worker of their broker has had time to see to them."""
        c, now = self.t.task.c, self.dialect.instant_sql
        brokers = {w.broker for w in self.workers() if w.live and w.now - w.started_at > GRACE * SECOND}
        if not brokers:
            return
        late = now - round(GRACE * SECOND)
        here = c.broker.in_(sorted(brokers))
        columns = (c.task_id, c.state, c.wait_kind, c.wake_at, c.publish_at, now.label("now"))
        waits = sa.select(*columns).where(self.in_state(states.WAITING), c.wake_at < late, here)
        for row in self._ask(waits.order_by(c.wake_at).limit(TOLD)):
            detail = f"waiting ({row.wait_kind}), due for {span(row.now - row.wake_at)}, and no worker looks at it"
            yield Violation(WAITS, row.task_id, detail)
        rings = sa.select(*columns).where(c.publish_at < late, here)
        for row in self._ask(rings.order_by(c.publish_at).limit(TOLD)):
            what = "queued" if row.state == states.QUEUED else f"{row.state} with an outcome to tell"
            detail = f"{what}, its message due for {span(row.now - row.publish_at)}, and no worker sends it"
            yield Violation(EXISTS, row.task_id, detail)

    def _audit_aliases(self) -> Iterator[Violation]:
        """Live aliases whose holder is gone, or ended minutes ago without them."""
        c, now, holder = self.t.task.c, self.dialect.instant_sql, self.t.task.alias("holder")
        ended = holder.c.finished_at < now - round(ALIAS_GRACE * SECOND)
        query = (
            sa.select(
                c.task_id,
                holder.c.task_id.label("first"),
                holder.c.state,
                holder.c.finished_at,
                now.label("now"),
            )
            .select_from(self.t.task.outerjoin(holder, holder.c.id == c.duplicate_of))
            .where(c.duplicate_of.is_not(None), c.finished_at.is_(None), sa.or_(holder.c.id.is_(None), ended))
            .order_by(c.id)
            .limit(TOLD)
        )
        for row in self._ask(query):
            if row.first is None:
                yield Violation(IDEMPOTENT, row.task_id, "follows the task that held its key, which is not there")
                continue
            ago = span(row.now - row.finished_at)
            yield Violation(WAITS, row.task_id, f"follows {row.first}, which has been {row.state} for {ago}")


def _contradictions(row: sa.Row[Any]) -> Iterator[Violation]:
    """Say in which ways a row and its history disagree."""
    if row.to_state is None:
        yield Violation(EXISTS, row.task_id, f"{row.state}, but it has no history")
        return
    if row.to_state != row.state:
        detail = f"{row.state}, but the last move of its history ({row.verb}) made it {row.to_state}"
        yield Violation(CLAIMED, row.task_id, detail)
    if row.claims != row.fenced or row.fences != row.claims or (row.fence or 0) > row.fenced:
        detail = (
            f"its fence says {row.fenced}, its history has {row.claims} claims, {row.fences} different ones, "
            f"up to number {row.fence or 0}"
        )
        yield Violation(CLAIMED, row.task_id, detail)
    if row.successes > 1:
        yield Violation(IDEMPOTENT, row.task_id, f"it succeeded {row.successes} times")
