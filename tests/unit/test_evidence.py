"""What several looks at the locks of other workers are worth."""

from __future__ import annotations

import pytest

from celery_durable.ledger import Peer
from celery_durable.worker.evidence import GRACE, LONG_GRACE, Evidence

HELD, FREE = Peer("w", 7, free=False, here=True), Peer("w", 7, free=True, here=True)
ELSEWHERE = FREE._replace(here=False)


@pytest.fixture
def evidence():
    return Evidence()


def test_one_look_proves_nothing_and_a_second_one_soon_after_neither(evidence):
    evidence.gone([HELD], 0)

    assert evidence.gone([FREE], 1) == []
    assert evidence.gone([FREE], 1 + 0.9 * GRACE) == []
    assert evidence.gone([FREE], 1 + GRACE) == [FREE]


def test_who_takes_another_lock_meanwhile_lives(evidence):
    evidence.gone([HELD], 0)
    evidence.gone([FREE], 1)

    assert evidence.gone([HELD._replace(number=8)], 1 + GRACE) == []
    assert evidence.gone([FREE._replace(number=8)], 2) == [], "another lock is another suspicion"


def test_a_lock_that_is_held_again_was_a_slip(evidence):
    for now, peer in enumerate((HELD, FREE, HELD)):
        evidence.gone([peer], now * GRACE / 2)

    assert evidence.gone([FREE], 2 * GRACE) == []


def test_a_lock_that_was_never_seen_held_has_to_be_free_for_longer(evidence):
    assert evidence.gone([FREE], 0) == []
    assert evidence.gone([FREE], GRACE) == []
    assert evidence.gone([FREE], LONG_GRACE) == [FREE]


def test_a_lock_of_another_start_of_the_server_tells_nothing(evidence):
    for now in range(100):
        assert evidence.gone([ELSEWHERE], now) == []


def test_a_lock_that_was_seen_held_in_this_session_is_of_this_server(evidence):
    evidence.gone([ELSEWHERE._replace(free=False)], 0)
    evidence.gone([ELSEWHERE], 1)

    assert evidence.gone([ELSEWHERE], 1 + GRACE) == [ELSEWHERE]


def test_who_has_lost_the_own_lock_believes_nothing_for_a_while(evidence):
    """A restart of the server takes everybody's."""
    evidence.gone([HELD], 0)
    evidence.gone([FREE], 1)
    evidence.distrust(until=10)

    for now in range(1, 10):
        assert evidence.gone([FREE], now) == []
    assert evidence.gone([FREE], 10) == []
    assert evidence.gone([FREE], 10 + LONG_GRACE) == [FREE]


def test_the_next_look_is_due_when_the_first_suspicion_is_ripe(evidence):
    assert evidence.next_look() is None
    evidence.gone([HELD, FREE._replace(id="v")], 0)
    evidence.gone([FREE, FREE._replace(id="v")], 0.1)

    assert evidence.next_look() == 0.1 + GRACE


def test_who_is_no_longer_told_of_is_forgotten(evidence):
    evidence.gone([HELD], 0)
    evidence.gone([FREE], 1)
    evidence.gone([], 2)

    assert evidence.gone([FREE], 3) == []
    assert evidence.next_look() == 3 + LONG_GRACE
