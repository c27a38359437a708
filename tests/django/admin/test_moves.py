"""What the admin does: with a permission, on a page that asks, for a reason, under the user's name."""

from __future__ import annotations

import re

import pytest

from celery_durable.contrib.django.models import Task
from tests.django.admin.conftest import user
from tests.django.admin.kit import history
from tests.ledger.kit import queued

BASE = "/admin/celery_durable"


def state(row_id):
    return Task.objects.get(pk=row_id).state


def test_replay_asks_and_then_does(ann, told, ledger):
    row = told["ORD-7"]
    link = f"{BASE}/task/replay/?ids={row}"
    html = ann.get(link).content.decode()
    assert "Replay 1 task" in html
    assert "ConnectionError" in html
    assert state(row) == "dead"

    assert ann.post(link, {"reason": ""}).status_code == 200
    assert state(row) == "dead"

    answer = ann.post(link, {"reason": "the gateway is back"}, follow=True)
    assert "1 task queued again." in answer.content.decode()
    assert state(row) == "queued"
    assert history(ledger, row)[-1] == ("replay", "ann (admin)", "the gateway is back")
    assert len(ledger.steps(row)) == 1


def test_replay_afresh_forgets_the_steps(ann, told, ledger):
    row = told["ORD-7"]
    ann.post(f"{BASE}/task/replay/?ids={row}", {"reason": "wrong amount", "fresh": "on"})

    assert (state(row), ledger.steps(row)) == ("queued", [])


def test_cancel_asks_and_then_does(ann, told, ledger):
    rows = [told["ORD-11"], told["ORD-12"], told["ORD-13"], told["ORD-1"]]
    link = f"{BASE}/task/cancel/?ids={','.join(map(str, rows))}"
    html = ann.get(link).content.decode()
    assert "Cancel 3 tasks" in html
    assert "not being live" in html

    ann.post(link, {"reason": "order withdrawn"})

    assert [state(row) for row in rows] == ["cancelled", "cancelled", "running", "succeeded"]
    assert all(history(ledger, row)[-1] == ("cancel", "ann (admin)", "order withdrawn") for row in rows[:3])
    assert ledger.get("ORD-13").cancel_requested_at


def test_the_list_hands_its_choice_over(ann, told):
    chosen = [told["ORD-7"], told["ORD-8"]]
    answer = ann.post(f"{BASE}/task/?state=dead", {"action": "replay", "_selected_action": chosen})

    assert answer["Location"] == f"{BASE}/task/replay/?ids={','.join(map(str, chosen))}"


def test_one_that_moved_on_meanwhile_is_left_alone(ann, told, ledger):
    rows = [told["ORD-7"], told["ORD-8"]]
    link = f"{BASE}/task/replay/?ids={rows[0]},{rows[1]}"
    ledger.replay_row(rows[0], "by hand", actor="bob")

    ann.post(link, {"reason": "again"})

    assert [history(ledger, row)[-1][1] for row in rows] == ["bob", "ann (admin)"]


def test_a_group_is_replayed(ann, told, ledger):
    fingerprint = ledger.get("ORD-7").failure.fingerprint
    link = f"{BASE}/failuregroup/replay/?fingerprint={fingerprint}"
    assert f"?fingerprint={fingerprint}" in ann.get(f"{BASE}/failuregroup/").content.decode()
    html = ann.get(link).content.decode()
    assert "Replay 2 tasks" in html

    answer = ann.post(link, {"reason": "the gateway is back"}, follow=True)

    assert "2 tasks queued again." in answer.content.decode()
    assert [state(told[name]) for name in ("ORD-7", "ORD-8", "ORD-9")] == ["queued", "queued", "dead"]
    assert history(ledger, told["ORD-8"])[-1] == ("replay", "ann (admin)", "the gateway is back")


def test_hold_back_and_resume(ann, told, ledger):
    row = told["ORD-12"]
    assert 'value="celery"' in ann.get(f"{BASE}/task/pause/?kind=queue&target=celery").content.decode()
    given = {"kind": "queue", "target": "celery", "hours": "2", "reason": "stocktaking"}
    html = ann.post(f"{BASE}/task/pause/", given, follow=True).content.decode()
    assert "1 queued task held back" in html
    assert "stocktaking" in html
    assert state(row) == "waiting"
    assert history(ledger, row)[-1][1] == "ann (admin)"
    assert "paused by ann (admin): stocktaking" in ann.get(f"{BASE}/task/").content.decode()

    resume = re.search(r'href="([^"]*resume/[^"]*)"', html)[1].replace("&amp;", "&")
    assert "Resume" in ann.get(resume).content.decode()
    answer = ann.post(resume, {"reason": "all counted"}, follow=True)

    assert "1 task queued" in answer.content.decode()
    assert (state(row), ledger.pauses()) == ("queued", [])
    assert history(ledger, row)[-1] == ("release", "ann (admin)", "queue 'celery' was resumed: all counted")


@pytest.mark.parametrize(
    "path", ["task/replay/?ids={}", "task/cancel/?ids={}", "task/pause/", "task/resume/?kind=queue&target=celery"]
)
def test_who_may_only_look_changes_nothing(bob, told, ledger, path):
    link = f"{BASE}/{path.format(told['ORD-7'])}"
    given = {"reason": "because", "kind": "queue", "target": "celery"}

    assert (bob.get(link).status_code, bob.post(link, given).status_code) == (403, 403)
    assert (state(told["ORD-7"]), ledger.pauses()) == ("dead", [])


def test_who_may_only_look_is_offered_nothing(bob, told, ledger):
    fingerprint = ledger.get("ORD-7").failure.fingerprint
    for path in (f"task/{told['ORD-7']}/change/", "task/", "failuregroup/", "task/pauses/"):
        html = bob.get(f"{BASE}/{path}").content.decode()
        assert not re.search("Replay|Cancel…|Hold back|Resume", html), path
    link = f"{BASE}/failuregroup/replay/?fingerprint={fingerprint}"
    assert (bob.get(link).status_code, bob.post(link, {"reason": "x"}).status_code) == (403, 403)
    chosen = {"action": "replay", "_selected_action": [told["ORD-7"]]}
    bob.post(f"{BASE}/task/", chosen)
    assert state(told["ORD-7"]) == "dead"


def test_each_move_has_its_own_permission(told, client_of):
    can_replay = client_of("rita", "view_task", "replay_task")
    assert can_replay.get(f"{BASE}/task/replay/?ids={told['ORD-7']}").status_code == 200
    assert can_replay.get(f"{BASE}/task/cancel/?ids={told['ORD-12']}").status_code == 403
    assert can_replay.get(f"{BASE}/task/pause/").status_code == 403


@pytest.fixture
def client_of(ledger):
    from django.test import Client

    def make(name, *codenames):
        client = Client()
        client.force_login(user(name, *codenames))
        return client

    return make


def test_a_move_needs_its_token(told, ledger):
    from django.test import Client

    client = Client(enforce_csrf_checks=True)
    client.force_login(user("carl", "view_task", "cancel_task"))

    assert client.post(f"{BASE}/task/cancel/?ids={told['ORD-12']}", {"reason": "x"}).status_code == 403
    assert state(told["ORD-12"]) == "queued"


def test_observed_tasks_are_left_to_celery(ann, ledger):
    row = queued(ledger, "seen").row_id
    ledger.db.run(lambda c: c.exec_driver_sql("UPDATE durable_task SET observed = 1, publish_at = NULL"))

    assert "nothing to do" in ann.get(f"{BASE}/task/cancel/?ids={row}").content.decode()
    assert "Cancel&hellip;" not in ann.get(f"{BASE}/task/{row}/change/").content.decode()


def test_a_name_that_is_long_fits_the_history(told, ledger, client_of):
    name = "x" * 150
    client_of(name, "view_task", "cancel_task").post(f"{BASE}/task/cancel/?ids={told['ORD-12']}", {"reason": "r"})

    assert history(ledger, told["ORD-12"])[-1][1] == f"{name} (admin)"
