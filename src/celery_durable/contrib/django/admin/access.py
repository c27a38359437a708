"""The way from a request to the ledger: the project's app, who acts, what is said when the ledger does not answer."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from celery import current_app
from django.template.response import TemplateResponse

from celery_durable.deployment import Deployment
from celery_durable.errors import LedgerError, SettingsError
from celery_durable.wiring import plugin, unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable

#: Status of a page that cannot be shown because the ledger does not answer.
UNAVAILABLE = 503


def deployment() -> Deployment:
    """Return the project's app with its ledger.

    Raises:
        SettingsError: a setting is unknown or makes no sense.
        LedgerError: the database does not answer, or has no ledger of this version.
    """
    app = unwrapped(current_app)
    side = plugin(app)
    return Deployment(app, side.settings, side.ledger)


def knowing(task: str) -> Deployment:
    """Return the app with this task imported, if it has one: only the task can say what of it is secret."""
    found = deployment()
    if task not in found.app.tasks:
        found.app.loader.import_default_modules()
        found.app.finalize()
    return found


def actor(request: Any) -> str:
    """Name who acts, for the history."""
    return f"{request.user.get_username()} (admin)"


def answering(view: Callable[..., Any]) -> Callable[..., Any]:
    """Make a view of an admin say what is wrong where the ledger is out of reach."""

    @wraps(view)
    def guarded(self: Any, request: Any, *args: Any, **options: Any) -> Any:
        try:
            response = view(self, request, *args, **options)
            if hasattr(response, "render") and not response.is_rendered:
                response.render()  # what it looks up on the way is looked up here
        except (LedgerError, SettingsError) as error:
            context = self.admin_site.each_context(request) | {"title": "The ledger does not answer", "error": error}
            return TemplateResponse(
                request, "celery_durable/admin/unavailable.html", context | {"opts": self.opts}, status=UNAVAILABLE
            )
        return response

    return guarded
