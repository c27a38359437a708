"""Each task of the shop, killed at each of its crash points."""

import json
from datetime import datetime, timezone

import pytest
from django.conf import settings
from orders import gateway, tasks
from orders.models import Invoice, Order, Payment, Report

NUMBER = "A-1"


@pytest.fixture(autouse=True)
def world(durable, durable_effects, monkeypatch):
    """A gateway that charges a key once, and rates that have arrived."""
    monkeypatch.setattr(gateway, "charge", lambda number, cents, *, key: charge(durable_effects, number, key))
    settings.RATES.write_text(json.dumps({"USD": 1.08}))


def charge(effects, number, key):
    """What the gateway does."""
    effects.add(number, token=key)
    return f"ch_{number}"


def order():
    """Somebody orders: the sandbox begins each run with an empty database."""
    Order.objects.create(number=NUMBER, item="Cup", cents=1250)


def test_an_order_is_paid_once_whatever_is_killed(durable, durable_effects):
    def paid_once():
        assert durable_effects.count() == 1, f"charged {durable_effects.count()} times"
        assert Payment.objects.count() == 1, f"booked {Payment.objects.count()} times"
        assert Invoice.objects.count() == 1, f"{Invoice.objects.count()} invoices"

    durable.crash_everywhere(tasks.pay, [NUMBER], check=paid_once, reset=[durable_effects.clear, order])


def test_an_order_without_a_key_for_the_gateway_is_charged_twice(durable, durable_effects, monkeypatch):
    def careless(number, cents, *, key):
        durable_effects.add(number)  # no idempotency key
        return "ch_1"

    monkeypatch.setattr(gateway, "charge", careless)
    report = durable.crash_report(
        tasks.pay, [NUMBER], check=lambda: durable_effects.count() == 1, reset=[durable_effects.clear, order]
    )
    assert "after step 'charge', before it was recorded" in [v.point for v in report.broken]


def test_an_invoice_waits_for_the_rates(durable):
    durable.begin_anew([order])
    settings.RATES.unlink()
    result = tasks.invoice.delay(NUMBER)
    durable.work()
    durable.assert_waiting(result, reason="the exchange rates of today have not arrived")

    settings.RATES.write_text("{}")
    durable.advance(5)
    durable.work()
    durable.assert_succeeded(result)
    assert (settings.INVOICES / Invoice.objects.get().path).exists()


def test_a_report_counts_each_payment_once(durable, monkeypatch):
    monkeypatch.setattr(tasks, "CHUNK", 2)
    today = datetime.now(timezone.utc).date().isoformat()

    def five_payments():
        order()
        for n in range(5):
            Payment.objects.create(order=Order.objects.get(), charge=f"ch_{n}", cents=100)

    def right():
        report = Report.objects.get()
        assert (report.orders, report.cents) == (5, 500), f"{report.orders} orders, {report.cents} cents"

    durable.crash_everywhere(tasks.report, [today], check=right, reset=five_payments)
