"""The work of the shop. Each task may be killed at any line, and is run again from its start; steps are not."""

from celery import shared_task

from celery_durable import DurableTask
from orders import gateway, invoices
from orders.models import Invoice, Order, Payment, Report

CHUNK = 100


@shared_task(
    base=DurableTask,
    bind=True,
    name="orders.pay",
    idempotency_key="{number}",  # ordered twice, paid once
    autoretry_for=(gateway.GatewayError,),  # it is away, or too slow: a waiting row with a reason and a time
    retry_backoff=True,
    retry_backoff_max=60,
)
def pay(self: DurableTask, number: str) -> str:
    """Charge an order, book the payment, and have the invoice written."""
    order = Order.objects.get(number=number)
    # The same key in every attempt: who dies between the charge and the record of it asks again, and the gateway
    # answers with the charge that it has already made.
    charge = self.step("charge", gateway.charge, order.number, order.cents, key=self.step_key("charge"))
    # The payment and the record of this step are one commit: both are there, or neither.
    self.step("book", book, order.pk, charge, transaction=True)
    invoice.delay(number)  # has a key of its own: called twice, written once
    return charge


def book(order_id: int, charge: str) -> None:
    """Write down what the gateway charged."""
    order = Order.objects.get(pk=order_id)
    Payment.objects.create(order=order, charge=charge, cents=order.cents)


@shared_task(base=DurableTask, bind=True, name="orders.invoice", idempotency_key="{number}")
def invoice(self: DurableTask, number: str) -> str:
    """Write an order's invoice, as soon as the day's exchange rates are there."""
    rates = invoices.rates()
    if rates is None:
        self.wait("the exchange rates of today have not arrived", retry_in=5, give_up_after=12 * 3600)
    order = Order.objects.get(number=number)
    path = invoices.write(order.number, order.item, order.cents, rates)  # done twice, it is the same file
    Invoice.objects.get_or_create(order=order, defaults={"path": path})
    return path


@shared_task(base=DurableTask, bind=True, name="orders.report", idempotency_key="{day}")
def report(self: DurableTask, day: str) -> int:
    """Add up a day's payments, a chunk at a time; a worker that dies leaves what it had added up."""
    payments = Payment.objects.filter(booked_at__date=day).order_by("pk")
    count = payments.count()
    after, orders, cents = self.restore([0, 0, 0])
    while chunk := list(payments.filter(pk__gt=after)[:CHUNK]):
        after, orders, cents = chunk[-1].pk, orders + len(chunk), cents + sum(p.cents for p in chunk)
        self.checkpoint([after, orders, cents])
        self.progress(orders, count, "payments")
        self.check()  # stop here when somebody cancels the task, or the worker shuts down
    Report.objects.update_or_create(day=day, defaults={"orders": orders, "cents": cents})
    return cents
