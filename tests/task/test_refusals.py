"""What cannot be submitted: one clear error that says the fix, and nothing half-written."""

from __future__ import annotations

import socket
import sys

import pytest
from celery import Celery
from kombu.exceptions import EncodeError

from celery_durable import (
    DurableTask,
    LedgerUnavailable,
    PayloadRefused,
    PayloadTooLarge,
    SettingsError,
    ledger,
)
from tests.worker.kit import closed, count, on_redis, record, redis_of


@pytest.fixture
def nothing_happened(app, broker_url):
    yield
    assert (count(app), on_redis(broker_url)) == (0, [])


@pytest.fixture
def charge(app):
    @app.task(base=DurableTask, name="shop.charge")
    def charge(order_id, card=None): ...

    return charge


def test_a_message_that_is_too_large(charge, nothing_happened):
    with pytest.raises(PayloadTooLarge, match=r"shop.charge: .* bytes, durable_max_message_bytes allows 1048576"):
        charge.delay("x" * 1_100_000)


def test_the_limit_can_be_set(make, broker_url):
    app = make(durable_max_message_bytes=200)

    @app.task(base=DurableTask)
    def charge(order_id): ...

    charge.delay("x")
    with pytest.raises(PayloadTooLarge, match="allows 200"):
        charge.delay("x" * 200)

    assert (count(app), len(on_redis(broker_url))) == (1, 1)


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((socket.socket,), {}, r"argument 1 \(a type\)"),
        (("o-1", object()), {}, r"argument 2 \(a object\)"),
        (("o-1",), {"card": object()}, r"card \(a object\)"),
        (("o-1",), {"card": {"deep": [object()]}}, r"card \(a dict\)"),
    ],
)
def test_an_argument_that_cannot_be_serialised_is_named(charge, nothing_happened, args, kwargs, named):
    with pytest.raises(EncodeError, match=f"shop.charge: {named} cannot be serialised as json"):
        charge.apply_async(args, kwargs)


def test_pickle_is_refused_unless_the_app_accepts_it(charge, nothing_happened):
    with pytest.raises(PayloadRefused, match=r"shop.charge.*'pickle'.*accept_content is \['json'\].*json serializer"):
        charge.apply_async(("o-1",), serializer="pickle")


def test_pickle_goes_where_the_app_accepts_it(make):
    app = make(accept_content=["json", "pickle"], task_serializer="pickle", result_serializer="pickle")

    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id): ...

    assert record(app, charge.delay(frozenset({1}))).key == "frozenset({1})"


@pytest.mark.parametrize(("serializer", "module"), [("yaml", "yaml"), ("msgpack", "msgpack")])
def test_other_serializers_go_where_the_app_accepts_them(make, serializer, module):
    pytest.importorskip(module)
    app = make(accept_content=["json", serializer], task_serializer=serializer)

    @app.task(base=DurableTask, idempotency_key="{order_id}")
    def charge(order_id): ...

    assert record(app, charge.delay((1, 2))).key == "[1, 2]"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"durable_leese": 5}, "Unknown setting durable_leese: did you mean durable_lease"),
        ({"durable_q": 5}, "Unknown setting durable_q: known settings: durable_ledger_url"),
        ({"durable_lease": "soon"}, "durable_lease is 'soon': expected a number"),
        ({"durable_lease": -1}, "durable_lease is -1.0: it must be greater than 0"),
        ({"durable_lease": 2, "durable_sweep_interval": 1}, "durable_lease is 2 s, shorter than .* to 3"),
        ({"durable_max_losses": 1.5}, "durable_max_losses is 1.5: expected a whole number"),
        ({"durable_table_prefix": "Drop;"}, "durable_table_prefix is 'Drop;'"),
        ({"durable_ledger_url": "what is this"}, "durable_ledger_url is 'what is this', which is no database URL"),
        ({"durable_ledger_url": "oracle://db/x"}, "names the database 'oracle'.*sqlite, postgresql, mysql or mariadb"),
        ({"durable_ledger_url": "postgresql+nodriver://db/x"}, "knows no such driver"),
        ({"durable_ledger_url": "mysql+mysqldb://db/x"}, r"'MySQLdb' is not installed.*celery-durable\[mysql\]"),
        ({"durable_ledger_url": 17}, "durable_ledger_url is 17: expected a string"),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_setting_is_one_clear_error(make, broker_url, settings, fault, monkeypatch):
    monkeypatch.setitem(sys.modules, "MySQLdb", None)  # Django's tests let another driver stand in for it
    app = make()
    app.conf.update(settings)

    @app.task(base=DurableTask)
    def charge(order_id): ...

    with pytest.raises(SettingsError, match=fault):
        charge.delay("o-1")
    with pytest.raises(SettingsError, match=fault):
        ledger(app).stats()

    assert redis_of(broker_url).dbsize() == 0


def test_an_error_shows_no_password(make):
    app = make(ledger_url="oracle://scott:tiger@db/x")

    @app.task(base=DurableTask)
    def charge(order_id): ...

    with pytest.raises(SettingsError) as caught:
        charge.delay("o-1")

    assert "tiger" not in str(caught.value)


def test_a_sqlite_file_that_cannot_be_opened(make, tmp_path, broker_url):
    app = make(ledger_url=tmp_path / "no" / "such" / "folder" / "ledger.db")

    @app.task(base=DurableTask)
    def charge(order_id): ...

    with pytest.raises(LedgerUnavailable, match="unable to open database file"):
        charge.delay("o-1")

    assert on_redis(broker_url) == []


def test_a_setting_may_be_text(make):
    """Environment variables arrive so."""
    app = make(durable_max_message_bytes="100")

    @app.task(base=DurableTask)
    def charge(order_id): ...

    with pytest.raises(PayloadTooLarge, match="allows 100"):
        charge.delay("x" * 100)


def test_settings_in_a_namespace_as_django_has_them(tmp_path, broker_url):
    class Django:
        CELERY_BROKER_URL = broker_url
        CELERY_DURABLE_MAX_MESSAGE_BYTES = 100
        CELERY_DURABLE_LEDGER_URL = f"sqlite:///{tmp_path / 'django.db'}"

    app = Celery("shop", set_as_current=False)
    app.config_from_object(Django, namespace="CELERY")

    @app.task(base=DurableTask)
    def charge(order_id): ...

    with pytest.raises(PayloadTooLarge, match="allows 100"):
        charge.delay("x" * 100)
    closed(app)


def test_an_unknown_setting_in_a_namespace_is_met_too(broker_url):
    class Django:
        CELERY_BROKER_URL = broker_url
        CELERY_DURABLE_LEESE = 5

    app = Celery("shop", set_as_current=False)
    app.config_from_object(Django, namespace="CELERY")

    with pytest.raises(SettingsError, match="durable_leese: did you mean durable_lease"):
        ledger(app).stats()
    closed(app)
