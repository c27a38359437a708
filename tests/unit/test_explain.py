"""Every state, and every branch within it, has an answer: a sentence, a time, evidence."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from celery_durable import states
from celery_durable.explain import Explanation, Facts, explain, look_up
from celery_durable.records import Event, Failure, Pause, Record, Worker
from celery_durable.wording import brief, clock, counted, span

SECOND = 1_000_000
NOW = int(datetime(2030, 1, 2, 12, 3, 23, tzinfo=timezone.utc).timestamp()) * SECOND


def at(seconds: float) -> int:
    return NOW + round(seconds * SECOND)


BARE = Record(
    id=7, task_id="t-7", task="shop.charge", key="order-7", state="queued", queue="reports", priority=None,
    root_id=None, parent_id=None, claims=0, losses=0, max_losses=3, retries=0, publish_count=1, envelope_no=1,
    submitted_at=at(-12), submitted_by="web-1", started_at=None, finished_at=None, lease_owner=None,
    lease_expires_at=None, lease_pid=None, claim_token=None, wait_kind=None, wait_reason=None, wait_since=None,
    wake_at=None, wait_event=None, waits=0, waiting_from=None, give_up_at=None, deadline_at=None,
    publish_at=at(18), published_at=at(-12), continuation_pending=None, duplicate_of=None,
    cancel_requested_at=None, cancel_reason=None, failure_kind=None, result=None,
    result_type=None, owes=False, broker="redis-a", now=NOW,
)  # fmt: skip
W1 = Worker(
    id="w1@host/ab12", hostname="w1@host", pid=11, queues=("celery", "reports"), tasks=("shop.charge",),
    broker="redis-a", started_at=at(-600), heartbeat_at=at(-2), phase="running", running=4, lease=30, now=NOW,
)  # fmt: skip
GONE = replace(W1, hostname="w9@host", heartbeat_at=at(-180))
STOPPED = replace(W1, hostname="w8@host", phase="stopped", heartbeat_at=at(-5))
BOOM = Failure(
    kind="transient", exception="httpx.ConnectTimeout", message="timed out\nafter 5 s", claim=2,
    worker="w1@host", pid=12, occurred_at=at(-30),
)  # fmt: skip


def event(verb: str, seconds: float, source: str | None, target: str, **more: Any) -> Event:
    given = {"claim": 1, "actor": "w1@host", "reason": ""} | more
    return Event(verb=verb, at=at(seconds), source=source, target=target, **given)


SUBMITTED = event("submit", -12, None, "queued", actor="web-1")
LOST = event("lose", -4, "running", "queued", reason="signal 9")
RELEASED = event("release", -3, "waiting", "queued", reason="retry is due")


BANK = Pause("queue", "reports", "the bank is closed", "ann", at(-600), None, NOW)
NIGHT = Pause("task", "shop.charge", "night", "bob", at(-5), at(60), NOW)


def queued(**changes: Any) -> Record:
    return replace(BARE, **changes)


def running(**changes: Any) -> Record:
    given = {
        "state": "running", "claims": 1, "started_at": at(-12), "lease_owner": W1.id, "lease_pid": 4242,
        "lease_expires_at": at(18), "publish_at": None,
    }  # fmt: skip
    return replace(BARE, **(given | changes))


def waiting(kind: str, reason: str = "a reason", **changes: Any) -> Record:
    given = {"wait_kind": kind, "wait_reason": reason, "wait_since": at(-30), "wake_at": at(97)}
    return replace(BARE, **({"state": "waiting", "publish_at": None} | given | changes))


def over(state: str, **changes: Any) -> Record:
    given = {"state": state, "claims": 1, "started_at": at(-9), "finished_at": at(-8), "publish_at": None}
    return replace(BARE, **(given | changes))


def facts(**given: Any) -> Facts:
    return Facts(**({"now": NOW, "workers": [W1]} | given))


CASES: dict[str, tuple[Record, Facts, str]] = {
    # queued: nobody there
    "no worker at all": (queued(), facts(workers=[]), "no live worker: none is registered"),
    "only a silent worker": (
        queued(), facts(workers=[GONE]), "no live worker: the last one heard of was w9@host, 3 min ago",
    ),
    "only a stopped worker": (
        queued(), facts(workers=[GONE, STOPPED]), "no live worker: the last one heard of was w8@host, 5 s ago",
    ),
    "another broker": (
        queued(), facts(workers=[replace(W1, broker="redis-b")]),
        "no live worker uses its broker 'redis-a': the live ones use 'redis-b'",
    ),
    "another queue": (
        queued(), facts(workers=[replace(W1, queues=("celery",))]), "no live worker consumes queue 'reports'",
    ),
    "its queue on another broker only": (
        queued(), facts(workers=[replace(W1, queues=("celery",)), replace(W1, broker="redis-b")]),
        "no live worker consumes queue 'reports'",
    ),
    "unknown task": (
        queued(), facts(workers=[replace(W1, tasks=("shop.mail",))]),
        "no live worker that consumes queue 'reports' knows the task 'shop.charge'",
    ),
    "paused workers": (
        queued(), facts(workers=[replace(W1, phase="paused")]),
        "the workers that consume queue 'reports' take no new work: w1@host is paused",
    ),
    # queued: a worker could
    "behind others": (
        queued(), facts(ahead=340, events=[SUBMITTED]), "message sent 12 s ago, 340 tasks are ahead of it",
    ),
    "behind one": (queued(), facts(ahead=1), "message sent 12 s ago, 1 task is ahead of it"),
    "next in line": (
        queued(), facts(ahead=0, events=[SUBMITTED]), "message sent 12 s ago, no task is ahead of it",
    ),
    "nobody counted": (queued(), facts(), "message sent 12 s ago"),
    "one of Celery's own tasks": (
        queued(task="celery.chord_unlock"), facts(ahead=0), "message sent 12 s ago, no task is ahead of it",
    ),
    "a worker that does not list its tasks": (
        queued(), facts(workers=[replace(W1, tasks=())], ahead=2), "message sent 12 s ago, 2 tasks are ahead of it",
    ),
    "unclaimed for long": (
        queued(publish_count=3, published_at=at(-90), publish_at=at(30)), facts(ahead=0),
        ("message sent 90 s ago, no task is ahead of it, yet nobody has claimed it (message sent 3 times): "
        "the workers are busy, or the message was lost; it is sent again at 12:03:53"),
    ),
    "the broker forgot": (
        queued(), facts(ahead=3, depth=0),
        "message sent 12 s ago, but the broker holds none any more: it is sent again at 12:03:41",
    ),
    "the broker refused": (
        queued(publish_count=0), facts(events=[SUBMITTED]),
        "the broker did not take its message; it is tried again at 12:03:41",
    ),
    "released, not rung yet": (
        queued(publish_at=at(-1)), facts(events=[SUBMITTED, RELEASED]),
        "its message has been due since 12:03:22: the next sweep of a live worker sends it",
    ),
    "scheduled, released, never rung": (
        queued(publish_count=0, published_at=None, publish_at=at(2)), facts(),
        "its message is due at 12:03:25: the next sweep of a live worker sends it",
    ),
    "nobody rings": (
        queued(publish_at=at(-75)), facts(),
        ("its message has been due since 12:02:08 (75 s), but no worker of its broker sends it: "
        "no sweep gets through"),
    ),
    "lost before": (
        queued(losses=1, claims=1, started_at=at(-10), published_at=at(-1)), facts(ahead=5, events=[SUBMITTED, LOST]),
        "message sent 1 s ago, 5 tasks are ahead of it; queued again after loss 1 of 3: signal 9",
    ),
    "expired, sweep is near": (
        queued(deadline_at=at(-1)), facts(),
        "expired at 12:03:22 before anybody ran it: the next sweep of a live worker takes it up",
    ),
    "expired, nobody sweeps": (
        queued(deadline_at=at(-1)), facts(workers=[]),
        "expired at 12:03:22 before anybody ran it: no live worker sweeps the ledger",
    ),
    # running
    "running": (
        running(), facts(), "running on w1@host (pid 4242) since 12:03:11, lease until 12:03:41",
    ),
    "running on a forgotten worker": (
        running(lease_owner="w3@host/77aa", lease_pid=None), facts(),
        "running on w3@host since 12:03:11, lease until 12:03:41",
    ),
    "cancellation asked for": (
        running(cancel_requested_at=at(-3), cancel_reason="wrong amount"), facts(),
        ("running on w1@host (pid 4242) since 12:03:11, lease until 12:03:41; "
        "its cancellation was asked for at 12:03:20: wrong amount"),
    ),
    "lease passed": (
        running(lease_expires_at=at(-2)), facts(),
        ("the lease of w1@host (pid 4242), running since 12:03:11, passed at 12:03:21, 2 s ago: "
        "the next sweep of a live worker takes it up"),
    ),
    "lease passed, nobody sweeps": (
        running(lease_expires_at=at(-2)), facts(workers=[GONE]),
        ("the lease of w9@host (pid 4242), running since 12:03:11, passed at 12:03:21, 2 s ago: "
        "no live worker sweeps the ledger"),
    ),
    "lease passed long ago": (
        running(lease_expires_at=at(-300)), facts(),
        ("the lease of w1@host (pid 4242), running since 12:03:11, passed at 11:58:23, 5 min ago: "
        "w1@host should have swept it, but no sweep gets through"),
    ),
    # waiting
    "retry of so many": (
        waiting("retry", retries=3, failure=BOOM), facts(max_retries=20),
        "retry 3 of 20 at 12:05:00 after ConnectTimeout: timed out",
    ),
    "retry without a limit": (
        waiting("retry", retries=3, failure=BOOM), facts(), "retry 3 at 12:05:00 after ConnectTimeout: timed out",
    ),
    "retry without a failure row": (
        waiting("retry", "ConnectTimeout", retries=1), facts(), "retry 1 at 12:05:00 after ConnectTimeout",
    ),
    "scheduled": (
        waiting("scheduled", "not before its ETA", wake_at=at(86_400)), facts(),
        "scheduled for 2030-01-03 12:03:23: not before its ETA",
    ),
    "duplicate": (
        waiting("duplicate", duplicate_of=3), facts(holder=replace(running(), task_id="t-3")),
        "waits for t-3 (running), which holds the same key 'order-7', to take its outcome",
    ),
    "duplicate of nobody": (
        waiting("duplicate", duplicate_of=3), facts(),
        "waits for the task that held the same key 'order-7', which is gone: it ends as dead",
    ),
    "condition": (
        waiting("condition", "exchange rates have not arrived"), facts(),
        "waits for a condition: exchange rates have not arrived; looked at again at 12:05:00",
    ),
    "event": (
        waiting("event", "waits for event 'paid'", wait_event="paid", give_up_at=at(97)), facts(),
        "waits for event 'paid', until 12:05:00 at most (its timeout)",
    ),
    "event that has arrived": (
        waiting("event", "waits for event 'paid'", wait_event="paid", wake_at=at(-1), give_up_at=at(97)), facts(),
        "event 'paid' has arrived: it is run again",
    ),
    "event that timed out": (
        waiting("event", "waits for event 'paid'", wait_event="paid", wake_at=at(-1), give_up_at=at(-1)), facts(),
        "waits for event 'paid', until 12:03:22 at most (its timeout)",
    ),
    "sleep": (waiting("sleep", "cooling off"), facts(), "sleeps until 12:05:00: cooling off"),
    "paused for good": (
        waiting("paused", "queue 'reports' is paused by ann: the bank is closed"), facts(pauses=[BANK]),
        "queue 'reports' is paused by ann: the bank is closed (since 11:53:23, until it is resumed)",
    ),
    "paused for a time": (
        waiting("paused"), facts(pauses=[replace(BANK, target="other"), replace(NIGHT, until=at(60))]),
        "task 'shop.charge' is paused by bob: night (since 12:03:18, until 12:04:23)",
    ),
    "paused no more": (
        waiting("paused", wake_at=at(1)), facts(), "the pause that held it back is over, it is queued at 12:03:24",
    ),
    "queued behind a pause": (
        queued(), facts(pauses=[BANK], ahead=3),
        ("queue 'reports' is paused by ann: the bank is closed (since 11:53:23, until it is resumed); "
        "the first worker that meets it holds it back"),
    ),
    "requeue": (
        waiting("requeue", "rejected with requeue: busy", wake_at=at(1)), facts(),
        "rejected with requeue: busy: queued again at 12:03:24",
    ),
    "drain": (
        waiting("drain", "w1@host stops", wake_at=at(1)), facts(),
        "gave way to a worker that shuts down (w1@host stops): queued at 12:03:24",
    ),
    "unregistered": (
        waiting("unregistered"), facts(workers=[replace(W1, tasks=("shop.mail",))]),
        "no live worker knows the task 'shop.charge': deploy one that does, or cancel it",
    ),
    "unregistered, nobody there": (
        waiting("unregistered"), facts(workers=[GONE]),
        "no live worker: nobody can tell whether the task 'shop.charge' is known",
    ),
    "unregistered no more": (
        waiting("unregistered", wake_at=at(1)), facts(),
        "the task 'shop.charge' is known to w1@host now: it is queued at 12:03:24",
    ),
    "any other wait": (
        waiting("breaker", "the bank is down"), facts(),
        "waits (breaker): the bank is down; looked at again at 12:05:00",
    ),
    "due, sweep is near": (waiting("sleep", "night", wake_at=at(-3)), facts(), "sleeps until 12:03:20: night"),
    "overdue": (
        waiting("sleep", "night", wake_at=at(-9)), facts(),
        ("sleeps until 12:03:14: night; due for 9 s already: "
        "the next sweep of a live worker takes it up"),
    ),
    "overdue, nobody sweeps": (
        waiting("sleep", "night", wake_at=at(-900)), facts(workers=[]),
        "sleeps until 11:48:23: night; due for 15 min already: no live worker sweeps the ledger",
    ),
    # over
    "succeeded": (over("succeeded", claims=2), facts(), "succeeded at 12:03:15 on attempt 2"),
    "succeeded, untold": (
        over("succeeded", continuation_pending="x", publish_at=at(20)), facts(),
        "succeeded at 12:03:15 on attempt 1; its outcome has still to be told to those who wait for it",
    ),
    "succeeded as another": (
        over("succeeded", duplicate_of=3), facts(holder=replace(BARE, task_id="t-3")),
        "succeeded at 12:03:15 with the outcome of t-3",
    ),
    "succeeded as one that is gone": (
        over("succeeded", duplicate_of=3), facts(),
        "succeeded at 12:03:15 with the outcome of the task that held its key",
    ),
    "dead": (
        over("dead", failure_kind="permanent", claims=3, losses=1, failure=BOOM), facts(),
        "dead since 12:03:15, after 3 attempts and 1 loss: permanent, ConnectTimeout: timed out",
    ),
    "dead without a failure row": (
        over("dead", failure_kind="poison", claims=3, losses=3), facts(),
        "dead since 12:03:15, after 3 attempts and 3 losses: poison",
    ),
    "dead before it ran": (
        over("dead", failure_kind="expired", claims=0), facts(failures=[BOOM]),
        "dead since 12:03:15, before any attempt: expired, ConnectTimeout: timed out",
    ),
    "cancelled": (
        over("cancelled", cancel_reason="wrong amount"),
        facts(events=[event("cancel", -8, "queued", "cancelled", actor="ann", reason="wrong amount")]),
        "cancelled at 12:03:15 by ann: wrong amount",
    ),
    "cancelled as another": (
        over("cancelled", duplicate_of=3),
        facts(events=[event("follow", -8, "waiting", "cancelled", reason="same outcome as t-3")]),
        "cancelled at 12:03:15: same outcome as t-3",
    ),
    "cancelled by nobody known": (over("cancelled"), facts(), "cancelled at 12:03:15: no reason was given"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_reason(case):
    record, known, reason = CASES[case]
    assert explain(record, known).reason == reason


@pytest.mark.parametrize("case", CASES)
def test_an_answer_is_one_sentence_with_evidence_and_a_time_while_it_is_live(case):
    record, known, _ = CASES[case]
    answer = explain(record, known)
    assert "\n" not in answer.reason
    assert "unknown" not in answer.reason
    assert answer.evidence
    assert all("\n" not in e for e in answer.evidence)
    if record.state in states.LIVE or record.continuation_pending:
        assert answer.wake_at is not None
    else:
        assert answer.wake_at is None


SEEN = {
    "queued": (queued(publish_at=None), "seen queued at 12:03:18; it is only observed"),
    "running": (running(lease_expires_at=None), "seen running on w1@host at 12:03:18; it is only observed"),
    "waiting": (
        waiting("retry", "to be tried again", wake_at=None),
        "seen waiting at 12:03:18: to be tried again; it is only observed",
    ),
    "succeeded": (over("succeeded"), "seen succeeded at 12:03:18; it is only observed"),
    "dead": (
        over("dead", failure_kind="permanent", failure=BOOM),
        ("dead since 12:03:15, after 1 attempt and 0 losses: permanent, ConnectTimeout: timed out; "
        "it was only observed: submit it anew to run it again"),
    ),
    "cancelled": (over("cancelled"), "seen cancelled at 12:03:18; it is only observed"),
}  # fmt: skip


@pytest.mark.parametrize("state", states.STATES)
def test_what_is_only_observed_says_so_and_promises_nothing(state):
    record, reason = SEEN[state]
    answer = explain(replace(record, observed=True), facts(events=[event("observe", -5, None, state)], pauses=[BANK]))
    assert answer.reason == reason
    assert answer.wake_at is None
    assert not [e for e in answer.evidence if "replay" in e]


@pytest.mark.parametrize("kind", ["retry", "scheduled", "duplicate", "condition", "event", "sleep", "paused", "requeue",
                                  "drain", "unregistered"])  # fmt: skip
def test_every_kind_of_wait_has_a_sentence_of_its_own(kind):
    told = explain(waiting(kind, wait_event="paid"), facts()).reason
    assert f"waits ({kind})" not in told


def test_every_state_is_covered():
    assert {record.state for record, _, _ in CASES.values()} == set(states.STATES)


WAKES = [(queued(), at(18)), (running(), at(18)), (waiting("sleep"), at(97)), (over("succeeded"), None)]


@pytest.mark.parametrize(("record", "when"), WAKES)
def test_when_it_is_looked_at_again(record, when):
    assert explain(record, facts()).wake_at == when


EVIDENCE = [
    ("its submission", queued(), facts(), "submitted at 12:03:11 by web-1 to queue 'reports'"),
    ("an unnamed submitter", queued(submitted_by=""), facts(), "submitted at 12:03:11 to queue 'reports'"),
    ("workers", queued(), facts(), "w1@host (pid 11, running) consumes 'celery', 'reports' and runs 4"),
    ("how it was queued", queued(), facts(events=[SUBMITTED, RELEASED]), "queued since 12:03:20 (release)"),
    ("messages", queued(), facts(), "message sent 1 time, last at 12:03:11; the next is due at 12:03:41"),
    ("no message", queued(publish_count=0), facts(), "no message has been sent yet; the next is due at 12:03:41"),
    ("depth", queued(), facts(depth=1), "the broker holds 1 message in queue 'reports'"),
    ("a deadline", queued(deadline_at=at(60)), facts(), "it expires at 12:04:23 unless it runs before"),
    ("losses", queued(losses=2), facts(), "2 losses so far, 3 end it"),
    (
        "attempts",
        waiting("sleep", claims=2, started_at=at(-40)),
        facts(),
        "2 attempts so far, the last started at 12:02:43",
    ),
    (
        "failures",
        queued(),
        facts(failures=[BOOM]),
        "attempt 2 failed at 12:02:53 (transient): ConnectTimeout: timed out",
    ),
    ("this attempt", running(claims=2), facts(), "attempt 2 started at 12:03:11, 12 s ago"),
    ("its worker", running(), facts(), "w1@host is running: it reported itself 2 s ago"),
    (
        "its dead worker",
        running(),
        facts(workers=[replace(W1, heartbeat_at=at(-90))]),
        "w1@host is gone: it reported itself 90 s ago",
    ),
    ("its lost worker", running(lease_owner="w3@host/7"), facts(), "no worker named w3@host is registered"),
    ("who could sweep", running(lease_expires_at=at(-2)), facts(), "w1@host (pid 11) is running, heard of 2 s ago"),
    (
        "that nobody can",
        waiting("sleep", wake_at=at(-9)),
        facts(workers=[GONE]),
        "no live worker: the last one was heard of 3 min ago",
    ),
    ("that nobody is", waiting("sleep", wake_at=at(-9)), facts(workers=[]), "no live worker: none is registered"),
    ("the wait", waiting("sleep", "night"), facts(), "waiting since 12:02:53: night"),
    (
        "how often it waited",
        waiting("condition", waits=7, waiting_from=at(-600)),
        facts(),
        "it has waited 7 times in a row, the first time at 11:53:23",
    ),
    (
        "when it gives up",
        waiting("condition", waits=1, give_up_at=at(600)),
        facts(),
        "it gives up at 12:13:23, and is dead then (timeout)",
    ),
    (
        "how to send an event",
        waiting("event", wait_event="paid"),
        facts(),
        "send it with: celery -A <app> durable send-event t-7 paid '<JSON>'",
    ),
    (
        "how to resume",
        waiting("paused"),
        facts(pauses=[BANK]),
        "end it with: celery -A <app> durable resume queue:reports",
    ),
    (
        "how to resume, queued",
        queued(),
        facts(pauses=[NIGHT]),
        "end it with: celery -A <app> durable resume task:shop.charge",
    ),
    (
        "who lives that does not know it",
        waiting("unregistered"),
        facts(workers=[replace(W1, tasks=("shop.mail",))]),
        "w1@host (pid 11, running) knows 1 task and consumes 'celery', 'reports'",
    ),
    (
        "why it is retried",
        waiting("retry", failure=replace(BOOM, verdict="ConnectionError is transient")),
        facts(),
        "why it is retried: ConnectionError is transient",
    ),
    (
        "why it is not",
        over("dead", failure_kind="permanent", failure=replace(BOOM, verdict="ValueError is permanent")),
        facts(),
        "why it was not tried again: ValueError is permanent",
    ),
    (
        "how to bring it back",
        over("dead", failure_kind="permanent"),
        facts(),
        "bring it back with: celery -A <app> durable replay t-7",
    ),
    ("when it wakes", waiting("sleep", "night"), facts(), "looked at again at 12:05:00, in 97 s"),
    (
        "how it died",
        over("dead", failure_kind="poison", failure=BOOM),
        facts(events=[event("lose", -8, "running", "dead", reason="lost 3 times")]),
        "lose: lost 3 times",
    ),
    (
        "a cancelled run",
        over("cancelled"),
        facts(events=[event("cancel", -9, "running", "running")]),
        "the cancellation was asked for at 12:03:14, while it was running",
    ),
    (
        "an owed outcome",
        over("dead", failure_kind="x", continuation_pending="x", publish_at=at(9)),
        facts(),
        "a message that has a worker tell its outcome is sent at 12:03:32, unless it was told before",
    ),
]


@pytest.mark.parametrize(("record", "known", "sentence"), [e[1:] for e in EVIDENCE], ids=[e[0] for e in EVIDENCE])
def test_the_evidence(record, known, sentence):
    assert sentence in explain(record, known).evidence


def test_only_the_last_failures_are_evidence():
    many = [replace(BOOM, claim=n) for n in range(1, 9)]
    told = [e for e in explain(queued(), facts(failures=many)).evidence if "failed" in e]
    assert [e.split()[1] for e in told] == ["6", "7", "8"]


def test_a_long_message_does_not_drown_the_answer():
    failed = replace(BOOM, message="x" * 5000)
    answer = explain(waiting("retry", failure=failed), facts(failures=[failed]))
    assert len(answer.reason) < 300
    assert max(map(len, answer.evidence)) < 300


@pytest.mark.parametrize(
    "record",
    [waiting("condition", "one\ntwo"), over("cancelled", cancel_reason="one\ntwo"),
     running(cancel_requested_at=at(-1), cancel_reason="one\ntwo")],
)  # fmt: skip
def test_what_others_wrote_is_put_on_one_line(record):
    answer = explain(record, facts(events=[replace(LOST, reason="one\ntwo")]))
    assert "one two" in answer.reason
    assert "\n" not in "".join(answer.evidence)


def test_the_json_of_an_answer():
    answer = Explanation("because", at(0.5), ["seen"])
    assert answer.as_json(queued()) == {
        "task_id": "t-7", "state": "queued", "reason": "because", "wake_at": "2030-01-02T12:03:23.500+00:00",
        "evidence": ["seen"],
    }  # fmt: skip
    assert Explanation("because", None, []).as_json(queued())["wake_at"] is None


class Asked:
    """A ledger that notes what it was asked."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        def answer(_of: object = None) -> Any:
            self.asked.add(name)
            return {"ahead_of": 4, "holder_of": None}.get(name, [])

        return answer


@pytest.mark.parametrize(
    ("record", "asked"),
    [
        (queued(), {"workers", "pauses", "ahead_of", "holder_of", "events", "failures"}),
        (waiting("paused"), {"workers", "pauses", "holder_of", "events", "failures"}),
        (waiting("retry"), {"workers", "holder_of", "events", "failures"}),
        (running(), {"workers", "holder_of", "events", "failures"}),
        (over("succeeded"), {"holder_of", "events", "failures"}),
    ],
)
def test_only_what_bears_on_the_state_is_looked_up(record, asked):
    ledger = Asked()
    known = look_up(ledger, record, max_retries=20)
    assert ledger.asked == asked
    assert (known.now, known.max_retries) == (NOW, 20)


def test_times_durations_and_counts_in_words():
    assert clock(None, NOW) == "a time that was not recorded"
    assert clock(at(-86_400), NOW) == "2030-01-01 12:03:23"
    spans = [0.4, 1, 119, 120, 7199, 7200, 9000, 172_800]
    words = ["less than a second", "1 s", "119 s", "2 min", "120 min", "2 h", "2.5 h", "2 d"]
    assert [span(round(s * SECOND)) for s in spans] == words
    assert [counted(n, "loss") for n in (0, 1, 2)] == ["0 losses", "1 loss", "2 losses"]
    assert brief("x" * 201) == "x" * 197 + "..."


@pytest.mark.parametrize("record", [queued(waits=3), running(waits=3)])
def test_what_a_task_has_waited_for_is_told_while_it_is_looked_at_again(record):
    waited = event("wait", -60, "running", "waiting", reason="rates are late")
    told = explain(record, Facts(now=NOW, workers=(W1,), events=(SUBMITTED, waited, RELEASED)))
    assert "it has waited 3 times in a row, the last time for: rates are late" in told.evidence
