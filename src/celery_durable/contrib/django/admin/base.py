"""What the admins of the ledger's tables have in common: they show, and change nothing."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import connections
from django.db.models.expressions import RawSQL
from django.utils.html import format_html

from celery_durable.contrib.django.admin.access import answering
from celery_durable.contrib.django.admin.keyset import KeysetChangeList
from celery_durable.ledger.dialects import DIALECTS
from celery_durable.wording import moment, relative

#: Rows of a page.
PAGE = 50


class LedgerAdmin(admin.ModelAdmin):
    """A table to look at."""

    list_per_page = PAGE
    show_full_result_count = False
    sortable_by = ()
    actions_selection_counter = False
    change_list_template = "celery_durable/admin/list.html"
    if hasattr(admin, "ShowFacets"):
        show_facets = admin.ShowFacets.NEVER

    class Media:
        """What the pages look like."""

        css = {"all": ("celery_durable/admin.css",)}  # noqa: RUF012 - Django's form

    def has_add_permission(self, *_: Any) -> bool:
        """Rows are made by submissions."""
        return False

    def has_change_permission(self, *_: Any) -> bool:
        """Rows are changed by the ledger's verbs."""
        return False

    def has_delete_permission(self, *_: Any) -> bool:
        """Rows are removed by pruning."""
        return False

    def get_changelist(self, *_: Any, **__: Any) -> Any:
        """List by key."""
        return KeysetChangeList

    def get_queryset(self, request: Any) -> Any:
        """Read with the database's time beside each row."""
        found = super().get_queryset(request)
        instant = DIALECTS[connections[found.db].vendor].instant
        return found.annotate(now=RawSQL(instant, []))  # noqa: S611 - a constant of the dialect

    def how_to_look(self, changelist: Any) -> dict[str, Any]:
        """Say what is known of the rows that a list asks for: ``ids``, or that its conditions are ``wide``."""
        return {"wide": bool(changelist.filter_params)}

    def prepared(self, rows: list[Any]) -> list[Any]:
        """Give the rows of a page what their columns tell."""
        return rows

    @answering
    def changelist_view(self, request: Any, extra_context: Any = None) -> Any:
        """Show a list."""
        return super().changelist_view(request, extra_context)


def ago(at: int | None, now: int) -> str:
    """Write a time relatively; the absolute one, in UTC, is its title."""
    if at is None:
        return "-"
    shown: str = format_html('<time title="{} UTC">{}</time>', moment(at, now).partition(" (")[0], relative(at, now))
    return shown


def named(first: str, second: str) -> str:
    """Write how something is called, and below it what it is."""
    shown: str = format_html('<span class="durable-ref">{}</span><span class="durable-task">{}</span>', first, second)
    return shown


def badge(state: str, text: str = "") -> str:
    """Write a state in its colour."""
    shown: str = format_html('<span class="durable-badge durable-{}">{}</span>', state, text or state)
    return shown
