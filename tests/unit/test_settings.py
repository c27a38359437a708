"""Settings: read once, validated, each error one line that says the fix."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from celery_durable.errors import DurableError, SettingsError
from celery_durable.settings import Settings


def test_an_empty_configuration_gives_the_defaults():
    assert Settings.read({}) == Settings(
        ledger_url="sqlite:///celery-durable.db", lease=30, sweep_interval=1, republish_after=30, max_losses=3,
        time_limit=3600, max_message_bytes=1024 * 1024, table_prefix="durable_",
    )  # fmt: skip


def test_what_is_not_ours_is_not_read():
    assert Settings.read({"broker_url": "x", "task_serializer": 3, "DURABLE": 1}) == Settings()


def test_none_is_the_default():
    assert Settings.read({"durable_lease": None}).lease == 30


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("durable_lease", 60, 60.0),
        ("durable_lease", "12.5", 12.5),
        ("DURABLE_LEASE", 60, 60.0),
        ("durable_max_losses", "5", 5),
        ("durable_max_losses", 5.0, 5),
        ("durable_table_prefix", "shop_", "shop_"),
        ("durable_ledger_url", "sqlite://", "sqlite://"),
    ],
)
def test_values_are_read_as_their_type(name, value, read):
    found = getattr(Settings.read({name: value}), name.lower().removeprefix("durable_"))

    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("durable_leese", "durable_lease"),
        ("durable_ledger", "durable_ledger_url"),
        ("durable_max_loss", "durable_max_losses"),
        ("DURABLE_TABLE_PREFX", "durable_table_prefix"),
    ],
)
def test_an_unknown_setting_asks_whether_a_known_one_was_meant(name, near):
    with pytest.raises(SettingsError, match=rf"Unknown setting {name}: did you mean {near}\?"):
        Settings.read({name: 1})


def test_a_setting_like_none_that_we_know_lists_all():
    with pytest.raises(SettingsError, match="durable_ledger_url, durable_lease"):
        Settings.read({"durable_zzzzz": 1})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("durable_lease", "soon", "a number"),
        ("durable_lease", True, "a number"),
        ("durable_lease", [30], "a number"),
        ("durable_max_losses", 2.5, "a whole number"),
        ("durable_max_losses", "2.5", "a whole number"),
        ("durable_max_losses", False, "a whole number"),
        ("durable_max_losses", float("inf"), "a whole number"),
        ("durable_max_losses", {}, "a whole number"),
        ("durable_ledger_url", 7, "a string"),
        ("durable_ledger_url", b"sqlite://", "a string"),
    ],
)
def test_a_value_of_another_type_says_what_was_expected(name, value, expected):
    with pytest.raises(SettingsError, match=f"expected {expected}") as caught:
        Settings.read({name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["lease", "sweep_interval", "republish_after", "time_limit", "max_losses", "max_message_bytes", "result_retention"],
)
@pytest.mark.parametrize("value", [0, -1])
def test_durations_and_sizes_are_positive(name, value):
    with pytest.raises(SettingsError, match=f"durable_{name} is .*greater than 0"):
        Settings.read({f"durable_{name}": value})


@pytest.mark.parametrize("name", ["lease", "sweep_interval", "republish_after", "time_limit"])
@pytest.mark.parametrize("value", ["nan", float("inf")])
def test_durations_are_finite(name, value):
    with pytest.raises(SettingsError, match=f"durable_{name}"):
        Settings.read({f"durable_{name}": value})


def test_a_lease_that_cannot_be_renewed_in_time_is_refused_with_the_fix():
    with pytest.raises(SettingsError, match="Set durable_lease to 15 or more"):
        Settings.read({"durable_lease": 14, "durable_sweep_interval": 5})
    assert Settings.read({"durable_lease": 15, "durable_sweep_interval": 5}).lease == 15


def test_a_key_outlives_its_result():
    with pytest.raises(SettingsError, match=r"durable_key_retention is 60 s.*0, which is for ever"):
        Settings.read({"durable_key_retention": 60})
    assert Settings.read({"durable_key_retention": 60, "durable_result_retention": 60}).key_retention == 60
    assert Settings.read({}).key_retention == 0


@pytest.mark.parametrize("prefix", ["", "Shop_", "1shop", "shop-", "a" * 32, 'x"; DROP TABLE x; --', "ä_"])
def test_a_prefix_is_a_plain_name(prefix):
    with pytest.raises(SettingsError, match="durable_table_prefix"):
        Settings.read({"durable_table_prefix": prefix})


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().lease = 1


def test_every_error_is_a_durable_error_and_a_value_error():
    assert issubclass(SettingsError, DurableError)
    assert issubclass(SettingsError, ValueError)


@pytest.mark.parametrize(
    ("url", "resolved"),
    [
        ("sqlite:///here.db", "sqlite:///{cwd}/here.db"),
        ("sqlite:///sub/../here.db", "sqlite:///{cwd}/here.db"),
        ("sqlite+pysqlite:///here.db", "sqlite+pysqlite:///{cwd}/here.db"),
        ("sqlite:////var/here.db", "sqlite:////var/here.db"),
        ("sqlite://", "sqlite://"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://host/name", "postgresql://host/name"),
        ("postgresql:///name", "postgresql:///name"),
    ],
)
def test_a_sqlite_file_is_the_same_whatever_directory_a_worker_changes_to(url, resolved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert Settings(ledger_url=url).resolved_url() == resolved.format(cwd=Path.cwd())
