"""What the admin shows, to whom, and that it shows no secret."""

from __future__ import annotations

import re

import pytest
import sqlalchemy as sa

from celery_durable.contrib.django.admin import keyset
from celery_durable.contrib.django.models import Task
from celery_durable.errors import LedgerUnavailable
from celery_durable.ledger import Presence
from celery_durable.states import SUCCEEDED
from tests.ledger.kit import dead, queued

BASE = "/admin/celery_durable"


def page(client, path, status=200):
    answer = client.get(f"{BASE}/{path}")
    assert answer.status_code == status, answer.content.decode()
    return answer.content.decode()


def keys(html):
    """The tasks that a list shows, in its order."""
    return re.findall(r'<span class="durable-ref">([^<]*)</span>', html)


def test_the_list_shows_where_each_task_stands(ann, told):
    html = page(ann, "task/")

    assert keys(html) == [
        "ORD-13", "INV-1", "ORD-12", "ORD-11", "ORD-10", "ORD-9", "ORD-8", "ORD-7", "ORD-3", "ORD-2", "ORD-1",
    ]  # fmt: skip
    for note in ("permanent: KeyError", "transient: ConnectionError: gateway.example refused", "not wanted"):
        assert note in html
    assert '<span class="durable-badge durable-running">running</span>' in html
    assert "&lt;span" not in html
    counts = re.findall(r'<strong>([^<]*)</strong> <span class="durable-badge[^"]*">([^<]*)</span>', html)
    assert counts == [
        ("2", "queued"), ("1", "running"), ("1", "waiting"), ("3", "dead"), ("11", "in all"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("state=dead", ["ORD-9", "ORD-8", "ORD-7"]),
        ("state=dead&failure_kind=permanent", ["ORD-9"]),
        ("failure_kind=transient", ["ORD-8", "ORD-7"]),
        ("state=queued&queue=mail", ["INV-1"]),
        ("task=shop.invoice", ["INV-1"]),
        ("queue=mail", ["INV-1"]),
        ("state=cancelled", ["ORD-10"]),
        ("state=succeeded", ["ORD-3", "ORD-2", "ORD-1"]),
        ("state=running", ["ORD-13"]),
        ("task=no.such", []),
        ("q=ORD-7", ["ORD-7"]),
        ("q=shop.charge/ORD-7", ["ORD-7"]),
        ("q=+ORD-7+", ["ORD-7"]),
        ("q=ORD", []),
        ("q=ORD-7&state=succeeded", []),
    ],
)
def test_filters_and_search(ann, told, query, found):
    assert keys(page(ann, f"task/?{query}")) == found


def test_search_by_id(ann, told, ledger):
    assert keys(page(ann, f"task/?q={ledger.get('ORD-8').task_id}")) == ["ORD-8"]


def test_filters_offer_what_app_and_workers_know(ann, told):
    html = page(ann, "task/")
    for choice in ("?task=shop.charge", "?task=shop.invoice", "?queue=mail", "?failure_kind=poison", "?state=dead"):
        assert choice in html


@pytest.mark.parametrize("query", ["", "state=succeeded&", "state=dead&", "task=shop.charge&"])
def test_pages_follow_one_another_by_key(ann, ledger, monkeypatch, query):
    for number in range(1, 8):
        dead(ledger, f"d-{number}")
    c = ledger.t.task.c
    if "succeeded" in query:
        done = {"state": SUCCEEDED, "failure_kind": None}
        ledger.db.run(lambda connection: connection.execute(sa.update(ledger.t.task).where(c.id > 0).values(done)))
    monkeypatch.setattr("celery_durable.contrib.django.admin.tasks.TaskAdmin.list_per_page", 3)
    shown, link = [], f"task/?{query}"
    for _ in range(3):
        html = page(ann, link)
        shown.append(keys(html))
        older = re.search(r'href="([^"]*)" rel="next"', html)
        link = f"task/{older[1]}".replace("&amp;", "&") if older else None
    assert shown == [["d-7", "d-6", "d-5"], ["d-4", "d-3", "d-2"], ["d-1"]]
    assert link is None
    back = re.search(r'href="([^"]*)" rel="prev"', html)[1].replace("&amp;", "&")
    assert keys(page(ann, f"task/{back}")) == ["d-4", "d-3", "d-2"]


def test_new_tasks_do_not_move_a_page(ann, ledger, monkeypatch):
    for number in range(1, 6):
        queued(ledger, f"q-{number}")
    monkeypatch.setattr("celery_durable.contrib.django.admin.tasks.TaskAdmin.list_per_page", 2)
    older = re.search(r'href="([^"]*)" rel="next"', page(ann, "task/"))[1]
    queued(ledger, "q-6")

    assert keys(page(ann, f"task/{older}")) == ["q-3", "q-2"]


def test_what_no_index_finds_is_looked_for_in_parts(ann, told, monkeypatch):
    monkeypatch.setattr(keyset, "WINDOW", 2)
    monkeypatch.setattr(keyset, "PATIENCE", -1)
    link, looks = "task/?state=succeeded", 0
    while True:
        html, looks = page(ann, link), looks + 1
        further = re.search(r'href="([^"]*)">Look further', html)
        if not further:
            break
        assert "only a part of the rows" in html
        link = f"task/{further[1]}".replace("&amp;", "&")

    assert looks > 2
    assert "ORD-1" in keys(html)


def test_a_page_that_is_no_page_is_the_first(ann, told):
    for nonsense in ("p=7", "p=b", "p=b99999999999999999999", "p=x1"):
        assert keys(page(ann, f"task/?{nonsense}"))[0] == "ORD-13"
    assert keys(page(ann, "task/?p=b1")) == []


def test_the_page_of_a_dead_task_tells_its_life(ann, told):
    html = page(ann, f"task/{told['ORD-7']}/change/")
    why = re.search(r'<p id="why">(.*?)</p>', html)[1]
    titles = re.findall(r"<strong>([^<]*)</strong>", html)

    assert why.startswith("dead since")
    assert "after 2 attempts" in why
    assert titles[-6:] == [
        "Submitted", "Attempt 1 started", "Step reserve", "Lost, queued again", "Attempt 2 started", "Failed for good",
    ]  # fmt: skip
    assert "in declined" in html  # the traceback
    assert "signal 9" in html
    assert "worker-1@shop" in html
    assert "ids=" in re.search(r'class="button" href="([^"]*)">Replay', html)[1]


def test_the_page_of_a_running_task_tells_how_far_it_is(ann, told):
    html = page(ann, f"task/{told['ORD-13']}/change/")

    assert '<progress value="30" max="120">' in html
    assert "30 of 120 (25 %): booking" in html
    assert "running on worker-1" in html
    assert "Cancel&hellip;" in html
    assert "Replay&hellip;" not in html


def test_a_result_is_shown(ann, told):
    assert "{&#x27;receipt&#x27;: 17}" in page(ann, f"task/{told['ORD-1']}/change/")


def test_what_a_task_redacts_is_not_shown(ann, told):
    html = page(ann, f"task/{told['ORD-13']}/change/")

    assert "Step charge" in html
    assert "4242" not in html  # no task shows that
    assert "TEA-5" not in html  # this one does not, as it says


def test_a_long_life_is_cut_and_shown_whole_on_request(ann, told, monkeypatch):
    monkeypatch.setattr("celery_durable.contrib.django.admin.timeline.SHOWN", 2)
    path = f"task/{told['ORD-7']}/change/"

    assert "4 earlier entries not shown" in page(ann, path)
    assert "not shown" not in page(ann, f"{path}?all")


def test_hostile_texts_are_text(ann, ledger):
    claim = dead(ledger, "<script>alert(1)</script>")
    ledger.replay_row(claim.row_id, "<img src=x onerror=alert(2)>", actor="<b>ann</b>")
    for path in ("task/", f"task/{claim.row_id}/change/", "failure/", "failuregroup/"):
        html = page(ann, path)
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert "<b>ann" not in html


def test_failures_one_by_one(ann, told):
    html = page(ann, "failure/")
    assert html.count("durable-ref") == 12  # six failures, each with its task
    assert "WorkerLostError" in html
    print_ = re.search(r"fingerprint=([0-9a-f]+)", page(ann, f"task/{told['ORD-9']}/change/"))[1]
    assert keys(page(ann, f"failure/?fingerprint={print_}"))[-1:] != []
    assert keys(page(ann, "failure/?kind=permanent"))[1] == "ORD-9"


def test_failures_by_likeness(ann, told):
    html = page(ann, "failuregroup/")
    groups = re.findall(r'<strong>(.*?)</strong>\s*<span class="durable-badge[^"]*">(.*?)</span>', html)

    assert sorted(groups, key=lambda group: group[0], reverse=True) == [
        ("WorkerLostError: signal 9", "0 dead now"),
        ("KeyError: &#x27;ORD-7&#x27;", "1 dead now"),
        ("ConnectionError: gateway.example refused the charge of ORD-7: 503 Service Unavailable", "2 dead now"),
    ]
    assert "WorkerLostError" not in page(ann, "failuregroup/?dead")


def test_workers(ann, told, ledger):
    ledger.enter(Presence("mail@shop/1f", "mail@shop", 4712, ["mail"], ["shop.invoice"], "broker-a", 30.0))
    html = page(ann, "worker/")
    assert "worker-1@shop" in html
    link = re.search(r'href="/admin/celery_durable/(worker/mail[^"]*)"', html)[1]  # real ids have a slash
    assert "Nothing that the ledger knows of" in page(ann, link)
    html = page(ann, "worker/worker-1/change/")
    assert "ORD-13" in html
    assert "shop.invoice" in html
    assert ann.get(f"{BASE}/worker/gone/change/").status_code == 302


@pytest.mark.parametrize("path", ["task/", "task/{}/change/", "task/pauses/", "failure/", "failuregroup/", "worker/"])
def test_who_may_not_look_sees_nothing(eve, told, path):
    page(eve, path.format(told["ORD-7"]), status=403)


def test_nothing_can_be_added_changed_or_deleted(ann, told):
    for path in ("task/add/", f"task/{told['ORD-7']}/delete/", "failure/add/", "worker/add/"):
        page(ann, path, status=403)
    answer = ann.post(f"{BASE}/task/{told['ORD-7']}/change/", {"state": "succeeded"})
    assert answer.status_code == 200
    assert Task.objects.get(pk=told["ORD-7"]).state == "dead"


def test_a_task_that_is_not_there_leads_to_the_list(ann, told):
    for wrong in ("999999", "nonsense"):
        assert ann.get(f"{BASE}/task/{wrong}/change/")["Location"] == f"{BASE}/task/"


@pytest.mark.parametrize("path", ["task/", "failuregroup/", "worker/", "task/pauses/"])
def test_a_ledger_that_does_not_answer_is_said(ann, told, monkeypatch, path):
    def gone():
        raise LedgerUnavailable("The ledger postgresql://db did not answer.")

    for module in ("tasks", "failures", "workers", "moves", "filters"):
        monkeypatch.setattr(f"celery_durable.contrib.django.admin.{module}.deployment", gone)
    assert "did not answer" in page(ann, path, status=503)


def test_the_index_names_the_tables(ann, told):
    html = ann.get("/admin/").content.decode()
    for name in ("Durable tasks", "Tasks", "Failures", "Failures by likeness", "Workers"):
        assert name in html


def test_no_script_of_ours_is_needed(ann, told):
    html = page(ann, f"task/{told['ORD-7']}/change/")
    assert "celery_durable/admin.css" in html
    assert not re.search(r"<script[^>]*celery_durable", html)
