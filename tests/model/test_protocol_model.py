"""Every order of events in one row's life: nothing goes wrong, and something does without any one of the rules."""

from __future__ import annotations

import pytest

from tests.model.protocol import Rules
from tests.model.search import search

WHOLE = {
    "two workers, a fault": Rules(),
    "an operator who cancels": Rules(operator=("cancel",)),
    "a busy queue": Rules(busy=True),
    "signs of death, true and false": Rules(signs=True),
    "a database that forgets a claim": Rules(forgets=True, faults=1),
}
#: A rule that is taken out, where it takes more to show, and what goes wrong.
WITHOUT = {
    "the fence": (Rules(fence=False), "a stale claim settles the row"),
    "the fence, under a false sign of death": (Rules(fence=False, signs=True), "a stale claim settles the row"),
    "1 a token, beside the number of the claim": (Rules(token=False, forgets=True, faults=2), "a stale claim"),
    "1 one's own claim is known by its token": (Rules(lost_reply="number", faults=2), "two attempts hold one claim"),
    "1 a dead process is known by its token": (Rules(losing="any", faults=2), "a dead process ends another one's"),
    "2 the envelope's number": (Rules(envelope=False), "an old message's body runs"),
    "7 whatever is queued is due": (Rules(queued_rings=False), "stuck, "),
    "8 a busy queue puts off a few times": (Rules(overtaken=False, busy=True), "stuck, queued"),
    "13 every end owes its outcome": (Rules(all_owe=False), "stuck, "),
    "13 what is told is cleared by token": (Rules(clearing="any", operator=("replay",)), "stuck, "),
    "14 a cancellation sticks": (Rules(cancel_sticks=False, operator=("cancel",)), "cancelled work runs again"),
}
CIRCUMSTANCES = ("faults", "busy", "forgets", "signs", "operator")


@pytest.mark.parametrize("rules", WHOLE.values(), ids=WHOLE)
def test_with_all_rules_nothing_goes_wrong(rules):
    found = search(rules)

    print(f"{found.worlds} worlds")
    assert not found


@pytest.mark.parametrize(("rules", "wrong"), WITHOUT.values(), ids=WITHOUT)
def test_without_a_rule_something_goes_wrong(rules, wrong):
    found = search(rules, until=wrong)

    assert any(what.startswith(wrong) for what in found), dict(found)


@pytest.mark.slow
@pytest.mark.parametrize("rules", [*(r for r, _ in WITHOUT.values()), Rules(operator=("cancel", "replay"))], ids=str)
def test_under_the_same_circumstances_nothing_does_with_all_rules(rules):
    whole = Rules(
        faults=rules.faults, busy=rules.busy, forgets=rules.forgets, signs=rules.signs, operator=rules.operator
    )

    assert not search(whole)
