"""Failures as state: what is kept of an exception, and which failures are alike."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_durable import failures
from celery_durable.records import Failure

MODULE = """
{above}
def charge(order):
    {inside}
    return pay(order)

def refund(order):
    return pay(order)

def pay(order):
    raise {error}
"""


def raised(tmp_path, *, above="", inside="pass", error="ValueError('refused')", function="charge"):
    """The failure of a function in a user's module, of which the rest may change."""
    path = tmp_path / "shop.py"
    path.write_text(MODULE.format(above=above, inside=inside, error=error))
    spec = importlib.util.spec_from_file_location("shop", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        getattr(module, function)(7)
    except Exception as exc:  # noqa: BLE001 - whatever the module raises
        return failures.describe(exc, "permanent", worker="w1", claim=3)
    raise AssertionError("it did not raise")


def test_a_failure_says_what_where_and_by_whom(tmp_path):
    failure = raised(tmp_path)

    assert (failure.kind, failure.exception, failure.message) == ("permanent", "ValueError", "refused")
    assert (failure.worker, failure.pid, failure.claim, failure.retryable) == ("w1", os.getpid(), 3, False)
    assert "shop.py" in failure.traceback
    assert failure.traceback.rstrip().endswith("ValueError: refused")
    assert failure.headline == "ValueError: refused"


@pytest.mark.parametrize(
    "edit",
    [
        {"above": "import os\n\ndef other():\n    return 1\n"},
        {"inside": "x = 1\n    y = 2"},
        {"error": "ValueError('another message')"},
    ],
)
def test_a_fingerprint_outlives_edits_elsewhere_and_other_messages(tmp_path, edit):
    assert raised(tmp_path, **edit).fingerprint == raised(tmp_path).fingerprint


@pytest.mark.parametrize("edit", [{"error": "KeyError('refused')"}, {"function": "refund"}])
def test_another_type_or_another_path_is_another_fingerprint(tmp_path, edit):
    assert raised(tmp_path, **edit).fingerprint != raised(tmp_path).fingerprint


def test_frames_of_libraries_do_not_split_a_group(tmp_path):
    direct = raised(tmp_path, error="json.JSONDecodeError('x', '', 0)", above="import json")
    inside = raised(tmp_path, error="[json.loads('{')]", above="import json")

    assert direct.exception == inside.exception == "json.decoder.JSONDecodeError"
    assert direct.fingerprint == inside.fingerprint


def test_an_exception_that_was_never_raised_has_a_fingerprint():
    first = failures.describe(ValueError("x"), "permanent")

    assert first.fingerprint == failures.describe(ValueError("y"), "permanent").fingerprint
    assert len(first.fingerprint) == 16


class BrokenError(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


def test_an_exception_without_words_is_a_failure_like_any_other():
    failure = failures.describe(BrokenError(), "unclassified")

    assert "BrokenError" in failure.message
    assert "str() fails" in failure.message
    assert failure.exception.endswith("BrokenError")
    assert failure.headline.startswith("BrokenError")


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\0" * 3, "half \udfff pair"])
def test_text_that_no_database_takes_is_kept_readable(text):
    failure = failures.describe(ValueError(text), "permanent")

    for kept in (failure.message, failure.traceback):
        assert "\0" not in kept
        kept.encode()


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_is_stored_can_be_stored(text):
    kept = failures.storable(text)

    assert "\0" not in kept
    assert kept.encode().decode() == kept
    assert kept == text or "\\" in kept


@given(st.text(max_size=300), st.integers(60, 200))
def test_long_text_loses_its_middle_and_says_how_much(text, limit):
    cut = failures.shortened(text, limit)

    assert len(cut) <= max(limit, 60) + 5
    if len(text) <= limit:
        assert cut == text
    else:
        assert "characters left out" in cut
        assert cut[:5] == text[:5]
        assert cut[-5:] == text[-5:]


def test_a_long_message_and_traceback_are_cut():
    failure = failures.describe(ValueError("x" * 1_000_000), "permanent")

    assert len(failure.message) <= failures.MAX_MESSAGE
    assert len(failure.traceback) <= failures.MAX_TRACEBACK


def test_a_cause_is_told_in_the_traceback():
    try:
        try:
            raise KeyError("inner")  # noqa: TRY301 - it is the test
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as exc:
        failure = failures.describe(exc, "permanent")

    assert failure.exception == "ValueError"
    assert "KeyError: 'inner'" in failure.traceback


class SoftTimeLimitExceeded(Exception):
    pass


def test_a_loss_is_a_failure_without_an_exception_of_its_own():
    loss = failures.loss("worker_lost", "billiard.WorkerLostError", "signal 9", worker="w1", pid=7, claim=2)

    assert (loss.kind, loss.worker, loss.pid, loss.claim, loss.retryable) == ("worker_lost", "w1", 7, 2, True)
    assert (
        loss.fingerprint
        == failures.loss("x", "billiard.WorkerLostError", "y", worker="", pid=None, claim=0).fingerprint
    )


@pytest.mark.parametrize(
    ("cls", "name"), [(ValueError, "ValueError"), (json.JSONDecodeError, "json.decoder.JSONDecodeError")]
)
def test_a_type_is_named_with_its_module(cls, name):
    assert failures.qualified_name(cls) == name


def test_a_stored_failure_becomes_an_exception_again():
    def create(name, module):
        return type(name, (Exception,), {"__module__": module})

    rebuilt = failures.rebuilt(Failure("permanent", "shop.errors.Refused", "card 7"), create)

    assert (type(rebuilt).__name__, type(rebuilt).__module__, str(rebuilt)) == ("Refused", "shop.errors", "card 7")


def test_what_cannot_be_raised_becomes_an_error_that_can():
    rebuilt = failures.rebuilt(Failure("permanent", "SystemExit", "1"), lambda *_: SystemExit)

    assert isinstance(rebuilt, RuntimeError)
