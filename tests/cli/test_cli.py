"""`celery -A shop durable ...` as an operator meets it: real processes, a real ledger."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger import migrating
from tests.cli.kit import enter, on_a_terminal
from tests.ledger import kit

if TYPE_CHECKING:
    from celery_durable.ledger import Ledger

RECORD = {
    "id", "task_id", "task", "key", "state", "queue", "priority", "root_id", "parent_id", "claims", "losses", "retries",
    "publish_count", "submitted_at", "submitted_by", "started_at", "finished_at", "lease", "wait", "failure", "result",
    "progress", "observed",
}  # fmt: skip
FAILURE = {
    "claim", "kind", "exception", "message", "traceback", "fingerprint", "retryable", "retry_at", "worker", "pid",
    "occurred_at", "host", "verdict", "causes", "arguments", "runtime", "memory_bytes", "code_version",
}  # fmt: skip
WORKER = {"id", "hostname", "pid", "queues", "started_at", "heartbeat_at", "phase", "running", "pool"}


# --- migrate ------------------------------------------------------------------------------------------


def test_migrate_says_from_what_to_what(shop):
    assert shop.durable("migrate").out.endswith(f"migrated from nothing to version {migrating.HEAD}.\n")
    again = shop.durable("migrate")
    assert (again.code, again.out) == (0, f"{shop.url}: already at version {migrating.HEAD}.\n")


def test_migrate_json(shop):
    assert shop.durable("migrate", "--json").json == {"from": None, "to": migrating.HEAD, "ledger": shop.url}
    assert shop.durable("migrate", "--json").json["from"] == migrating.HEAD


def test_sqlite_migrates_itself_and_says_so(shop):
    first = shop.durable("ls", "--json")
    assert first.json == []
    assert f"a new, empty one was made at {shop.url}" in first.error
    assert "made" not in shop.durable("ls", "--json").err


# --- status, ls, workers ------------------------------------------------------------------------------


def test_status(shop, ledger):
    kit.queued(ledger), kit.queued(ledger), kit.queued(ledger, queue="reports"), kit.succeeded(ledger)
    enter(ledger, "w1@host/ab", queues=["celery"])
    enter(ledger, "w2@host/cd", queues=["celery"], gone=True)
    answer = shop.durable("status")
    assert answer.code == 0
    assert "3 queued   0 running   0 waiting   1 succeeded   0 dead   0 cancelled" in answer.out
    assert "reports" in answer.out
    assert "w1@host" in answer.out
    assert "w2@host" not in answer.out
    document = shop.durable("status", "--json").json
    assert document.keys() == {"states", "queues", "workers", "pauses"}
    assert document["states"] == dict.fromkeys(states.STATES, 0) | {"queued": 3, "succeeded": 1}
    assert [(q["queue"], q["queued"]) for q in document["queues"]] == [("celery", 2), ("reports", 1)]
    assert all(q["oldest_age_seconds"] >= 0 for q in document["queues"])
    assert [w["id"] for w in document["workers"]] == ["w1@host/ab"]


def test_status_of_an_empty_ledger(shop, ledger):
    out = shop.durable("status").out
    assert "Nothing is queued." in out
    assert "No live worker." in out


def test_ls(shop, ledger):
    kit.queued(ledger, "order-1")
    kit.queued(ledger, "order-2", queue="reports")
    kit.queued(ledger, "mail-1", task="shop.mail")
    kit.cancelled(ledger, "order-3")
    assert {r["key"] for r in shop.durable("ls", "--json").json} == {"order-1", "order-2", "mail-1", "order-3"}
    listed = shop.durable("ls", "--json", "--state", "queued", "--task", "shop.charge", "--queue", "celery").json
    assert [r["key"] for r in listed] == ["order-1"]
    assert listed[0].keys() == RECORD
    out = shop.durable("ls", "--limit", "2").out
    assert "order-3" in out
    assert "mail-1" in out
    assert "order-2" not in out
    assert "The newest 2; --limit shows more." in out
    assert shop.durable("ls", "--state", "dead").out == "No such tasks.\n"


def test_ls_calls_a_task_by_what_show_understands(shop, ledger):
    same, other = kit.queued(ledger, "shared"), kit.queued(ledger, "shared", task="shop.mail")
    long = kit.queued(ledger, "k" * 99)
    alias_of = kit.running(ledger, "held")
    alias = ledger.submit(kit.submission("held", awaited=True))
    refs = [x.split()[0] for x in shop.durable("ls").out.splitlines()[2:]]
    assert refs == [alias.task_id, "held", long.task_id, other.task_id, same.task_id]
    assert {ledger.get(r).id for r in refs} == {r.id for r in ledger.find()}
    assert ledger.get("held").id == alias_of.row_id


def test_workers(shop, ledger):
    assert shop.durable("workers").out == "No worker is registered.\n"
    enter(ledger, "w1@host/ab", queues=["celery", "reports"])
    enter(ledger, "w2@host/cd", queues=["celery"], gone=True)
    out = shop.durable("workers").out
    assert "celery, reports" in out
    assert "gone" in out
    document = shop.durable("workers", "--json").json
    assert {w["id"]: w["phase"] for w in document} == {"w1@host/ab": "running", "w2@host/cd": "gone"}
    assert all(w.keys() == WORKER for w in document)


# --- show and why -------------------------------------------------------------------------------------


def crash(ledger: Ledger, key: str) -> str:
    """A task that failed twice, the first time retried."""

    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise ConnectionError("gateway [red]refused[/red]\x1b[31m")

    def ended(row: Any) -> states.Move:
        try:
            deep(12)
        except ConnectionError as error:
            failure = kit.failures.describe(error, "transient", worker="w1@host", claim=row.claims)
        retry = kit.retry() if not row.retries else None
        return states.fail(row, failure, "token", owes=False, ring=30, retry=retry)

    claim = kit.running(ledger, key)
    ledger.settle(claim, ended, actor="w1@host")
    kit.make_due(ledger, claim.row_id, "wake_at")
    ledger.release(1, actor="w1@host")
    ledger.settle(kit.claimed(ledger, claim.task_id), ended, actor="w1@host")
    return claim.task_id


def test_show(shop, ledger):
    task_id = crash(ledger, "order-1")
    answer = shop.durable("show", "order-1")
    assert answer.code == 0
    for told in (task_id, "dead since", "waiting -> queued", "failure 2 of 2: transient, attempt 2 on w1@host"):
        assert told in answer.out
    assert "lines ..." in answer.out
    assert answer.out.count("Traceback (most") == 1
    assert "[red]refused[/red]\\x1b[31m" in answer.out
    full = shop.durable("show", "order-1", "--full").out
    assert "lines ..." not in full
    assert full.count("Traceback (most") == 2


def test_show_json(shop, ledger):
    task_id = crash(ledger, "order-1")
    document = shop.durable("show", task_id, "--json").json
    assert document.keys() == RECORD | {"failures", "steps", "events"}
    assert document["steps"] == []
    assert [f["claim"] for f in document["failures"]] == [1, 2]
    assert all(f.keys() == FAILURE for f in document["failures"])
    assert document["failure"] == document["failures"][-1]
    verbs = ["submit", "claim", "fail", "release", "claim", "fail"]
    assert [e["verb"] for e in document["events"]] == verbs
    assert document["events"][0].keys() == {"verb", "at", "from", "to", "claim", "actor", "reason"}
    assert document["submitted_at"].endswith("+00:00")


def test_show_a_result_that_json_has_no_number_for(shop, ledger):
    kit.succeed(ledger, kit.running(ledger, "order-1"), b'{"rate": NaN}')
    answer = shop.durable("show", "order-1", "--json")
    assert "NaN" not in answer.out.replace('"NaN"', "")
    assert answer.json["result"] == {"rate": "NaN"}
    assert "{'rate': nan}" in shop.durable("show", "order-1").out


def test_why(shop, ledger):
    enter(ledger, "w1@host/ab", queues=["celery"])
    kit.queued(ledger, "report-1", queue="reports")
    answer = shop.durable("why", "report-1")
    assert answer.code == 0
    assert "no live worker consumes queue 'reports'\n" in answer.out
    assert "w1@host (pid 11, running) consumes 'celery' and runs 4" in answer.out
    document = shop.durable("why", "report-1", "--json").json
    assert document.keys() == {"task_id", "state", "reason", "wake_at", "evidence"}
    assert document["reason"] == "no live worker consumes queue 'reports'"
    assert document["wake_at"].endswith("+00:00")


def test_why_knows_the_tasks_own_limit(shop, ledger):
    claim = kit.running(ledger, "order-1")
    ledger.settle(claim, kit.fails(retry=kit.retry(retries=3)), actor="w")
    assert shop.durable("why", "order-1", "--json").json["reason"].startswith("retry 3 of 20 at ")


@pytest.mark.parametrize("command", ["show", "why", "cancel"])
def test_an_unknown_ref(shop, ledger, command):
    more = ["--reason", "x"] if command == "cancel" else []
    for words in ([command, "nope", *more], [command, "nope", "--json", *more]):
        answer = shop.durable(*words)
        assert (answer.code, answer.out) == (1, "")
        assert answer.error == "Error: No task has the id or idempotency key 'nope'."


def test_a_key_of_several_tasks(shop, ledger):
    kit.queued(ledger, "k"), kit.queued(ledger, "k", task="shop.mail")
    answer = shop.durable("show", "k")
    assert answer.code == 1
    assert "say which: shop.mail/k, shop.charge/k" in answer.error
    assert shop.durable("show", "shop.mail/k", "--json").json["task"] == "shop.mail"


# --- verify and cancel --------------------------------------------------------------------------------


def test_verify(shop, ledger):
    task_id = crash(ledger, "order-1")
    clean = shop.durable("verify")
    assert (clean.code, clean.out) == (0, "The five invariants hold.\n")
    assert shop.durable("verify", "--json").json == {"ok": True, "violations": []}
    ledger.db.run(lambda c: c.execute(sa.delete(ledger.t.failure)))
    broken = shop.durable("verify")
    assert broken.code == 1
    assert "dead (transient) without a failure row" in broken.out
    assert "1 violation." in broken.out
    answer = shop.durable("verify", "--json")
    assert answer.code == 1
    detail = "dead (transient) without a failure row"
    assert answer.json == {"ok": False, "violations": [{"invariant": 3, "ref": task_id, "detail": detail}]}


def test_cancel(shop, ledger):
    queued = kit.queued(ledger, "order-1")
    assert shop.durable("cancel", "order-1", "--reason", "wrong").out == f"{queued.task_id} is cancelled.\n"
    again = shop.durable("cancel", "order-1", "--reason", "wrong")
    assert (again.code, again.out) == (0, f"{queued.task_id} was cancelled already.\n")
    last = ledger.events(queued.row_id)[-1]
    assert (last.verb, last.reason) == ("cancel", "wrong")
    assert "@" in last.actor
    running = kit.running(ledger, "order-2")
    document = shop.durable("cancel", "order-2", "--reason", "wrong", "--json").json
    assert document.keys() == RECORD
    assert document["state"] == "running"
    assert ledger.get(running.task_id).cancel_reason == "wrong"
    done = kit.succeeded(ledger, "order-3")
    late = shop.durable("cancel", "order-3", "--reason", "wrong")
    assert (late.code, late.out) == (1, "")
    assert late.error == f"Error: {done.task_id} is succeeded already: there is nothing to cancel."
    assert shop.durable("cancel", "order-1").code == 2  # why is not optional


# --- what goes wrong ----------------------------------------------------------------------------------


def test_without_an_app(shop):
    answer = shop.celery("durable", "status", "--json")
    assert (answer.code, answer.out) == (2, "")
    assert answer.error == "Error: Which app? Say 'celery -A <app> durable ...'."
    assert shop.celery("durable", "status", "--json", env={"CELERY_APP": "shop"}).json["queues"] == []


BAD = {
    "no-url": ({"url": "nonsense"}, "durable_ledger_url is 'nonsense', which is no database URL"),
    "other-database": ({"url": "oracle://x/y"}, "names the database 'oracle'"),
    "no-folder": ({"url": "sqlite:////no/such/folder/ledger.db"}, "did not answer"),
    "postgres-down": ({"url": "postgresql://u:secret@127.0.0.1:1/x"}, "did not answer"),
    "mariadb-down": ({"url": "mysql://u:secret@127.0.0.1:1/x"}, "did not answer"),
    "unknown-setting": ({"durable_leese": 3}, "Unknown setting durable_leese: did you mean durable_lease?"),
    "bad-setting": ({"durable_lease": "soon"}, "durable_lease is 'soon': expected a number."),
    "no-module": ({"imports": ["orderz"]}, "The app's tasks cannot be imported (ModuleNotFoundError"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_line_for_what_cannot_work(shop, case):
    conf, told = BAD[case]
    shop.write(**conf)
    answer = shop.durable("status", "--json")
    assert (answer.code, answer.out) == (1, "")
    assert told in answer.error
    assert "secret" not in answer.err


def test_a_schema_of_another_version(shop, ledger):
    ledger.db.run(lambda c: c.exec_driver_sql("UPDATE durable_version SET version_num = '9999'"))
    for command in ("status", "migrate"):
        answer = shop.durable(command, "--json")
        assert (answer.code, answer.out) == (1, "")
        assert f"has schema version 9999, this celery-durable needs {migrating.HEAD}: it is newer" in answer.error


def test_a_server_database_without_tables(shop, postgres_server):
    shop.write(url=postgres_server.database())
    answer = shop.durable("ls", "--json")
    assert (answer.code, answer.out) == (1, "")
    assert "run 'celery -A <app> durable migrate' once" in answer.error
    assert shop.durable("migrate", "--json").json["from"] is None
    assert shop.durable("ls", "--json").json == []


# --- output -------------------------------------------------------------------------------------------


def test_what_the_app_prints_on_import_goes_to_stderr(shop, ledger):
    for words in (["status", "--json"], ["ls"]):
        answer = shop.celery_afresh("-A", "shop", "durable", *words)
        assert "noise" not in answer.out
        assert "noise from the app\nnoise from the tasks\n" in answer.err


def test_other_commands_of_celery_keep_their_stdout(shop):
    assert "noise from the app" in shop.celery_afresh("-A", "shop", "report").out
    assert shop.celery("--version").out


def test_tables_fit_100_columns_and_have_no_colour_in_a_pipe(shop, ledger):
    crash(ledger, "order-1")
    kit.queued(ledger, task="shop.a_task_with_a_name_that_goes_on_and_on_" * 3, queue="a_queue_with_a_long_name")
    for words in (["ls"], ["show", "order-1"], ["why", "order-1"]):
        out = shop.durable(*words).out
        assert "\x1b" not in out
        assert max(map(len, out.splitlines())) <= 100


def test_colour_on_a_terminal_unless_refused(shop, ledger):
    kit.queued(ledger)
    assert "\x1b[36mqueued" in on_a_terminal(shop, "-A", "shop", "durable", "ls")
    assert "\x1b[36m" not in on_a_terminal(shop, "--no-color", "-A", "shop", "durable", "ls")


def test_help_names_every_command(shop):
    out = shop.durable("--help").out
    assert {x.split()[0] for x in out.partition("Commands:")[2].splitlines() if x.strip()} == {
        "cancel", "crashtest", "doctor", "failpoints", "failures", "ls", "migrate", "pause", "prune", "replay",
        "resume", "send-event", "show", "status", "verify", "waits", "why", "workers",
    }  # fmt: skip
    for command in ("ls", "show", "cancel", "failures", "replay", "waits", "pause", "resume", "send-event"):
        assert "--json" in shop.durable(command, "--help").out


def test_wrong_usage_exits_with_2(shop, ledger):
    for words in (["ls", "--state", "lost"], ["ls", "--limit", "0"], ["show"], ["nonsense"]):
        assert shop.durable(*words).code == 2


def test_celerys_own_commands_do_not_load_ours():
    code = "import sys, celery.bin.celery\nprint(sorted(m for m in sys.modules if m.startswith('celery_durable.cli.')))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "['celery_durable.cli.group', 'celery_durable.cli.stdout']"
