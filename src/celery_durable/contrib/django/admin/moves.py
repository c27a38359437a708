"""The moves of an operator: each asks for a reason on a page of its own, and stands in the history under their name."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import urlencode

from celery_durable import states
from celery_durable.api import TARGETS
from celery_durable.contrib.django.admin.access import actor, answering, deployment
from celery_durable.errors import BadRequest, NoSuchTask
from celery_durable.states import After
from celery_durable.wording import counted, relative

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.ledger import Ledger
    from celery_durable.records import Record

#: Tasks that one page of confirmation takes.
AT_ONCE = 200
REPLAYABLE = frozenset({states.DEAD, states.CANCELLED})


class Reasoned(forms.Form):
    """A move needs a reason."""

    reason = forms.CharField(
        max_length=500,
        widget=forms.TextInput(attrs={"class": "vTextField", "autofocus": True}),
        help_text="Why; it stands in the history, with your name.",
    )


class ReplayForm(Reasoned):
    """How to bring tasks back."""

    fresh = forms.BooleanField(
        required=False, label="Start over", help_text="Forget steps, sleeps and received events."
    )  # fmt: skip


class CancelForm(Reasoned):
    """How to cancel tasks."""

    terminate = forms.BooleanField(
        required=False, label="End the process", help_text="Of one that is running; prefork pools only."
    )  # fmt: skip


class PauseForm(Reasoned):
    """What to hold back."""

    kind = forms.ChoiceField(choices=[(kind, kind) for kind in TARGETS], label="Hold back the")
    target = forms.CharField(max_length=255, label="Named", widget=forms.TextInput(attrs={"class": "vTextField"}))
    hours = forms.FloatField(
        required=False, min_value=0.01, max_value=24 * 366, label="For hours",
        help_text="Ends by itself after so many; left empty, it lasts until it is resumed.",
    )  # fmt: skip
    field_order = ("kind", "target", "hours", "reason")


class Moves:
    """The part of the tasks' admin that changes something."""

    # Permissions -----------------------------------------------------------------------------------------

    def has_replay_permission(self, request: Any) -> bool:
        """Whether the user may bring tasks back."""
        return bool(request.user.has_perm("celery_durable.replay_task"))

    def has_cancel_permission(self, request: Any) -> bool:
        """Whether the user may cancel tasks."""
        return bool(request.user.has_perm("celery_durable.cancel_task"))

    def has_pause_permission(self, request: Any) -> bool:
        """Whether the user may hold back tasks and queues."""
        return bool(request.user.has_perm("celery_durable.pause_task"))

    def refused(self) -> NoReturn:
        """Answer with 403."""
        raise PermissionDenied

    def permitted(self: Any, request: Any, record: Record) -> dict[str, bool]:
        """Say which moves a page offers."""
        return {
            "may_replay": self.has_replay_permission(request) and record.state in REPLAYABLE and not record.observed,
            "may_cancel": self.has_cancel_permission(request) and record.state in states.LIVE and not record.observed,
            "may_pause": self.has_pause_permission(request),
        }

    # Replay and cancel -----------------------------------------------------------------------------------

    @admin.action(permissions=["replay"], description="Replay…")
    def replay(self, _request: Any, queryset: Any) -> Any:
        """Ask for a reason to queue these again."""
        return _ask("replay", queryset)

    @admin.action(permissions=["cancel"], description="Cancel…")
    def cancel(self, _request: Any, queryset: Any) -> Any:
        """Ask for a reason to cancel these."""
        return _ask("cancel", queryset)

    @answering
    def replay_view(self: Any, request: Any) -> Any:
        """Queue tasks again, once there is a reason."""
        if not self.has_replay_permission(request):
            self.refused()

        def move(ledger: Ledger, row: Record, given: dict[str, Any]) -> bool:
            return ledger.replay_row(row.id, given["reason"], actor=actor(request), fresh=given["fresh"])

        words = {"title": "Replay", "verb": "Replay", "done": "queued again", "fits": "dead or cancelled"}
        return self._confirmed(request, ReplayForm, REPLAYABLE, move, words)

    @answering
    def cancel_view(self: Any, request: Any) -> Any:
        """Cancel tasks, once there is a reason."""
        if not self.has_cancel_permission(request):
            self.refused()

        def move(ledger: Ledger, row: Record, given: dict[str, Any]) -> bool:
            options = {"actor": actor(request), "terminate": given["terminate"]}
            return ledger.cancel_row(row.id, given["reason"], **options) not in {states.SUCCEEDED, states.DEAD}

        words = {"title": "Cancel", "verb": "Cancel", "done": "cancelled, or told to end", "fits": "live"}
        return self._confirmed(request, CancelForm, states.LIVE, move, words)

    def _confirmed(
        self: Any, request: Any, form_class: type[Reasoned], fitting: frozenset[str],
        move: Callable[[Ledger, Record, dict[str, Any]], bool], words: dict[str, str],
    ) -> Any:  # fmt: skip
        ledger = deployment().ledger
        ids = [int(text) for text in request.GET.get("ids", "").split(",") if text.isdigit()][:AT_ONCE]
        records = [record for record in map(ledger.record, ids) if record is not None]
        fit = [record for record in records if record.state in fitting and not record.observed]
        form = form_class(request.POST or None)
        if request.method == "POST" and fit and form.is_valid():
            self._carry_out(request, ledger, fit, form.cleaned_data, move, words)
            return HttpResponseRedirect(_page_of(ids))
        context = self.admin_site.each_context(request) | words | {
            "opts": self.opts, "media": self.media, "form": form, "fit": fit, "back": _page_of(ids),
            "unfit": [record for record in records if record not in fit], "count": counted(len(fit), "task"),
        }  # fmt: skip
        return TemplateResponse(request, "celery_durable/admin/confirm.html", context)

    def _carry_out(
        self: Any, request: Any, ledger: Ledger, fit: list[Record], given: dict[str, Any],
        move: Callable[[Ledger, Record, dict[str, Any]], bool], words: dict[str, str],
    ) -> None:  # fmt: skip
        done = 0
        for record in fit:
            try:
                done += move(ledger, record, given)
            except (BadRequest, NoSuchTask) as error:
                messages.error(request, str(error))
        if done:
            messages.success(request, f"{counted(done, 'task')} {words['done']}.")
        if done < len(fit):
            messages.warning(request, f"{counted(len(fit) - done, 'task')} had moved on: nothing was changed there.")

    # Pauses ----------------------------------------------------------------------------------------------

    @answering
    def pauses_view(self: Any, request: Any) -> Any:
        """Show what is held back."""
        if not self.has_view_permission(request):
            self.refused()
        pauses = [
            {
                "pause": p, "since": relative(p.since, p.now),
                "until": "it is resumed" if p.until is None else relative(p.until, p.now),
                "resume": "?" + urlencode({"kind": p.kind, "target": p.target}),
            }
            for p in deployment().ledger.pauses()
        ]  # fmt: skip
        context = self.admin_site.each_context(request) | {
            "opts": self.opts, "media": self.media, "title": "Held back", "pauses": pauses,
            "may_pause": self.has_pause_permission(request),
        }  # fmt: skip
        return TemplateResponse(request, "celery_durable/admin/pauses.html", context)

    @answering
    def pause_view(self: Any, request: Any) -> Any:
        """Hold back a task or a queue, once there is a reason."""
        if not self.has_pause_permission(request):
            self.refused()
        named = {name: request.GET[name] for name in ("kind", "target") if name in request.GET}
        form = PauseForm(request.POST or None, initial=named)
        if request.method == "POST" and form.is_valid():
            given = form.cleaned_data
            until = After(timedelta(hours=given["hours"]).total_seconds()) if given["hours"] else None
            ledger, who = deployment().ledger, actor(request)
            held = ledger.pause(given["kind"], given["target"], given["reason"], until=until, actor=who)
            told = f"{given['kind']} '{given['target']}' is paused; {counted(held, 'queued task')} held back."
            messages.success(request, told)
            return HttpResponseRedirect(reverse("admin:celery_durable_task_pauses"))
        hint = "What runs goes on; what is queued, or arrives, waits and says who paused it and why."
        return self._holding(request, form, title="Hold back", verb="Hold back", hint=hint)

    @answering
    def resume_view(self: Any, request: Any) -> Any:
        """End a pause, once there is a reason."""
        if not self.has_pause_permission(request):
            self.refused()
        kind, target = request.GET.get("kind", ""), request.GET.get("target", "")
        if kind not in TARGETS or not target:
            return HttpResponseRedirect(reverse("admin:celery_durable_task_pauses"))
        form = Reasoned(request.POST or None)
        if request.method == "POST" and form.is_valid():
            ledger, reason = deployment().ledger, form.cleaned_data["reason"]
            released = ledger.resume(kind, target, reason, actor=actor(request))
            messages.success(request, f"{kind} '{target}' is resumed; {counted(released, 'task')} queued.")
            return HttpResponseRedirect(reverse("admin:celery_durable_task_pauses"))
        title = f"Resume {kind} '{target}'"
        return self._holding(request, form, title=title, verb="Resume", hint="What it held back is queued at once.")

    def _holding(self: Any, request: Any, form: forms.Form, **words: str) -> Any:
        context = self.admin_site.each_context(request) | words
        context |= {"opts": self.opts, "media": self.media, "form": form}
        context |= {"back": reverse("admin:celery_durable_task_pauses")}
        return TemplateResponse(request, "celery_durable/admin/hold.html", context)


def _ask(move: str, queryset: Any) -> Any:
    ids = ",".join(str(pk) for pk in queryset.order_by("pk").values_list("pk", flat=True)[:AT_ONCE])
    return HttpResponseRedirect(f"{reverse(f'admin:celery_durable_task_{move}')}?ids={ids}")


def _page_of(ids: list[int]) -> str:
    """Return where to go afterwards: the page of the one task, or the list."""
    if len(ids) == 1:
        return str(reverse("admin:celery_durable_task_change", args=ids))
    return str(reverse("admin:celery_durable_task_changelist"))
