"""The ledger and its reference, moved together: after every rule the whole row sets must be the same.

The database's clock is a row of a table, so that time passes when a rule says so, and every time that is stored can be
foretold. Each claim ever granted stays at hand: whoever uses one that is over is a zombie. A rule may lose the reply to
its first or second commit, and then asks again, as the product does.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from celery_durable import states
from celery_durable.errors import KeyConflict, LeaseLost, LedgerUnavailable, TaskIdConflict
from celery_durable.records import Claim, Submission
from celery_durable.steps import Content
from tests.ledger.kit import BROKER, QUEUE, TASK, boom, empty, envelope, fails, gone, row_of
from tests.machine.reference import FENCED, OURS, REPUBLISH, SECOND, Call, Reference, Row
from tests.machine.stored import BEGIN, Clock, stored_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.ledger import Ledger
    from tests.ledger.wire import Wire

LEASE, JSON = 30 * SECOND, "application/json"
ALL = 1_000  # more than any sweep finds due

calls, claims = Bundle("calls"), Bundle("claims")
seconds = st.sampled_from([1, 31, 10, 700])
lost = st.sampled_from([0, 0, 0, 0, 1, 2])


class Machine(RuleBasedStateMachine):
    """Workers, a sweeper, an operator and clients, in any order."""

    ledger: Ledger
    #: The same over a wire that loses replies.
    far: Ledger
    wire: Wire
    clock: Clock
    examples = 0

    @initialize()
    def begins(self) -> None:
        type(self).examples += 1
        empty(self.ledger)
        self.clock.set(BEGIN)
        self.reference = Reference(BEGIN)
        self.number = 0
        self.lossy = False  # whether a reply was lost in this rule
        self.owed: dict[str, str] = {}  # token -> whose

    # Clients ------------------------------------------------------------------------------------------

    @rule(
        target=calls, key=st.sampled_from("ab"), owes=st.booleans(), awaited=st.booleans(), strict=st.booleans(),
        eta=st.sampled_from([None, None, 20]), expires=st.sampled_from([None, None, None, 25]),
        max_losses=st.sampled_from([2, 1]), on_loss=st.sampled_from(["retry", "retry", "dead"]), lost=lost,
    )  # fmt: skip
    def submit(self, key, owes, awaited, strict, eta, expires, max_losses, on_loss, lost) -> Any:
        until = None if expires is None else self.reference.now + expires * SECOND
        call = Call(self._name("t"), key, owes, awaited, eta and eta * SECOND, until, max_losses, on_loss)
        return self._submit(call, lost, strict=strict)

    @rule(target=claims, key=st.sampled_from("abcd"), owes=st.booleans(), worker=st.sampled_from("xyz"))
    def submit_and_claim(self, key, owes, worker) -> Any:
        """Or bring back, or find, what has that key: the usual way, so that much is under way."""
        task_id = self._submit(Call(self._name("t"), key, owes, max_losses=2), 0)
        return self.claim(task_id, 0, worker, 0)

    @rule(call=calls, key=st.sampled_from("ab"), lost=lost)
    def submit_under_the_same_id(self, call, key, lost) -> None:
        self._submit(Call(call, key), lost)

    def _submit(self, call: Call, lost: int, *, strict: bool = False) -> Any:
        sub = Submission(
            call.task_id, TASK, call.key, envelope(call.task_id), QUEUE, BROKER, owes=call.owes, awaited=call.awaited,
            wake=None if call.eta is None else states.After(call.eta / SECOND), deadline_at=call.expires,
            max_losses=call.max_losses, on_loss=call.on_loss, submitted_by="shop",
        )  # fmt: skip
        said = self._ask(lost, lambda ledger: ledger.submit(sub, on_conflict="raise" if strict else "return"))
        outcome, task_id = self.reference.submit(call, strict=strict)
        if isinstance(said, str):
            assert said == outcome
            return multiple()
        if not lost:  # after a lost reply one's own row is "own", a replayed one "existing"
            assert said.outcome == outcome
        assert (said.task_id, said.state) == (task_id, self.reference.rows[task_id].state)
        return task_id

    @rule(call=calls, old=st.integers(0, 1))
    def the_broker_is_down(self, call, old) -> None:
        row = self.reference.rows[call]
        number = max(1, row.envelope_no - old)
        self.ledger.unpublished(row_of(self.ledger, call).id, number)
        self.reference.unpublished(row, number)

    # Workers ------------------------------------------------------------------------------------------

    @rule(target=claims, call=calls, old=st.sampled_from([0, 1, None]), worker=st.sampled_from("xyz"), lost=lost)
    def claim(self, call, old, worker, lost) -> Any:
        row, token = self.reference.rows[call], self._name("c")
        number = None if old is None else max(1, row.envelope_no - old)
        said = self._ask(
            lost,
            lambda ledger: ledger.claim(call, token, owner=worker, pid=7, lease=LEASE / SECOND, envelope_no=number),
        )
        assert said.why == self.reference.claim(row, token, worker, LEASE, number)
        if said.claim is None:
            return multiple()
        held = (said.claim.claims, said.claim.token, said.claim.retries, said.claim.losses, said.claim.owes)
        assert held == (row.claims, token, row.retries, row.losses, row.owes)
        return said.claim

    @rule(held=claims, other=claims, lost=lost)  # a list of claims would be drawn, and given up, where there is none
    def renew(self, held: Claim, other: Claim, lost) -> None:
        both = {c.task_id: c for c in (held, other)}.values()
        said = self._ask(lost, lambda ledger: ledger.renew({c.task_id: c.token for c in both}, LEASE / SECOND))
        renewed = {c.task_id: self.reference.renew(c, LEASE) for c in both}
        assert said == {task_id: flag for task_id, flag in renewed.items() if flag is not None}

    @rule(held=claims, lost=lost)
    def succeed(self, held: Claim, lost) -> None:
        said = self._ask(
            lost,
            lambda ledger: ledger.succeed(held, b"42", JSON, owes=self._owes(held), actor="w", continuation_grace=30),
        )
        assert (said == FENCED) == (self.reference.succeed(held, b"42", REPUBLISH) == FENCED)

    @rule(held=claims, retry=st.sampled_from([None, 5, 40]), changed=st.booleans(), lost=lost)
    def fail(self, held: Claim, retry, changed, lost) -> None:
        again = None
        if retry is not None:
            sent = envelope(held.task_id) if changed else None
            again = states.Retry(states.After(retry), "again", held.retries + 1, sent)
        decide = fails(owes=self._owes(held), retry=again, token=held.token)
        expected = self.reference.fail(
            held, "permanent", REPUBLISH, None if retry is None else retry * SECOND, changed=changed
        )
        assert self._settle(held, decide, lost) == expected

    @rule(
        held=claims, kind=st.sampled_from(["condition", "sleep", "drain"]), wake=st.sampled_from([5, 40]),
        give_up=st.sampled_from([None, 20, 60]), lost=lost,
    )  # fmt: skip
    def wait(self, held: Claim, kind, wake, give_up, lost) -> None:
        told: dict[str, Any] = {"token": held.token, "owes": self._owes(held)}

        def decide(row: Any) -> states.Move:
            if kind == "drain":
                return states.drain(row, "shutdown", **told)
            asked = states.Wait(kind, "late", states.After(wake), give_up if kind == "condition" else None)
            return states.wait(row, asked, boom("gave up"), ring=30, **told)

        limit = None if give_up is None else give_up * SECOND
        expected = self.reference.wait(held, kind, wake * SECOND, limit)
        assert self._settle(held, decide, lost) == expected

    @rule(held=claims, lost=lost)
    def leave_as_cancelled(self, held: Claim, lost) -> None:
        owes = self._owes(held)
        expected = self.reference.leave_cancelled(held)
        decide = lambda row: states.cancelled(row, "told", token=held.token, owes=owes)  # noqa: E731 - as the others
        assert self._settle(held, decide, lost) == expected

    @rule(held=claims, name=st.sampled_from(["one", "two"]), lost=lost)
    def step(self, held: Claim, name, lost) -> None:
        if self.reference.live(held) and name in self.ledger.remembered(held).steps:
            return  # the product looks before it does a step
        content = Content(b"1", JSON)
        said = self._ask(lost, lambda ledger: ledger.record_step(held, name, content, seconds=0, actor="w"))
        assert (said or "done") == self.reference.step(held, name)

    @rule(held=claims, lost=lost)
    def its_process_dies(self, held: Claim, lost) -> None:
        said = self._ask(
            lost,
            lambda ledger: ledger.lose(held.task_id, held.token, gone(), owed_token=self._name("o"), actor="parent"),
        )
        expected = self.reference.lose(held, "worker_lost")
        assert said == expected or (lost and said is None)

    @rule(held=claims, lost=lost)
    def tell(self, held: Claim, lost) -> None:
        """Somebody has been told what an attempt, perhaps an old one, came to."""
        self._tell({held.task_id: held.token}, lost)

    @rule(lost=lost, old=st.booleans())
    def tell_what_is_owed(self, lost, old) -> None:
        """Under the latest tokens, or the first that were ever owed."""
        owed = list(self.owed.items())
        self._tell({task_id: token for token, task_id in (reversed(owed) if old else owed)}, lost)

    def _tell(self, tokens: dict[str, str], lost: int) -> None:
        said = self._ask(lost, lambda ledger: ledger.clear_continuations(tokens))
        expected = self.reference.tell(tokens)
        assert said == expected or lost

    # What takes several verbs in one order, which chance alone seldom finds ------------------------------

    @rule(target=claims, held=claims, zombie=st.sampled_from(["dies", "renews", "succeeds", "fails"]), lost=lost)
    def is_overtaken(self, held: Claim, zombie, lost) -> Any:
        """A lease passes, another worker runs the task, and the first one comes back."""
        self.time_passes(31)
        self.expire_leases(0)
        self.release(0)
        other = self.claim(held.task_id, 0, "y", 0)
        if zombie == "dies":
            self.its_process_dies(held, lost)
        elif zombie == "renews":
            self.renew(held, held, lost)
        elif zombie == "succeeds":
            self.succeed(held, lost)
        else:
            self.fail(held, 5, changed=False, lost=lost)
        return other

    @rule(target=claims, held=claims, times=st.integers(1, 4), give_up=st.sampled_from([20, 60]))
    def waits_again_and_again(self, held: Claim, times, give_up) -> Any:
        for _ in range(times):
            self.wait(held, "condition", 5, give_up, 0)
            self.time_passes(10)
            self.release(0)
            held = self.claim(held.task_id, 0, "z", 0)
            if not isinstance(held, Claim):  # it gave up, or runs elsewhere
                break
        return held

    @rule(target=claims, held=claims, old=st.sampled_from([1, 0]))
    def comes_back_with_another_message(self, held: Claim, old) -> Any:
        """And the old one is delivered again, or the new one."""
        self.fail(held, 5, changed=True, lost=0)
        self.time_passes(10)
        self.release(0)
        return self.claim(held.task_id, old, "x", 0)

    @rule(target=claims, held=claims, ends=st.sampled_from(["leaves", "fails", "dies"]))
    def is_cancelled_while_it_runs_and_replayed(self, held: Claim, ends) -> Any:
        self.cancel(held.task_id, 0)
        if ends == "leaves":
            self.leave_as_cancelled(held, 0)
        elif ends == "fails":
            self.fail(held, 5, changed=False, lost=0)
        else:
            self.its_process_dies(held, 0)
        self.replay(held.task_id, fresh=False, lost=0)
        return self.claim(held.task_id, 0, "x", 0)

    @rule(times=st.integers(1, 6))
    def a_queue_stays_busy(self, times) -> None:
        for _ in range(times):
            self.time_passes(700)
            self.ring(busy=True, refused=False, lost=0)

    # The sweep ----------------------------------------------------------------------------------------

    @rule(passed=seconds)
    def time_passes(self, passed) -> None:
        self.reference.now += passed * SECOND
        self.clock.set(self.reference.now)

    @rule(target=claims, passed=seconds, worker=st.sampled_from("xyz"), lost=lost)
    def a_sweeper_comes_and_a_worker_takes_what_it_rings(self, passed, worker, lost) -> Any:
        self.time_passes(passed)
        for sweep in (self.expire_leases, self.expire_deadlines, self.release, self.follow):
            sweep(lost)
        self.ring(busy=False, refused=False, lost=0)
        due = [r.task_id for r in self.reference.rows.values() if r.state == "queued"]
        return self.claim(due[0], 0, worker, lost) if due else multiple()

    @rule(lost=lost)
    def release(self, lost) -> None:
        self._ask(lost, lambda ledger: ledger.release(ALL, actor="sweep"))
        self.reference.release()

    @rule(lost=lost)
    def expire_leases(self, lost) -> None:
        said = self._ask(lost, lambda ledger: ledger.expire_leases(ALL, actor="sweep"))
        expected = self.reference.expire_leases()
        assert sorted(said) == sorted(expected) or lost

    @rule(lost=lost)
    def expire_deadlines(self, lost) -> None:
        self._ask(lost, lambda ledger: ledger.expire_deadlines(ALL, actor="sweep"))
        self.reference.expire_deadlines()

    @rule(lost=lost)
    def follow(self, lost) -> None:
        self._ask(lost, lambda ledger: ledger.follow(ALL, actor="sweep"))
        self.reference.follow()

    @rule(busy=st.booleans(), refused=st.booleans(), lost=lost)
    def ring(self, busy, refused, lost) -> None:
        rings, _ = self._ask(lost, lambda ledger: ledger.take_rings(BROKER, ALL, depths={QUEUE: int(busy)}))
        expected = self.reference.take_rings(busy=busy)
        assert sorted(r.task_id for r in rings) == sorted(expected) or lost
        if refused:
            self.ledger.ring_again([r.row_id for r in rings], at_once=True)
            self.reference.ring_again([self.reference.rows[r.task_id] for r in rings])

    # Operators ----------------------------------------------------------------------------------------

    @rule(call=calls, lost=lost)
    def cancel(self, call, lost) -> None:
        row_id = row_of(self.ledger, call).id
        said = self._ask(lost, lambda ledger: ledger.cancel_row(row_id, "not wanted", actor="ann"))
        assert said == self.reference.cancel(self.reference.rows[call])

    @rule(held=claims, expired=st.booleans(), lost=lost)
    def revoke(self, held: Claim, expired, lost) -> None:
        said = self._ask(
            lost,
            lambda ledger: ledger.revoke(held.task_id, held.token, expired=expired, reason="revoked", actor="celery"),
        )
        assert said == self.reference.revoke(self.reference.rows[held.task_id], held.token, expired=expired)

    @rule(call=calls, fresh=st.booleans(), lost=lost)
    def replay(self, call, fresh, lost) -> None:
        row_id = row_of(self.ledger, call).id
        said = self._ask(lost, lambda ledger: ledger.replay_row(row_id, "again", actor="ann", fresh=fresh))
        assert said == self.reference.replay(self.reference.rows[call], fresh=fresh) or lost

    # What must hold -----------------------------------------------------------------------------------

    @invariant()
    def ledger_and_reference_agree(self) -> None:
        stored = {row.task_id: row for row in stored_rows(self.ledger)}
        for row in self.reference.rows.values():
            there = stored.get(row.task_id)
            assert there is not None, f"{row.task_id} is gone"
            self._learn(row, there)
            differs = {n: (v, getattr(row, n)) for n, v in asdict(there).items() if v != getattr(row, n)}
            assert not differs, f"{row.task_id}: (stored, expected) {differs}"
        assert stored.keys() == self.reference.rows.keys()
        self.reference.hinted.clear()
        self.lossy = False

    def _learn(self, row: Row, there: Row) -> None:
        """Take over what the ledger chose itself: tokens, always fresh ones, and hints that were lost."""
        if row.continuation_pending == OURS and there.continuation_pending:
            assert there.continuation_pending not in self.owed, "a token was used twice"
            row.continuation_pending = there.continuation_pending
        if row.continuation_pending:
            self.owed[row.continuation_pending] = row.task_id
        fenced = row.events[-1:]
        if self.lossy and fenced[0][0] == "fenced" and there.events == row.events + fenced:
            row.events += fenced  # a refusal whose reply was lost is told twice
        if there.wake_at == self.reference.hinted.get(row.task_id, OURS):
            row.wake_at = there.wake_at

    def teardown(self) -> None:
        """Whatever was accepted comes to an end, and everybody is told; then the audit finds nothing."""
        if sys.exc_info()[0] is not None or not hasattr(self, "reference"):
            return
        for _ in range(12):
            self.time_passes(700)
            for sweep in (self.expire_leases, self.expire_deadlines, self.release, self.follow):
                sweep(lost=0)
            self.ring(busy=False, refused=False, lost=0)
            for row in list(self.reference.rows.values()):
                if row.state == "queued":
                    self.succeed(self.claim(row.task_id, 0, "x", 0), 0)
            self.ledger_and_reference_agree()
            self.tell_what_is_owed(lost=0, old=False)
            self.ledger_and_reference_agree()
        left = {r.task_id: r.state for r in self.reference.rows.values() if r.finished_at is None or r.publish_at}
        assert not left, f"it never ends: {left}"
        assert self.ledger.verify() == []

    # How it is done -----------------------------------------------------------------------------------

    def _ask(self, lost: int, verb: Callable[[Ledger], Any]) -> Any:
        """Ask the ledger; once more where the reply was lost. A refusal is answered by its name."""
        try:
            if not lost:
                return verb(self.ledger)
            self.lossy = True
            self.wire.lose(lost)
            try:
                return verb(self.far)
            except LedgerUnavailable:
                return verb(self.far)
        except (LeaseLost, KeyConflict, TaskIdConflict) as refused:
            return type(refused).__name__
        finally:
            if lost:
                self.wire.lose(0)

    def _settle(self, held: Claim, decide: Callable[[Any], states.Move], lost: int) -> str:
        return str(self._ask(lost, lambda ledger: ledger.settle(held, decide, actor="w")))

    def _owes(self, held: Claim) -> bool:
        return held.owes

    def _name(self, kind: str) -> str:
        self.number += 1
        return f"{kind}{self.number}"
