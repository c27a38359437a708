"""Failures: those that are alike told once, and each by itself."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html

from celery_durable.contrib.django.admin import filters
from celery_durable.contrib.django.admin.access import actor, answering, deployment
from celery_durable.contrib.django.admin.base import PAGE, LedgerAdmin, ago, badge, named
from celery_durable.contrib.django.admin.moves import ReplayForm
from celery_durable.ledger import Casualties
from celery_durable.records import Failure as Mishap
from celery_durable.wording import brief, counted

#: Dead tasks that one click brings back at most: a request must not last for ever.
AT_ONCE = 1_000
SAMPLE = 10
LISTED = (
    "id", "kind", "exception", "message", "fingerprint", "claim", "worker", "occurred_at", "task_row__id",
    "task_row__task", "task_row__state", "task_row__idempotency_key",
)  # fmt: skip


class FailureAdmin(LedgerAdmin):
    """Failures one by one, newest first; each leads to the page of its task."""

    list_display = ("seen", "what", "whose", "stands", "worker")
    list_display_links = None
    list_filter = (filters.FailedOf,)
    list_select_related = ("task_row",)

    def get_queryset(self, request: Any) -> Any:
        """Read what the list shows."""
        return super().get_queryset(request).only(*LISTED)

    def how_to_look(self, changelist: Any) -> dict[str, Any]:
        """Follow the index of the fingerprint; look for a kind in windows."""
        return {"wide": bool(changelist.params) and "fingerprint" not in changelist.params}

    @admin.display(description="when")
    def seen(self, row: Any) -> str:
        """How long ago."""
        return ago(row.occurred_at, row.now)

    @admin.display(description="failure")
    def what(self, row: Any) -> str:
        """What it was."""
        headline = brief(Mishap(row.kind, row.exception, row.message).headline)
        return named(headline, row.kind)

    @admin.display(description="task")
    def whose(self, row: Any) -> Any:
        """Whose it was."""
        link = reverse("admin:celery_durable_task_change", args=[row.task_row_id])
        key, task = row.task_row.idempotency_key, row.task_row.task
        return format_html('<a href="{}">{}</a>', link, named(key, task))

    @admin.display(description="stands now")
    def stands(self, row: Any) -> str:
        """How the task stands now."""
        return badge(row.task_row.state)

    @answering
    def change_view(self, request: Any, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:  # noqa: ARG002
        """Go to the page of the task, which tells the failure in its place."""
        found = self.get_queryset(request).filter(pk=object_id).first() if object_id.isdigit() else None
        where = ("changelist", []) if found is None else ("change", [found.task_row_id])
        return HttpResponseRedirect(reverse(f"admin:celery_durable_task_{where[0]}", args=where[1]))


class FailureGroupAdmin(LedgerAdmin):
    """Failures that are alike: how many, how many are dead of it now, and the way to bring those back."""

    def has_view_permission(self, request: Any, obj: Any = None) -> bool:  # noqa: ARG002 - Django's signature
        """Whoever may see failures may see them grouped."""
        return bool(request.user.has_perm("celery_durable.view_failure"))

    def has_module_permission(self, request: Any) -> bool:
        """The same."""
        return self.has_view_permission(request)

    def get_urls(self) -> Any:
        """Add the replay of a whole group."""
        replay = self.admin_site.admin_view(self.replay_view)
        return [path("replay/", replay, name="celery_durable_failuregroup_replay"), *super().get_urls()]

    @answering
    def changelist_view(self, request: Any, extra_context: Any = None) -> Any:
        """Show the groups, the one that failed last first."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        found = deployment().ledger.likenesses()
        dead = "dead" in request.GET
        shown = Paginator([x for x in found if x.dead.number] if dead else found, PAGE).get_page(request.GET.get("p"))
        groups = [
            {
                "likeness": x, "headline": brief(x.latest.headline), "first": ago(x.first_seen, x.now),
                "last": ago(x.last_seen, x.now),
            }
            for x in shown
        ]  # fmt: skip
        context = self.admin_site.each_context(request) | {
            "opts": self.opts, "media": self.media, "title": "Failures by likeness", "groups": groups, "shown": shown,
            "dead": dead, "may_replay": request.user.has_perm("celery_durable.replay_task"),
        }  # fmt: skip
        return TemplateResponse(request, "celery_durable/admin/groups.html", context | (extra_context or {}))

    @answering
    def replay_view(self, request: Any) -> Any:
        """Queue again what died of a fingerprint, once there is a reason."""
        if not request.user.has_perm("celery_durable.replay_task"):
            raise PermissionDenied
        back = reverse("admin:celery_durable_failuregroup_changelist")
        fingerprint = request.GET.get("fingerprint", "")
        if not fingerprint:
            return HttpResponseRedirect(back)
        ledger, which = deployment().ledger, Casualties(fingerprint=fingerprint)
        form = ReplayForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            self._bring_back(request, which, form)
            return HttpResponseRedirect(back)
        ids = ledger.sample_dead(which, AT_ONCE + 1)
        number = min(len(ids), AT_ONCE)
        fit = [record for record in map(ledger.record, ids[:SAMPLE]) if record is not None]
        context = self.admin_site.each_context(request) | {
            "opts": self.opts, "media": self.media, "form": form, "fit": fit, "back": back, "others": number - len(fit),
            "count": counted(number, "task"), "more": len(ids) > AT_ONCE,
            "title": "Replay", "verb": "Replay", "fits": "dead of this",
        }  # fmt: skip
        return TemplateResponse(request, "celery_durable/admin/confirm.html", context)

    def _bring_back(self, request: Any, which: Casualties, form: ReplayForm) -> None:
        given = form.cleaned_data
        ledger = deployment().ledger
        options = {"actor": actor(request), "fresh": given["fresh"], "limit": AT_ONCE}
        done = sum(batch.replayed for batch in ledger.replay_all(which, given["reason"], **options))
        messages.success(request, f"{counted(done, 'task')} queued again.")
