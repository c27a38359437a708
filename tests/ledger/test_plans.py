"""The statements of sweep and claim, as really sent, use their indexes."""

from __future__ import annotations

import pytest

from tests.conftest import DIALECTS
from tests.ledger.stock import ACTS, full_scans, sent_by, whole_indexes

MANY = 50_000  # the same rows as in test_flat


@pytest.mark.parametrize("verb", ACTS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_statement_reads_a_table_from_end_to_end(stocked, dialect, verb):
    ledger = stocked(dialect, MANY)
    sent = sent_by(ledger, ACTS[verb])
    assert sent

    with ledger.db.engine.connect() as connection:
        scans = {s: found for s, p in sent if (found := full_scans(connection, s, p))}
        connection.rollback()

    assert not scans


@pytest.mark.parametrize("verb", [v for v in ACTS if v != "renew"])  # few rows run: their index is read whole
def test_no_sweep_reads_an_index_from_end_to_end(stocked, verb):
    ledger = stocked("postgresql", MANY)
    sent = sent_by(ledger, ACTS[verb])

    with ledger.db.engine.connect() as connection:
        whole = {s: found for s, p in sent if (found := whole_indexes(connection, s, p))}
        connection.rollback()

    assert not whole


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_full_scan_would_be_seen(stocked, dialect):
    ledger = stocked(dialect, MANY)

    with ledger.db.engine.connect() as connection:
        assert full_scans(
            connection, "SELECT id FROM durable_task WHERE submitted_by = 'x'", {} if dialect != "sqlite" else ()
        )


def test_one_glance_is_one_statement(ledger):
    assert len(sent_by(ledger, ACTS["glance"])) == 1


@pytest.mark.parametrize("verb", ["submit", "claim", "succeed"])
def test_postgresql_needs_one_statement(postgres_ledger, verb):
    assert len(sent_by(postgres_ledger, ACTS[verb])) == 1
