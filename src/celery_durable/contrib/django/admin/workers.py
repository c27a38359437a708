"""Workers as they last reported themselves."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from celery_durable import states
from celery_durable.contrib.django.admin.access import answering, deployment
from celery_durable.contrib.django.admin.base import LedgerAdmin, ago
from celery_durable.contrib.django.models import Task

#: Tasks of a worker that its page names.
SHOWN = 100


class WorkerAdmin(LedgerAdmin):
    """The workers of the last day, gone ones too."""

    @answering
    def changelist_view(self, request: Any, extra_context: Any = None) -> Any:
        """Show them, the most recently heard of first."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        told = [_told(worker) for worker in deployment().ledger.workers()]
        return self._page(request, "workers", "Workers", {"workers": told} | (extra_context or {}))

    @answering
    def change_view(self, request: Any, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:  # noqa: ARG002
        """Show one, with what it runs."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        worker_id = unquote(object_id)
        found = next((w for w in deployment().ledger.workers() if w.id == worker_id), None)
        if found is None:
            return HttpResponseRedirect(reverse("admin:celery_durable_worker_changelist"))
        live = Task.objects.filter(state=states.RUNNING, finished_at__isnull=True, lease_owner=found.id)
        running = [
            {"row": row, "since": ago(row.started_at, found.now)}
            for row in live.order_by("state", "queue", "pk").only("task", "idempotency_key", "started_at")[:SHOWN]
        ]
        context = {"told": _told(found), "running": running} | (extra_context or {})
        return self._page(request, "worker", found.hostname, context)

    def _page(self, request: Any, template: str, title: str, more: dict[str, Any]) -> Any:
        context = self.admin_site.each_context(request) | {"opts": self.opts, "media": self.media, "title": title}
        return TemplateResponse(request, f"celery_durable/admin/{template}.html", context | more)


def _told(worker: Any) -> dict[str, Any]:
    phase = worker.phase if worker.live else "gone"
    return {
        "worker": worker, "phase": phase, "started": ago(worker.started_at, worker.now),
        "heard": ago(worker.heartbeat_at, worker.now),
    }  # fmt: skip
