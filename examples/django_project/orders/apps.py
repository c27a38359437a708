"""The app of the orders."""

from django.apps import AppConfig


class OrdersConfig(AppConfig):
    """Orders, payments, invoices, reports."""

    name = "orders"
    default_auto_field = "django.db.models.BigAutoField"
