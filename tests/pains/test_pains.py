"""The cheapest rows of the comparison, for real; the whole by `make pains`. And that a row that lies is told."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.crash.fleet import ROOT
from tests.pains import table
from tests.pains.kit import Pain, Seen, Servers, seen
from tests.pains.running import PAINS, Row, compare

if TYPE_CHECKING:
    from pathlib import Path

CHEAP = [2, 8, 15]
LINK = r"https://github\.com/(celery/(celery|kombu|django-celery-results|django-celery-beat)|mher/flower)/issues/\d+"


@pytest.mark.slow
@pytest.mark.parametrize("number", CHEAP)
def test_stock_hurts_and_ours_does_not(redis_server, tmp_path: Path, number: int) -> None:
    servers = Servers(redis_server)
    try:
        (row,) = compare(servers, tmp_path, [number], jobs=2)
    finally:
        servers.close()
    assert row.faults == []


def row(stock: Seen | str, durable: Seen | str) -> Row:
    pain = Pain(1, "a pain | or two", ("celery#1", "flower#2"), "as ever", "none", "", {}, lambda _: seen())
    return Row(pain, stock, durable)


HURTS, WELL = (True, "lost 1 of 1"), (False, "1 of 1 ran")


@pytest.mark.parametrize(("stock", "durable", "faults"), [
    (seen(HURTS), seen(WELL), 0),
    (seen(HURTS, WELL), seen(WELL), 1),  # not all that it claims
    (seen(WELL), seen(WELL), 1),
    (seen(HURTS), seen(WELL, HURTS), 1),
    (seen(WELL), seen(HURTS), 2),
    ("Traceback ...\nValueError: no", seen(WELL), 1),
    (seen(HURTS), "Traceback ...\nValueError: no", 1),
])  # fmt: skip
def test_what_contradicts_the_claim_is_a_fault(stock, durable, faults: int) -> None:
    assert len(row(stock, durable).faults) == faults


def test_the_table_in_every_form() -> None:
    one = row(seen(HURTS), "Traceback ...\nValueError: no")
    (told,) = json.loads(json.dumps(table.document([one])))
    assert (told["stock"], told["durable"]) == ("lost 1 of 1", "FAILED: ValueError: no")
    assert told["reports"] == ["https://github.com/celery/celery/issues/1", "https://github.com/mher/flower/issues/2"]
    page = table.page([one], {"celery": "5", "kombu": "5", "python": "3"})
    assert r"| 1 | a pain \| or two | lost 1 of 1 | FAILED: ValueError: no |" in page
    assert table.terminal([one]).row_count == 1


def test_every_row_is_there_with_its_reports() -> None:
    assert sorted(PAINS) == list(range(1, 18))
    for pain in PAINS.values():
        assert pain.setting
        assert pain.cure
        assert all(re.fullmatch(LINK, table.link(report)) for report in pain.reports)


def test_the_page_shows_every_row_as_it_is_run_now() -> None:
    """Its figures are those of one run; its words on what is run and how are checked."""
    page = (ROOT / "docs" / "pains.md").read_text()
    for pain in PAINS.values():
        assert f"| {pain.number} | {pain.setting} | {pain.cure} |" in page, "make pains ARGS=--write"
        assert f"| {pain.number} | {pain.title} |" in page
