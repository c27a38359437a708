"""A taken key whose second submission is awaited under its own id: an alias that drives its own continuation."""

from __future__ import annotations

import json

import pytest
from celery import chain, chord, group

from celery_durable import DurableTask, KeyConflict, ledger
from tests.waiting import wait_until
from tests.worker.kit import (
    Gate,
    alter,
    column,
    count,
    on_redis,
    over,
    payload,
    record,
    rows,
    settled,
    verbs,
    working,
)

# Aliases: submissions that somebody waits for under their own id.


class Shop:
    """An app whose first charge of `o-1` is held until the test lets it go."""

    def __init__(self, app):
        self.app, self.ran, self.gate = app, [], Gate()
        self.after = []

        @app.task(base=DurableTask, name="shop.charge", idempotency_key="{order_id}")
        def charge(order_id):
            self.ran.append(order_id)
            self.gate.hold()
            if order_id == "bad":
                raise ValueError("card refused")
            return f"token-{order_id}"

        @app.task(base=DurableTask, name="shop.note")
        def note(*seen):
            self.after.append(list(seen))
            return seen

        @app.task(base=DurableTask, name="shop.sorry")
        def sorry(task_id):
            self.after.append(task_id)

        self.charge, self.note, self.sorry = charge, note, sorry


@pytest.fixture
def shop(results):
    return Shop(results)


def test_an_alias_in_a_chain_drives_its_own_continuation(shop, results):
    with working(results):
        first = shop.charge.delay("o-1")
        shop.gate.await_body()
        last = chain(shop.charge.s("o-1"), shop.note.s("chained")).apply_async()
        alias = last.parent
        assert record(results, alias).as_json()["wait"]["kind"] == "duplicate"
        shop.gate.let_go()
        assert last.get(timeout=30) == ["token-o-1", "chained"]
        assert alias.get(timeout=30) == "token-o-1"
        assert settled(results, alias).state == "succeeded"

    assert shop.ran == ["o-1"]
    assert alias.id != first.id
    assert verbs(results, alias) == ["submit", "follow"]
    assert record(results, alias).claims == 0


@pytest.mark.parametrize("over_already", [False, True])
def test_an_alias_in_a_chord_is_counted(shop, results, over_already):
    with working(results):
        first = shop.charge.delay("o-1")
        shop.gate.await_body()
        if over_already:
            shop.gate.let_go()
            settled(results, first)
        waiting = chord([shop.charge.s("o-1"), shop.charge.s("o-2")])(shop.note.s())
        shop.gate.let_go()
        assert waiting.get(timeout=30) == [["token-o-1", "token-o-2"]]

    assert sorted(shop.ran) == ["o-1", "o-2"]


def test_an_alias_in_a_group_answers_under_its_own_id(shop, results):
    shop.gate.let_go()
    with working(results):
        done = group(shop.charge.s("o-1"), shop.charge.s("o-1"), shop.charge.s("o-2")).apply_async()
        assert done.get(timeout=30) == ["token-o-1", "token-o-1", "token-o-2"]

    assert len({r.id for r in done}) == 3
    assert sorted(shop.ran) == ["o-1", "o-2"]


def test_an_alias_with_callbacks_calls_them(shop, results):
    with working(results):
        shop.charge.delay("o-1")
        shop.gate.await_body()
        alias = shop.charge.apply_async(("o-1",), link=shop.note.s("linked"))
        shop.gate.let_go()
        settled(results, alias)
        wait_until(lambda: shop.after, timeout=30)

    assert shop.after == [["token-o-1", "linked"]]


def test_an_alias_under_an_id_of_the_callers_choice(shop, results):
    with working(results):
        shop.charge.delay("o-1")
        shop.gate.await_body()
        alias = shop.charge.apply_async(("o-1",), task_id="mine")
        assert alias.id == "mine"
        shop.gate.let_go()
        assert alias.get(timeout=30) == "token-o-1"

    assert shop.ran == ["o-1"]


def test_an_alias_takes_a_failure_too(shop, results):
    shop.gate.let_go()
    with working(results):
        first = shop.charge.delay("bad")
        over(results, first)
        # A dead key is submitted again: the alias follows the second attempt.
        alias = shop.charge.apply_async(("bad",), link_error=shop.sorry.s(), task_id="mine")
        with pytest.raises(ValueError, match="card refused"):
            alias.get(timeout=30)
        assert settled(results, alias).failure.message == "card refused"
        settled(results, first)
        for row in rows(results):
            settled(results, row.task_id)

    assert record(results, first).claims == 2
    assert shop.after == ["mine"]


@pytest.mark.parametrize("how", ["chain", "chord", "link"])
def test_a_dead_key_that_is_awaited_again_drives_one_continuation(shop, results, how):
    first = shop.charge.delay("o-1")
    ledger(results).cancel("o-1", "a typing error")
    shop.gate.let_go()
    if how == "chain":
        chain(shop.charge.s("o-1"), shop.note.s()).apply_async()
    elif how == "chord":
        chord([shop.charge.s("o-1"), shop.charge.s("o-2")])(shop.note.s())
    else:
        shop.charge.apply_async(("o-1",), link=shop.note.s())
    with working(results):
        wait_until(lambda: shop.after, timeout=30)
        for row in rows(results):
            settled(results, row.task_id)

    assert len(shop.after) == 1
    assert shop.ran.count("o-1") == 1
    assert column(results, first, "owes")
    embed = json.loads(column(results, first, "body"))[2]
    assert not any(embed.values()), "the alias drives it, not the row that runs"


def test_on_conflict_raise_raises_before_an_alias_is_made(shop, results, broker_url):
    shop.charge.delay("o-1")

    with pytest.raises(KeyConflict):
        shop.charge.apply_async(("o-1",), link=shop.note.s(), on_conflict="raise")

    assert (count(results), len(on_redis(broker_url))) == (1, 1)


def test_a_callback_gets_its_id_at_capture(app, broker_url):
    @app.task(base=DurableTask)
    def charge(order_id): ...

    charge.apply_async(("o-1",), link=charge.si("o-2"), link_error=[charge.si("o-3")])

    embed = payload(on_redis(broker_url)[0])[2]
    ids = [s["options"]["task_id"] for s in (*embed["callbacks"], *embed["errbacks"])]
    assert len(set(ids)) == 2
    assert all(ids)


def test_a_continuation_that_is_sent_twice_meets_its_own_row(shop, results):
    shop.gate.let_go()
    with working(results):
        linked = shop.charge.apply_async(("o-1",), link=shop.note.s("linked"))
        assert wait_until(lambda: [r for r in rows(results) if r.task == "shop.note"], timeout=30)
        settled(results, linked)
        # As a sweep does for an outcome of which nobody knows whether it was told.
        alter(results, linked, continuation_pending="again", publish_at=1)
        settled(results, linked)
        for row in rows(results):
            settled(results, row.task_id)

    assert shop.after == [["token-o-1", "linked"]]
    assert [r.task for r in rows(results)] == ["shop.charge", "shop.note"]
