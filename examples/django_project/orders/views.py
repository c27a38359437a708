"""Pages of the shop, and one address for programs that order."""

import json
import re
import secrets
from datetime import datetime, timezone

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST, require_safe
from shop.celery import app

import celery_durable
from celery_durable.errors import NoSuchTask
from orders.models import Order
from orders.tasks import pay

ITEMS = {"Kettle": 3490, "Teapot": 5200, "Cup": 1250, "Tea, 250 g": 990}
UTC = timezone.utc
NUMBER = re.compile(r"[A-Za-z0-9-]{1,40}")


def place(number: str, item: str) -> tuple[Order, bool]:
    """Write down an order and the task that will have it paid, in one transaction; say whether it is new.

    Both are there or neither is. A process that dies after the COMMIT and before it could send Celery's message has
    lost nothing: the task is a row beside the order, and the next sweep of a worker sends it.
    """
    with transaction.atomic():
        order, new = Order.objects.get_or_create(number=number, defaults={"item": item, "cents": ITEMS[item]})
        if new:
            pay.delay(order.number)
    return order, new


def standing(task: str, number: str) -> str:
    """Where an order's task stands, and why, as the ledger has it."""
    try:
        record = celery_durable.ledger(app).get(f"{task}/{number}")
    except NoSuchTask:
        return ""
    if record.wake_at is None:
        return record.state
    return f"{record.state} until {datetime.fromtimestamp(record.wake_at / 1e6, UTC):%H:%M:%S}: {record.wait_reason}"


@require_safe
def shop(request: HttpRequest) -> HttpResponse:
    """Everything that can be bought, and the latest orders."""
    orders = Order.objects.prefetch_related("payments")[:25]
    number = f"WEB-{secrets.token_hex(4).upper()}"  # a form that is sent twice orders once
    context = {"items": ITEMS, "orders": orders, "number": number, "rates": settings.RATES}
    return render(request, "orders/shop.html", context | {"have_rates": settings.RATES.exists()})


@require_POST
def order(request: HttpRequest) -> HttpResponse:
    """Order by the form."""
    number, item = request.POST.get("number", ""), request.POST.get("item", "")
    if item not in ITEMS or not NUMBER.fullmatch(number):
        return HttpResponse("There is no such item.", status=400)
    place(number, item)
    return redirect("order", number)


@require_safe
def show(request: HttpRequest, number: str) -> HttpResponse:
    """One order: is it paid, is there an invoice, and if not, why."""
    found = get_object_or_404(Order, number=number)
    context = {"order": found, "pay": standing("orders.pay", number), "invoice": standing("orders.invoice", number)}
    return render(request, "orders/order.html", context)


@csrf_exempt
@require_POST
def api(request: HttpRequest) -> JsonResponse:
    """Order by JSON, ``{"number": "A-1", "item": "Cup"}``: 201 for a new order, 200 for one that was there."""
    try:
        wanted = json.loads(request.body)
        number, item = str(wanted["number"]), str(wanted["item"])
    except (ValueError, KeyError, TypeError):
        return JsonResponse({"error": 'send JSON like {"number": "A-1", "item": "Cup"}'}, status=400)
    if item not in ITEMS or not NUMBER.fullmatch(number):
        return JsonResponse({"error": f"item must be one of {', '.join(ITEMS)}; number letters and digits"}, status=400)
    found, new = place(number, item)
    return JsonResponse({"number": found.number, "cents": found.cents}, status=201 if new else 200)
