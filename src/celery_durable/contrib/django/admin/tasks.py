"""Tasks: the list with the counts of what is live, and one page for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import Max
from django.http import HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html

from celery_durable import states
from celery_durable.contrib.django.admin import filters, timeline
from celery_durable.contrib.django.admin.access import answering, deployment, knowing
from celery_durable.contrib.django.admin.base import LedgerAdmin, ago, badge, named
from celery_durable.contrib.django.admin.moves import Moves
from celery_durable.contrib.django.models import Failure, Task
from celery_durable.notes import note, progress_of
from celery_durable.records import Failure as Mishap
from celery_durable.redaction_shown import bounded

if TYPE_CHECKING:
    from celery_durable.deployment import Deployment
    from celery_durable.records import Record

#: Rows of a rare state that are known one by one; of more than that the newest are found in no time.
KNOWN = 2_000
#: Tasks that have the key that is searched for, and characters of a result.
ALIKE, RESULT_WIDTH = 1_000, 2_000
#: What the list reads of a row: neither message nor result.
LISTED = (
    "id", "task_id", "task", "idempotency_key", "state", "queue", "claims", "losses", "submitted_at", "started_at",
    "wait_kind", "wait_reason", "wake_at", "failure_kind", "lease_owner", "cancel_reason", "observed", "progress",
)  # fmt: skip


class TaskAdmin(Moves, LedgerAdmin):
    """Tasks, newest first."""

    list_display = ("called", "stands", "told", "attempts", "submitted")
    list_display_links = ("called",)
    list_filter = (filters.State, filters.TaskName, filters.Queue, filters.Kind)
    search_fields = ("task_id",)
    search_help_text = "A task id, a key, or task/key: the whole of it."
    actions = ("replay", "cancel")

    # The list --------------------------------------------------------------------------------------------

    def get_queryset(self, request: Any) -> Any:
        """Read what the list shows."""
        return super().get_queryset(request).only(*LISTED)

    def get_search_results(self, _request: Any, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Find by the whole id or key: each is one look into an index."""
        term = search_term.strip()
        if not term:
            return queryset, False
        found = list(Task.objects.filter(task_id=term).values_list("pk", flat=True))
        found += Task.objects.filter(idempotency_key=term).order_by().values_list("pk", flat=True)[:ALIKE]
        task, slash, key = term.partition("/")
        if slash:
            named = Task.objects.filter(idempotency_key=key, task=task)
            found += named.order_by().values_list("pk", flat=True)[:ALIKE]
        return queryset.filter(pk__in=found), False

    def how_to_look(self, changelist: Any) -> dict[str, Any]:
        """Know the rows of a rare state by its index; look for the others in windows."""
        if changelist.query or not changelist.params:
            return {}
        state, kind = (changelist.params.get(name) for name in ("state", "failure_kind"))
        if state in states.LIVE and not kind:
            rare = Task.objects.filter(finished_at__isnull=True, state=state).order_by("state", "queue", "pk")
        elif state == states.DEAD or kind:
            of = {"failure_kind": kind} if kind else {"failure_kind__isnull": False}
            rare = Task.objects.filter(**of).order_by("failure_kind", "pk")
        else:
            return {"wide": True}
        ids = list(rare.values_list("pk", flat=True)[: KNOWN + 1])
        if len(ids) > KNOWN:
            return {"wide": True}
        return {"ids": list(changelist.queryset.filter(pk__in=ids).order_by().values_list("pk", flat=True))}

    def prepared(self, rows: list[Any]) -> list[Any]:
        """Give what is dead its last failure."""
        dead = [row.pk for row in rows if row.state == states.DEAD]
        last = Failure.objects.filter(task_row__in=dead).order_by().values("task_row").annotate(last=Max("pk"))
        ids = [each["last"] for each in last] if dead else []
        told = Failure.objects.filter(pk__in=ids).values_list("task_row", "kind", "exception", "message") if ids else ()
        by_row = {row: Mishap(kind, exception, message) for row, kind, exception, message in told}
        for row in rows:
            row.key, row.failure = row.idempotency_key, by_row.get(row.pk)
        return rows

    @admin.display(description="task")
    def called(self, row: Any) -> Any:
        """How it is called, which task it is, and in which queue."""
        return named(row.key, f"{row.task} in {row.queue}")

    @admin.display(description="state")
    def stands(self, row: Any) -> Any:
        """Its state."""
        return format_html("{}{}", badge(row.state), badge("observed") if row.observed else "")

    @admin.display(description="note")
    def told(self, row: Any) -> Any:
        """What it does, waits for, or died of."""
        return format_html('<span class="durable-note">{}</span>', note(row))

    @admin.display(description="attempts")
    def attempts(self, row: Any) -> str:
        """How often it was tried."""
        return f"{row.claims} ({row.losses} lost)" if row.losses else str(row.claims)

    @admin.display(description="submitted")
    def submitted(self, row: Any) -> str:
        """How long ago it was submitted."""
        return ago(row.submitted_at, row.now)

    @answering
    def changelist_view(self, request: Any, extra_context: Any = None) -> Any:
        """Show the list under the counts of what is live."""
        ledger = deployment().ledger
        chosen = request.GET.get("state", "")
        counts = [
            {"state": state, "count": count, "chosen": state == chosen, "link": f"?state={state}"}
            for state, count in ledger.count_live().items()
        ]
        told = {"counts": counts, "total": ledger.count_all(), "pauses": ledger.pauses()}
        return super().changelist_view(request, told | (extra_context or {}))

    # The page of a task ----------------------------------------------------------------------------------

    def get_urls(self) -> Any:
        """Add the moves."""
        view, name = self.admin_site.admin_view, "celery_durable_task_{}"
        moves = [
            path(f"{move}/", view(getattr(self, f"{move}_view")), name=name.format(move))
            for move in ("replay", "cancel", "pauses", "pause", "resume")
        ]
        return moves + super().get_urls()

    @answering
    def change_view(self, request: Any, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:  # noqa: ARG002
        """Tell one task's life."""
        if not self.has_view_permission(request):
            return self.refused()
        record = deployment().ledger.record(int(object_id)) if object_id.isdigit() else None
        if record is None:
            messages.warning(request, f"There is no task with the row id {object_id}: it may have been pruned.")
            return HttpResponseRedirect(reverse("admin:celery_durable_task_changelist"))
        found = knowing(record.task)
        context = self.admin_site.each_context(request) | _page(found, record, everything="all" in request.GET)
        context |= {"opts": self.opts, "title": f"{record.task} {record.key}", "media": self.media}
        context |= self.permitted(request, record) | (extra_context or {})
        return TemplateResponse(request, "celery_durable/admin/task.html", context)


def _page(found: Deployment, record: Record, *, everything: bool) -> dict[str, Any]:
    """Look up what the page of a task tells."""
    ledger, names = found.ledger, found.redacted(record.task)
    answer = found.explained(record)
    failures = ledger.failures(record.id)
    entries = timeline.told(record, ledger.events(record.id), ledger.steps(record.id), failures, names)
    hidden = 0 if everything else max(0, len(entries) - timeline.SHOWN)
    progress = record.decoded_progress()
    result = record.decoded_result() if record.state == states.SUCCEEDED else None
    return {
        "record": record, "answer": answer, "facts": timeline.facts_of(record), "entries": entries[hidden:],
        "hidden": hidden,
        "progress": progress, "far": progress_of(record),
        "result": None if result is None else bounded(result, RESULT_WIDTH),
        "family": [
            (name, ref) for name, ref in (("part of", record.root_id), ("called by", record.parent_id))
            if ref and ref != record.task_id
        ],
    }  # fmt: skip
