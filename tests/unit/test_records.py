"""Frozen views of rows, envelopes that come back byte for byte, and the JSON that tools read."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_durable.records import Envelope, Failure, Worker, isotime

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcä", max_size=3), inner, max_size=3),
    max_leaves=8,
)


def envelope(headers, properties=None, body=b""):
    return Envelope(body, "application/json", "utf-8", headers, properties or {}, "", "celery", ({"name": "celery"},))


@given(st.binary(max_size=200), st.dictionaries(st.text("abc", max_size=3), JSON, max_size=4))
def test_an_envelope_comes_back_as_it_was_given(body, headers):
    sent = envelope(headers, {"priority": 3}, body)

    assert Envelope.load(sent.meta(), memoryview(body)) == sent


def test_headers_that_json_does_not_know_are_kept_as_text():
    when = datetime(2030, 1, 1, tzinfo=timezone.utc)

    assert Envelope.load(envelope({"eta": when}).meta(), b"").headers["eta"] == str(when)


def test_a_readdressed_envelope_is_another_tasks_own():
    sent = envelope({"id": "a", "root_id": "a", "task": "t"}, {"correlation_id": "a", "reply_to": "r"}, b"x")

    other = sent.readdressed("b")

    assert other.headers == {"id": "b", "root_id": "b", "task": "t"}
    assert other.properties == {"correlation_id": "b", "reply_to": "r"}
    assert (other.body, sent.headers["id"], sent.properties["correlation_id"]) == (b"x", "a", "a")


def test_a_readdressed_part_of_a_canvas_keeps_its_root():
    assert envelope({"id": "a", "root_id": "r"}).readdressed("b").headers["root_id"] == "r"


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000+00:00"),
        (1_700_000_000_123_456, "2023-11-14T22:13:20.123+00:00"),
    ],
)
def test_times_are_iso_8601_in_utc(micros, text):
    assert isotime(micros) == text


@pytest.mark.parametrize(
    ("exception", "message", "headline"),
    [
        ("shop.errors.Refused", "card 7\nline two", "Refused: card 7"),
        ("ValueError", "", "ValueError"),
        ("ValueError", "\n\n  x  \n", "ValueError: x"),
    ],
)
def test_a_headline_is_one_line(exception, message, headline):
    assert Failure("permanent", exception, message).headline.rstrip() == headline


def worker(**other):
    given = {
        "id": "w", "hostname": "h", "pid": 1, "queues": ("q",), "tasks": (), "broker": "b", "started_at": 0,
        "heartbeat_at": 0, "phase": "running", "running": 2, "lease": 30.0, "now": 0,
    }  # fmt: skip
    return Worker(**(given | other))


@pytest.mark.parametrize(
    ("other", "live"),
    [
        ({"now": 60_000_000}, True),
        ({"now": 60_000_001}, False),
        ({"phase": "stopped"}, False),
        ({"phase": "draining"}, True),
    ],
)
def test_a_worker_is_live_for_two_leases_unless_it_said_goodbye(other, live):
    assert worker(**other).live is live
    assert (worker(**other).as_json()["phase"] == "gone") is not live


@pytest.mark.parametrize("record", [worker(), Failure("k", "E", "m"), envelope({})])
def test_records_do_not_change(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(record)[0].name, "other")
