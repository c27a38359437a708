"""The life of one row, as a machine small enough to look at every order of events.

Two workers with a pool process each, the sweep, a broker that loses and doubles messages, a database whose replies get
lost and that may forget the last claim, an operator. What a row becomes is decided by the product's own table of moves
(`celery_durable.states`); what is modelled here is who acts when, and what is proven before a write. `Rules` switches
the protocol's rules off one by one. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable import failures, states
from celery_durable.records import Envelope

if TYPE_CHECKING:
    from collections.abc import Iterator

LOSS = failures.loss("worker_lost", "WorkerLostError", "signal 9", worker="w", pid=1, claim=1)
ERROR = failures.loss("permanent", "ValueError", "no", worker="w", pid=1, claim=1)
ANOTHER = Envelope(b"[]", "application/json", "utf-8", {}, {}, "", "celery", ())
IDLE = ("idle",)


@dataclass(frozen=True)
class Rules:
    """The protocol as it is; a field that is changed takes a rule out. Numbers are those of docs/protocol.md."""

    fence: bool = True  # every write of a claimed row proves its claim
    token: bool = True  # 1: by a random token, not by the number of the claim alone
    lost_reply: str = "token"  # 1: by what a claim is known for one's own: "token" or "number"
    losing: str = "token"  # 1: by what the report of a dead process finds its claim: "token" or "any"
    envelope: bool = True  # 2: a doorbell rings for its own message only
    queued_rings: bool = True  # 7: whatever is queued is due at some time
    overtaken: bool = True  # 8: a busy queue puts a row off a few times only
    all_owe: bool = True  # 13: every end owes its outcome, not a success alone
    clearing: str = "token"  # 13: what is told is cleared by its own token: "token" or "any"
    cancel_sticks: bool = True  # 14: a flagged row that is lost, waits or fails ends cancelled
    # Circumstances.
    faults: int = 1
    busy: bool = False  # other traffic keeps the queue's depth above zero
    forgets: bool = False  # the database may forget the last claim (rule 1)
    signs: bool = False  # workers bury one another by a sign of death, which may be wrong (rule 9)
    operator: tuple[str, ...] = ()


class Row(NamedTuple):
    """What the moves and the proofs look at; times are "-" (none), "later" or "due"."""

    state: str = "queued"
    claims: int = 0
    token: int = 0
    lease: str = "-"
    publish: str = "later"
    wake: str = "-"
    owed: int = 0
    losses: int = 0
    retries: int = 0
    envelope_no: int = 1
    flagged: bool = False
    deferred: bool = False
    fresh_claim: bool = False
    # What the moves ask for beside that.
    max_losses: int = 2
    on_loss: str = "retry"
    owes: bool = True
    cancel_reason: str | None = None
    waiting_from: int | None = None
    wait_event: str | None = None
    waits: int = 0
    progressed: int = 0
    replaces: int = 0
    now: int = 0

    @property
    def cancel_requested_at(self) -> int | None:
        return 0 if self.flagged else None


class World(NamedTuple):
    """Everything; `tokens` and `outcomes` count what was given out, `told`, `done`, `called_off` are a witness's."""

    row: Row = Row()
    messages: tuple[int, ...] = (1,)  # their envelope numbers
    pools: tuple[tuple[Any, ...], ...] = (IDLE, IDLE)
    sweeping: int = 0  # the envelope number that a sweeper is about to publish
    tokens: int = 0
    outcomes: int = 0
    told: bool = False
    done: bool = False
    called_off: bool = False
    faults: int = 0
    operator: tuple[str, ...] = ()


class Step(NamedTuple):
    what: str
    fault: bool
    world: World
    wrong: str = ""


def begin(rules: Rules) -> World:
    return World(faults=rules.faults, operator=rules.operator)


def over(world: World) -> bool:
    """What has to be reachable from everywhere without a fault: the row has ended, and it was told how."""
    return world.row.state in states.TERMINAL and world.told


def passes(rules: Rules, row: Row, claims: int, token: int) -> bool:
    """The condition of every write of a claimed row."""
    if row.state != states.RUNNING:
        return False
    return not rules.fence or (row.claims == claims and (not rules.token or row.token == token))


def moved(rules: Rules, world: World, move: states.Move) -> World:
    """Write a move of the product's to the row."""
    row, changes = world.row, move.changes
    outcomes = world.outcomes
    owed = 0
    if move.to in states.TERMINAL:
        outcomes += 1
        pays = changes["continuation_pending"] is not None and (rules.all_owe or move.to == states.SUCCEEDED)
        owed = outcomes if pays else 0
    publish = _time(changes.get("publish_at"))
    if (move.to == states.QUEUED and not rules.queued_rings) or (move.to in states.TERMINAL and not owed):
        publish = "-"
    row = row._replace(
        state=move.to, lease="-", publish=publish, wake=_time(changes.get("wake_at")), owed=owed, deferred=False,
        fresh_claim=False, token=row.token if changes.get("claim_token", "") == "" else 0,
        losses=changes.get("losses", row.losses), retries=changes.get("retries", row.retries),
        envelope_no=row.envelope_no + (move.envelope is not None), waits=changes.get("waits", row.waits),
        flagged=row.flagged and "cancel_requested_at" not in changes,
    )  # fmt: skip
    told = world.told and move.to in states.TERMINAL
    return world._replace(row=row, outcomes=outcomes, told=told, done=world.done or move.to == states.SUCCEEDED)


def _time(when: object) -> str:
    if when is None:
        return "-"
    return "due" if isinstance(when, states.After) and not when.seconds else "later"


def lost(rules: Rules, world: World, counted: int = 1) -> World:
    row = world.row if rules.cancel_sticks else world.row._replace(flagged=False)
    return moved(rules, world, states.lose(row, LOSS, "owed", counted=counted))


def steps(rules: Rules, world: World) -> Iterator[Step]:
    """Everything that can happen next. Nobody may count on an operator: what he does is marked as a fault, too."""
    for step in _all(rules, world):
        if not step.fault:
            yield step
        elif world.faults:
            yield step._replace(world=step.world._replace(faults=world.faults - 1))
    yield from _operator(rules, world)


def _all(rules: Rules, world: World) -> Iterator[Step]:
    yield from _broker(world)
    yield from _time_passes(rules, world)
    for n in (0, 1):
        yield from _pool(rules, world, n)
    yield from _sweep(rules, world)


def _in_pool(world: World, n: int, process: tuple[Any, ...]) -> World:
    pools = list(world.pools)
    pools[n] = process
    return world._replace(pools=tuple(pools))


def _broker(world: World) -> Iterator[Step]:
    for message in sorted(set(world.messages)):
        left = list(world.messages)
        left.remove(message)
        taken = world._replace(messages=tuple(left))
        yield Step("the broker loses a message", True, taken)
        if len(world.messages) < 2:
            yield Step("the broker doubles a message", True, world._replace(messages=(message, message)))
        for n in (0, 1):
            if world.pools[n] == IDLE:
                yield Step(f"{n} gets a message", False, _in_pool(taken, n, ("got", message)))


def _time_passes(rules: Rules, world: World) -> Iterator[Step]:
    row = world.row
    for field in ("publish", "wake"):
        if getattr(row, field) == "later":
            yield Step(f"{field}_at comes due", False, world._replace(row=row._replace(**{field: "due"})))
    if row.state == states.RUNNING and row.lease == "held":
        held = any(p[0] in {"runs", "ends"} and p[2] == row.token for p in world.pools)
        yield Step("the lease passes", held, world._replace(row=row._replace(lease="passed")))
        if rules.signs:
            yield Step("its worker is buried", held, lost(rules, world, counted=0))
    if rules.forgets and row.state == states.RUNNING and row.fresh_claim:
        before = row._replace(
            state="queued", claims=row.claims - 1, token=0, lease="-", publish="due", fresh_claim=False
        )
        yield Step("the database forgets the claim", True, world._replace(row=before))


def _pool(rules: Rules, world: World, n: int) -> Iterator[Step]:
    process = world.pools[n]
    if process == IDLE:
        return
    yield from {
        "got": _claims, "unsure": _claims, "runs": _runs, "ends": _ends, "tells": _tells, "clears": _tells,
        "dead": _reported,
    }[process[0]](rules, world, n, *process[1:])  # fmt: skip
    if process[0] != "dead":
        token = process[2] if process[0] in {"runs", "ends"} else 0
        yield Step(f"process {n} is killed", True, _in_pool(world, n, ("dead", token) if token else IDLE))
        yield Step(f"worker {n} is killed", True, _in_pool(world, n, IDLE))


def _claims(rules: Rules, world: World, n: int, message: int, number: int = 0, token: int = 0) -> Iterator[Step]:
    row = world.row
    own = row.token == token if rules.lost_reply == "token" else row.claims == number
    if token and row.state == states.RUNNING and own:  # after a lost reply
        wrong = "" if row.token == token else "two attempts hold one claim"
        yield Step(f"{n} finds its claim", False, _in_pool(world, n, ("runs", row.claims, row.token)), wrong)
        return
    if row.state == states.QUEUED and (not rules.envelope or message == row.envelope_no):
        wrong = "an old message's body runs" if message != row.envelope_no else ""
        wrong = wrong or ("a finished key runs again" if world.done else "")
        wrong = wrong or ("cancelled work runs again" if world.called_off else "")
        fence, mine = row.claims + 1, world.tokens + 1
        now = row._replace(state="running", claims=fence, token=mine, lease="held", publish="-", fresh_claim=True)
        after = world._replace(row=now, tokens=mine)
        yield Step(f"{n} claims", False, _in_pool(after, n, ("runs", fence, mine)), wrong)
        yield Step(f"{n} claims, the reply is lost", True, _in_pool(after, n, ("unsure", message, fence, mine)), wrong)
        unheard = world._replace(tokens=mine)
        yield Step(f"{n}'s claim is lost", True, _in_pool(unheard, n, ("unsure", message, fence, mine)))
    elif row.state in states.TERMINAL and row.owed:
        yield Step(f"{n} finds an outcome that is owed", False, _in_pool(world, n, ("tells", row.owed)))
    else:
        yield Step(f"{n} drops the message", False, _in_pool(world, n, IDLE))


def _runs(rules: Rules, world: World, n: int, claims: int, token: int) -> Iterator[Step]:
    row = world.row
    for end in ("succeeds", "fails", *(("retries",) if row.retries < 1 else ())):
        yield Step(f"{n}'s body {end}", False, _in_pool(world, n, ("ends", claims, token, end)))
    if row.flagged and passes(rules, row, claims, token):
        yield Step(f"{n}'s body sees the cancellation", False, _in_pool(world, n, ("ends", claims, token, "stops")))
    if row.lease == "passed" and passes(rules, row, claims, token):
        wrong = "" if row.token == token else "a stale claim is renewed"
        yield Step(f"{n}'s lease is renewed", False, world._replace(row=row._replace(lease="held")), wrong)


def _ends(rules: Rules, world: World, n: int, claims: int, token: int, end: str) -> Iterator[Step]:
    row = world.row
    if not passes(rules, row, claims, token):
        reached = {"succeeds": "succeeded", "fails": "dead", "stops": "cancelled"}.get(end)
        own = row.state == reached and row.claims == claims and row.token == token
        yield Step(f"{n} is refused", False, _in_pool(world, n, ("tells", row.owed) if own and row.owed else IDLE))
        return
    seen = row if rules.cancel_sticks else row._replace(flagged=False)
    retry = states.Retry(states.After(60), "retry 1", row.retries + 1, ANOTHER)
    move = {
        "succeeds": lambda: states.Move(
            "succeed", states.SUCCEEDED, states.into_terminal(states.SUCCEEDED, owed="owed", ring=30)
        ),
        "fails": lambda: states.fail(seen, ERROR, "owed", owes=True, ring=30, retry=None),
        "retries": lambda: states.fail(seen, ERROR, "owed", owes=True, ring=30, retry=retry),
        "stops": lambda: states.cancelled(seen, "", token="owed", owes=True),
    }[end]()
    wrong = "" if row.token == token else "a stale claim settles the row"
    after = moved(rules, world, move)
    process = ("tells", after.row.owed) if after.row.owed else IDLE
    yield Step(f"{n} settles: {end}", False, _in_pool(after, n, process), wrong)
    yield Step(f"{n} settles: {end}; the reply is lost", True, after, wrong)


def _tells(rules: Rules, world: World, n: int, owed: int) -> Iterator[Step]:
    row = world.row
    if world.pools[n][0] == "tells":
        current = row.state in states.TERMINAL and owed == world.outcomes
        told = world._replace(told=world.told or current)
        yield Step(f"{n} tells outcome {owed}", False, _in_pool(told, n, ("clears", owed)))
        return
    if row.owed and (rules.clearing == "any" or row.owed == owed):
        row = row._replace(owed=0, publish="-")
    yield Step(f"{n} clears what is told", False, _in_pool(world._replace(row=row), n, IDLE))


def _reported(rules: Rules, world: World, n: int, token: int) -> Iterator[Step]:
    row, free = world.row, _in_pool(world, n, IDLE)
    if row.state != states.RUNNING or (rules.losing == "token" and row.token != token):
        yield Step(f"worker {n} finds nothing to lose", False, free)
        return
    wrong = "" if row.token == token else "a dead process ends another one's claim"
    yield Step(f"worker {n} records a loss", False, lost(rules, free), wrong)


def _sweep(rules: Rules, world: World) -> Iterator[Step]:
    row = world.row
    if world.sweeping:
        rung = (*world.messages, world.sweeping)[-2:]
        yield Step("the sweep publishes", False, world._replace(sweeping=0, messages=tuple(sorted(rung))))
        yield Step("the sweeper is killed", True, world._replace(sweeping=0))
        return
    if row.state == states.WAITING and row.wake == "due":
        released = states.Move("release", states.QUEUED, states.into_queued())
        yield Step("the sweep releases", False, moved(rules, world, released))
    if row.state == states.RUNNING and row.lease == "passed":
        yield Step("the sweep ends a lease", False, lost(rules, world))
    if row.publish == "due":
        deep = rules.busy or world.messages
        if deep and not (rules.overtaken and row.deferred):
            later = row._replace(publish="later", deferred=True)
            yield Step("the sweep puts the row off", False, world._replace(row=later))
        else:
            later = row._replace(publish="later", deferred=False)
            yield Step("the sweep moves publish_at", False, world._replace(row=later, sweeping=row.envelope_no))


def _operator(rules: Rules, world: World) -> Iterator[Step]:
    row = world.row
    left = world._replace(operator=world.operator[1:])
    if world.operator[:1] == ("cancel",) and row.state not in states.TERMINAL:
        move = states.cancel(row, "owed", "not wanted")
        if row.state == states.RUNNING:
            flagged = left._replace(row=row._replace(flagged=True), called_off=True)
            yield Step("the operator flags the row", True, flagged)
        else:
            yield Step("the operator cancels", True, moved(rules, left, move))
    if world.operator[:1] == ("replay",) and row.state in {states.DEAD, states.CANCELLED}:
        again = moved(rules, left, states.replay("try again"))
        yield Step("the operator replays", True, again._replace(told=False, called_off=False))
