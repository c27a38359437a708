"""`celery durable crashtest`: a sandbox for the app that `-A` names, a verdict for each crash point."""

from __future__ import annotations

import pytest

TASKS = """
import os
from celery_durable import DurableTask
from shop import app

LOG = {log!r}

def lines():
    return open(LOG).read().split() if os.path.exists(LOG) else []

@app.task(base=DurableTask, bind=True, name="shop.charge")
def charge(self, order):
    print("noise from the body")
    self.step("charge", done, order)

def done(order):
    with open(LOG, "a") as file:
        file.write(order + " ")

@app.task(base=DurableTask, bind=True, name="shop.mark")
def mark(self, order):
    if order not in lines():
        done(order)

@app.task(name="shop.stock")
def stock():
    pass

def once():
    assert len(lines()) == 1, f"{{len(lines())}} charges"

def anew():
    if os.path.exists(LOG):
        os.remove(LOG)
"""
CHECKS = ("--check", "orders:once", "--reset", "orders:anew")


@pytest.fixture
def orders(shop, tmp_path):
    (tmp_path / "orders.py").write_text(TASKS.format(log=str(tmp_path / "charges")))
    shop.write(url="postgresql://nobody@127.0.0.1:1/nowhere")  # a sandbox needs no ledger of the app's
    return shop


def test_a_task_that_breaks_is_shown_and_exits_with_1(orders):
    answer = orders.durable("crashtest", "shop.charge", "--args", '["o-1"]', *CHECKS)

    assert answer.code == 1
    assert "after step 'charge', before it was" in answer.out
    assert "2 charges" in answer.out
    assert "shop.charge broke at 1 of " in answer.out
    assert max(len(x) for x in answer.out.splitlines()) <= 100
    assert "noise" not in answer.out


def test_a_task_that_is_sound_exits_with_0(orders):
    answer = orders.durable("crashtest", "shop.mark", "--args", '["o-1"]', *CHECKS, "--json")

    assert answer.code == 0, answer.out
    assert answer.json["ok"] is True
    assert answer.json["task"] == "shop.mark"
    assert {"point": "after the claim, before the body", "ok": True, "problem": None} in answer.json["points"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("shop.nothing",), "no task 'shop.nothing'; it has: shop.charge, shop.mark, shop.stock"),
        (("shop.stock",), "'shop.stock' is no durable task: give it base=DurableTask"),
        (("shop.charge", "--args", "o-1"), "'o-1' is no JSON args: it looks like"),
        (("shop.charge", "--check", "nowhere:once"), "'nowhere:once' cannot be imported"),
        (("shop.charge", "--args", "[]"), "missing 1 required positional argument"),
    ],
)
def test_what_cannot_be_done_is_told(orders, words, told):
    answer = orders.durable("crashtest", *words)

    assert answer.code
    assert told in " ".join(answer.err.split())
