"""failures, replay, waits, pause, resume, send-event: what an operator does about what went wrong or stands still."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from celery_durable import states
from tests.cli.kit import enter, on_a_terminal
from tests.ledger import kit

GROUP = {"fingerprint", "kind", "exception", "task", "count", "dead", "first_seen", "last_seen", "message"}
PAUSE = {"kind", "target", "reason", "actor", "since", "until"}


def die(ledger, key=None, message="card refused", *, fingerprint="f1", kind="permanent", **options):
    claim = kit.running(ledger, key, **options)
    failure = replace(
        kit.boom(message, kind), fingerprint=fingerprint, host="host-7", verdict="ValueError is permanent",
        causes='[{"exception": "KeyError", "message": "\'card\'"}]', arguments="(7, cents=5)", runtime_micros=2_500_000,
        memory_bytes=50 * 2**20, code_version="v42",
    )  # fmt: skip
    ledger.settle(claim, lambda r: states.fail(r, failure, "o", owes=False, ring=30, retry=None), actor="w")
    return claim


def wait(ledger, key=None, reason="rates are late", *, kind="condition", event=None, give_up_after=None, **options):
    claim = kit.running(ledger, key, **options)
    asked = states.Wait(kind, reason, states.After(30), give_up_after=give_up_after, event=event)
    ledger.settle(claim, lambda r: states.wait(r, asked, kit.boom(), token="o", owes=False, ring=30), actor="w")
    return claim


def state_of(ledger, ref):
    return ledger.get(ref).state


# --- failures -----------------------------------------------------------------------------------------


def test_failures(shop, ledger):
    die(ledger, "order-1", "first\nand more"), die(ledger, "order-2", "second", fingerprint="f2", task="shop.mail")
    answer = shop.durable("failures")
    assert answer.code == 0
    assert answer.out.index("second") < answer.out.index("first")
    assert f"permanent  shop.mail  {ledger.get('order-2').task_id}  dead now" in answer.out
    assert "ValueError: second (f2)" in answer.out
    document = shop.durable("failures", "--json").json
    assert [(f["task"], f["state"], f["message"]) for f in document] == [
        ("shop.mail", "dead", "second"), ("shop.charge", "dead", "first\nand more"),
    ]  # fmt: skip
    assert document[0]["task_id"] == ledger.get("order-2").task_id
    for words, messages in (
        (["--fingerprint", "f2"], ["second"]), (["--task", "shop.mail"], ["second"]), (["--kind", "timeout"], []),
        (["--limit", "1"], ["second"]), (["--since", "2h"], ["second", "first\nand more"]),
        (["--since", "2999-01-01"], []), (["--since", "2020-01-01T00:00:00Z", "--limit", "1"], ["second"]),
    ):  # fmt: skip
        assert [f["message"] for f in shop.durable("failures", "--json", *words).json] == messages
    assert shop.durable("failures", "--kind", "timeout").out == "No such failures.\n"
    assert "The first 1; --limit shows more." in shop.durable("failures", "--limit", "1").out


def test_failures_in_groups(shop, ledger):
    for number in range(3):
        die(ledger, message=f"card {number} refused " + "x" * 300)
    die(ledger, fingerprint="f2", kind="timeout")
    ledger.replay_row(die(ledger).row_id, "", actor="ann")
    answer = shop.durable("failures", "--group")
    assert "4 failures  3 tasks dead now  permanent  f1" in answer.out
    assert "ValueError in shop.charge" in answer.out
    assert re.search(r"first .* \(.*\), last .* \(.*\)", answer.out)
    assert max(map(len, answer.out.splitlines())) <= 100
    first, second = shop.durable("failures", "--group", "--json").json
    assert first.keys() == GROUP
    assert (first["count"], first["dead"], second["count"], second["kind"]) == (4, 3, 1, "timeout")


@pytest.mark.parametrize("since", ["soon", "-2h", "2 fortnights", "2030-13-01", ""])
def test_a_time_that_is_none(shop, ledger, since):
    answer = shop.durable("failures", f"--since={since}")
    assert answer.code == 2
    assert "neither a duration (15m, 2h, 3d) nor a time" in answer.err


def test_show_tells_the_circumstances_of_a_failure(shop, ledger):
    die(ledger, "order-1")
    out = shop.durable("show", "order-1").out
    for told in (
        "verdict: ValueError is permanent (not retryable)", "arguments: (7, cents=5)", "caused by: KeyError 'card'",
        "where: host host-7, after 2.5 s, 50 MiB of memory, code v42",
    ):  # fmt: skip
        assert told in out
    why = shop.durable("why", "order-1").out
    assert "why it was not tried again: ValueError is permanent" in why
    assert f"celery -A <app> durable replay {ledger.get('order-1').task_id}" in " ".join(why.split())


# --- replay -------------------------------------------------------------------------------------------


def test_replay_of_one(shop, ledger):
    task_id = die(ledger, "order-1").task_id
    answer = shop.durable("replay", "order-1", "--reason", "card renewed")
    assert (answer.code, answer.out) == (0, f"{task_id} is queued again.\n")
    last = ledger.events(ledger.get("order-1").id)[-1]
    assert (last.verb, last.reason) == ("replay", "card renewed")
    assert "@" in last.actor
    again = shop.durable("replay", "order-1")
    assert (again.code, again.out) == (1, "")
    assert again.error == f"{task_id} is queued: there is nothing to replay."


def test_replay_of_several_goes_on_past_what_cannot_be_replayed(shop, ledger):
    first, done, gone = die(ledger), kit.succeeded(ledger), kit.cancelled(ledger)
    answer = shop.durable("replay", first.task_id, done.task_id, gone.task_id, first.task_id, "--json")
    assert answer.code == 1
    assert answer.json == {
        "replayed": 2, "tasks": [first.task_id, gone.task_id],
        "skipped": [{"task_id": done.task_id, "state": "succeeded"}],
    }  # fmt: skip


def test_an_unknown_ref_replays_nothing(shop, ledger):
    die(ledger, "order-1")
    answer = shop.durable("replay", "order-1", "nope")
    assert (answer.code, answer.out) == (1, "")
    assert answer.error == "Error: No task has the id or idempotency key 'nope'."
    assert state_of(ledger, "order-1") == "dead"


@pytest.mark.parametrize("words", [["--fingerprint", "f1"], ["--kind", "permanent"], ["--task", "shop.charge"]])
def test_replay_of_many(shop, ledger, words):
    made = [die(ledger) for _ in range(3)]
    other = die(ledger, fingerprint="f2", kind="timeout", task="shop.mail")
    answer = shop.durable("replay", *words, "--reason", "fixed")
    assert (answer.code, answer.out, answer.err.count("queued again")) == (0, "3 tasks queued again.\n", 0)
    assert [state_of(ledger, r.task_id) for r in [*made, other]] == ["queued"] * 3 + ["dead"]
    assert shop.durable("replay", *words).out == "No dead task fits.\n"
    assert shop.durable("replay", *words, "--json").json == {"replayed": 0, "passed_over": 0}


def test_a_limit_and_a_rate(shop, ledger):
    made = [die(ledger) for _ in range(5)]
    assert shop.durable("replay", "--kind", "permanent", "--limit", "2", "--json").json["replayed"] == 2
    assert shop.durable("replay", "--kind", "permanent", "--rate", "50").out == "3 tasks queued again.\n"
    assert {state_of(ledger, r.task_id) for r in made} == {"queued"}


def test_a_dry_run_changes_nothing(shop, ledger):
    made = [die(ledger, f"order-{n}") for n in range(12)]
    answer = shop.durable("replay", "--fingerprint", "f1", "--dry-run")
    assert "12 tasks would be queued again." in answer.out
    assert "order-9" in answer.out
    assert "order-11" not in answer.out
    assert "10 of 12." in answer.out
    document = shop.durable("replay", "--fingerprint", "f1", "--dry-run", "--limit", "3", "--json").json
    assert (document["dry_run"], document["count"], len(document["sample"])) == (True, 3, 3)
    named = shop.durable("replay", "order-1", "order-2", "--dry-run", "--json").json
    assert [r["key"] for r in named["sample"]] == ["order-1", "order-2"]
    assert {state_of(ledger, r.task_id) for r in made} == {"dead"}


def test_a_fresh_replay(shop, ledger):
    claim = kit.running(ledger, "order-1")
    ledger.send_event(claim.row_id, "paid", "1", actor="shop")
    ledger.settle(claim, kit.fails(), actor="w")
    assert shop.durable("replay", "order-1", "--fresh").code == 0
    assert ledger.event(claim, "paid") is None


def test_a_terminal_asks_before_many_and_shows_progress(shop, ledger):
    made = [die(ledger) for _ in range(3)]
    call = ("-A", "shop", "durable", "replay", "--fingerprint", "f1")
    refused = on_a_terminal(shop, *call, typed="n\n", code=1)
    assert "Queue 3 tasks again? [y/N]" in refused
    assert {state_of(ledger, r.task_id) for r in made} == {"dead"}
    shown = on_a_terminal(shop, *call, typed="y\n")
    assert "3 of 3 queued again" in shown
    assert "3 tasks queued again." in shown


def test_a_terminal_does_not_ask_for_one_or_when_told_not_to(shop, ledger):
    die(ledger, "order-1"), die(ledger), die(ledger)
    assert "[y/N]" not in on_a_terminal(shop, "-A", "shop", "durable", "replay", "order-1", typed="n\n")
    told = on_a_terminal(shop, "-A", "shop", "durable", "replay", "--task", "shop.charge", "--yes", typed="n\n")
    assert "2 tasks queued again." in told


def test_which_tasks_has_to_be_said(shop, ledger):
    for words in ([], ["order-1", "--fingerprint", "f1"], ["order-1", "--rate", "3"], ["--task", "x", "--rate", "0"]):
        assert shop.durable("replay", *words).code == 2
    assert "Either REFs, or --fingerprint, --task or --kind." in shop.durable("replay").err


# --- waits --------------------------------------------------------------------------------------------


def test_waits(shop, ledger):
    kit.waiting(ledger, "order-1")
    wait(ledger, "order-2", give_up_after=7200, task="shop.mail")
    wait(ledger, "order-3", kind="event", event="paid", reason="waits for event 'paid'", queue="reports")
    answer = shop.durable("waits")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [x.split()[:2] for x in lines[::3]] == [
        ["order-2", "condition"], ["order-3", "event"], ["order-1", "scheduled"],
    ]  # fmt: skip
    assert lines[1].strip() == "rates are late"
    assert re.fullmatch(r"  since (now|.* ago), looked at again in .* s, gives up in .*", lines[2].rstrip()), lines[2]
    document = shop.durable("waits", "--json").json
    assert [r["wait"]["kind"] for r in document] == ["condition", "event", "scheduled"]
    assert document[0]["wait"].keys() == {"kind", "reason", "since", "wake_at", "waits", "give_up_at"}
    for words, keys in (
        (["--kind", "event"], ["order-3"]), (["--task", "shop.mail"], ["order-2"]), (["--limit", "1"], ["order-2"]),
        (["--queue", "reports"], ["order-3"]),
    ):  # fmt: skip
        assert [r["key"] for r in shop.durable("waits", "--json", *words).json] == keys
    assert shop.durable("waits", "--kind", "paused").out == "Nothing waits.\n"


def test_show_tells_how_a_task_has_waited(shop, ledger):
    wait(ledger, "order-1", give_up_after=7200)
    out = shop.durable("show", "order-1").out
    assert "condition: rates are late" in out
    assert "1 time in a row, since" in out
    assert "gives up" in out
    why = shop.durable("why", "order-1").out
    assert "waits for a condition: rates are late; looked at again at" in why
    assert "and is dead then (timeout)" in why


# --- pause and resume ---------------------------------------------------------------------------------


def test_pause_and_resume(shop, ledger):
    kit.queued(ledger, "order-1", queue="reports")
    answer = shop.durable("pause", "queue:reports", "--reason", "the bank is closed")
    assert (answer.code, answer.out) == (0, "queue 'reports' is paused; 1 queued task held back.\n")
    why = " ".join(shop.durable("why", "order-1").out.split())
    assert "queue 'reports' is paused by " in why
    assert "the bank is closed (since " in why
    assert "end it with: celery -A <app> durable resume queue:reports" in why
    assert [r["key"] for r in shop.durable("waits", "--kind", "paused", "--json").json] == ["order-1"]
    status = shop.durable("status")
    assert "queue:reports" in status.out
    assert "the bank is closed" in status.out
    assert max(map(len, status.out.splitlines())) <= 100
    (told,) = shop.durable("status", "--json").json["pauses"]
    assert told.keys() == PAUSE
    assert shop.durable("resume", "reports").out == "queue 'reports' is resumed; 1 task queued.\n"
    assert state_of(ledger, "order-1") == "queued"
    assert "paused" not in shop.durable("status").out
    late = shop.durable("resume", "queue:reports")
    assert (late.code, late.out, late.error) == (1, "", "Error: queue 'reports' is not paused.")


def test_pause_and_resume_json(shop, ledger):
    kit.queued(ledger, "order-1")
    document = shop.durable("pause", "task:shop.charge", "--reason", "why", "--until", "2h", "--json").json
    assert document.keys() == PAUSE | {"held"}
    assert (document["kind"], document["target"], document["held"]) == ("task", "shop.charge", 1)
    assert document["until"].endswith("+00:00")
    assert shop.durable("resume", "task:shop.charge", "--json").json == {
        "kind": "task", "target": "shop.charge", "released": 1,
    }  # fmt: skip


def test_a_pause_that_ends_by_itself_says_when(shop, ledger):
    answer = shop.durable("pause", "queue:celery", "--reason", "why", "--until", "2h")
    assert re.fullmatch(r"queue 'celery' is paused until .* \(in .*\); 0 queued tasks held back\.\n", answer.out)
    past = shop.durable("pause", "queue:celery", "--reason", "why", "--until", "2020-01-01")
    assert (past.code, past.error) == (1, "Error: The pause of queue 'celery' would be over already: say a later time.")


def test_a_bare_name_has_to_mean_one_thing(shop, ledger):
    enter(ledger, "w1@host/ab", queues=["celery", "shop.charge"])
    assert shop.durable("pause", "celery", "--reason", "x", "--json").json["kind"] == "queue"
    both = shop.durable("pause", "shop.charge", "--reason", "x")
    assert both.code == 1
    assert "is the name of a task and of a queue: say task:shop.charge or queue:shop.charge." in both.error
    unknown = shop.durable("pause", "nope", "--reason", "x")
    assert unknown.code == 1
    assert "'nope' is no task or queue that the ledger knows: say task:nope or queue:nope." in unknown.error
    assert shop.durable("pause", "task:nope", "--reason", "x").code == 0
    assert shop.durable("pause", "celery").code == 2  # why is not optional


def test_the_app_knows_its_tasks_before_any_worker_does(shop, ledger):
    assert shop.durable("pause", "shop.charge", "--reason", "x", "--json").json["kind"] == "task"


# --- events -------------------------------------------------------------------------------------------


def test_send_event(shop, ledger):
    claim = wait(ledger, "order-1", "waits for event", kind="event", event="paid", give_up_after=3600)
    answer = shop.durable("send-event", "order-1", "paid", '{"cents": 5}')
    assert (answer.code, answer.out) == (0, f"Event 'paid' was sent to {claim.task_id}.\n")
    assert ledger.event(claim, "paid") == '{"cents": 5}'
    assert "has arrived" in shop.durable("why", "order-1").out
    again = shop.durable("send-event", "order-1", "paid", "6")
    assert again.code == 0
    assert "the first one counts" in again.out
    document = shop.durable("send-event", "order-1", "paid", "--json").json
    assert document == {"task_id": claim.task_id, "event": "paid", "stored": False}
    assert shop.durable("send-event", "order-1", "seen").code == 0
    assert ledger.event(claim, "seen") == "null"


@pytest.mark.parametrize("payload", ["paid", "{", "{'a': 1}", "NaN", "[" * 5000])
def test_a_payload_that_is_no_json(shop, ledger, payload):
    kit.queued(ledger, "order-1")
    answer = shop.durable("send-event", "order-1", "paid", payload)
    assert answer.code in {1, 2}
    assert "JSON" in answer.err
    assert len(answer.err) < 1000


def test_an_event_that_nobody_can_take(shop, ledger):
    done = kit.succeeded(ledger, "order-1")
    assert "is succeeded: nobody waits for event 'paid'" in shop.durable("send-event", "order-1", "paid").error
    unknown = shop.durable("send-event", "nope", "paid")
    assert (unknown.code, unknown.error) == (1, "Error: No task has the id or idempotency key 'nope'.")
    for name in ("", " paid", "x" * 256, "a\nb"):
        assert "is no name of an event" in shop.durable("send-event", done.task_id, name).error


# --- prune --------------------------------------------------------------------------------------------


def test_prune(shop, ledger):
    old, young, died = kit.succeeded(ledger, "order-1"), kit.succeeded(ledger), die(ledger)
    for claim in (old, died):
        kit.change(ledger, claim.row_id, finished_at=ledger.dialect.clock_sql - 31 * 86_400 * kit.SECOND)
    assert shop.durable("prune", "--dry-run").out == "1 task would be pruned.\n"
    assert shop.durable("prune", "--dry-run", "--state", "dead", "--state", "succeeded", "--json").json["count"] == 2
    assert shop.durable("prune").out == "1 task pruned.\n"
    assert shop.durable("prune").out == "Nothing to prune.\n"
    assert kit.row_of(ledger, young.row_id).pruned_at is None
    why = shop.durable("why", "order-1", "--json").json
    assert any("pruned" in sentence for sentence in why["evidence"])
    assert (shop.durable("show", "order-1").code, shop.durable("show", "order-1", "--json").json["events"]) == (0, [])
    assert shop.durable("prune", "--older-than", "1h", "--state", "dead", "--json").json == {"pruned": 1, "deleted": 0}
    refused = shop.durable("replay", died.task_id)
    assert (refused.code, "was pruned" in refused.error) == (1, True)
    why = shop.durable("why", died.task_id, "--json").json
    assert any("still holds" in sentence for sentence in why["evidence"])
    assert not any("bring it back" in sentence for sentence in why["evidence"])


def test_prune_deletes_keys_only_where_that_is_set(shop, ledger):
    old = kit.succeeded(ledger)
    kit.change(ledger, old.row_id, finished_at=ledger.dialect.clock_sql - 31 * 86_400 * kit.SECOND)
    assert shop.durable("prune", "--json").json == {"pruned": 1, "deleted": 0}
    shop.write(durable_key_retention=30 * 86_400)
    assert shop.durable("prune").out == "Nothing to prune.\n1 task older than durable_key_retention deleted.\n"
    assert not kit.rows(ledger)
