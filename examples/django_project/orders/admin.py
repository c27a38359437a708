"""The shop's own tables in the admin; the ledger's are there by themselves."""

from django.contrib import admin

from orders.models import Invoice, Order, Payment, Report


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """Orders."""

    list_display = ("number", "item", "cents", "placed_at")
    search_fields = ("number",)


admin.site.register([Payment, Invoice, Report])
