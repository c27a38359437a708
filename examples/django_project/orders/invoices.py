"""Invoices as files. Each is written beside its place and then renamed: nobody ever reads half of one."""

import json
import os

from django.conf import settings
from django.template.loader import render_to_string


def rates() -> dict[str, float] | None:
    """Return today's exchange rates; None while the file has not arrived."""
    try:
        return json.loads(settings.RATES.read_text())
    except FileNotFoundError:
        return None


def write(number: str, item: str, cents: int, rates: dict[str, float]) -> str:
    """Write one and return its name; the same order gives the same file."""
    amounts = {"EUR": cents / 100} | {currency: cents / 100 * rate for currency, rate in rates.items()}
    text = render_to_string("orders/invoice.html", {"number": number, "item": item, "amounts": amounts})
    path = settings.INVOICES / f"{number}.html"
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path.name
