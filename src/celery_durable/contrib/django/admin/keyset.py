"""Lists of any length by key: a page is what comes before or after a row, nothing is counted.

A condition that no index serves is looked for in windows of row ids, the newest first, for as long as a page may
take; the page then says how far it looked and goes on from there.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.core.paginator import Paginator

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Row ids in the first window, and seconds after which no further one is looked through.
WINDOW, PATIENCE = 5_000, 0.06


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page begins: before (older than) a row id, or after one."""

    after: bool
    row_id: int

    @classmethod
    def read(cls, text: str) -> Place | None:
        """Read ``b123`` or ``a123``; None for anything else: the first page."""
        found = re.fullmatch(r"([ab])(\d{1,18})", text)
        return cls(found[1] == "a", int(found[2])) if found else None

    def __str__(self) -> str:
        """Write it as it stands in a link."""
        return f"{'a' if self.after else 'b'}{self.row_id}"


@dataclass(frozen=True, slots=True)
class Page:
    """Rows, newest first; where the pages beside it begin, None at an end; ``partial``: not all rows were looked at."""

    rows: list[Any]
    newer: Place | None
    older: Place | None
    partial: bool = False


def page(queryset: Any, place: Place | None, size: int, *, ids: list[int] | None = None, wide: bool = False) -> Page:
    """Take a page: of these row ids where they are known, in windows where the conditions are ``wide``."""
    after = place is not None and place.after
    partial: Place | None = None
    if ids is not None:
        rows = _chosen(queryset, place, size + 1, ids)
    elif wide:
        rows, partial = _looked_for(queryset, place, size + 1)
    else:
        rows = _next(queryset, place, size + 1)
    full = len(rows) > size
    rows = rows[:size][::-1] if after else rows[:size]
    beyond = Place(after, rows[0 if after else -1].pk) if full else partial
    back = Place(not after, rows[-1 if after else 0].pk) if rows else place and Place(not after, _beside(place))
    newer, older = (beyond, back) if after else (back if place else None, beyond)
    return Page(rows, newer, older, partial=partial is not None and not full)


def _beside(place: Place) -> int:
    """The row id that a page in the other direction begins at, of a page without rows."""
    return place.row_id + (1 if place.after else -1)


def _next(queryset: Any, place: Place | None, number: int) -> list[Any]:
    if place is None:
        return list(queryset.order_by("-pk")[:number])
    if place.after:
        return list(queryset.filter(pk__gt=place.row_id).order_by("pk")[:number])
    return list(queryset.filter(pk__lt=place.row_id).order_by("-pk")[:number])


def _chosen(queryset: Any, place: Place | None, number: int, ids: list[int]) -> list[Any]:
    after = place is not None and place.after
    wanted = [i for i in ids if place is None or (i > place.row_id if after else i < place.row_id)]
    wanted.sort(reverse=not after)
    return _next(queryset.filter(pk__in=wanted[:number]), Place(after, 0) if after else None, number)


def _looked_for(queryset: Any, place: Place | None, number: int) -> tuple[list[Any], Place | None]:
    """Look through windows; where it ended early, say from where to go on."""
    after = place is not None and place.after
    until = time.monotonic() + PATIENCE
    rows: list[Any] = []
    for low, high, last in _windows(queryset.model, place):
        inside = queryset.filter(pk__gte=low, pk__lt=high)
        rows += inside.order_by("pk" if after else "-pk")[: number - len(rows)]
        if len(rows) >= number or last:
            return rows, None
        if time.monotonic() > until:
            return rows, Place(after, high - 1 if after else low)
    return rows, None


def _windows(model: Any, place: Place | None) -> Iterator[tuple[int, int, bool]]:
    """Ranges of row ids, each twice as long as the one before; the last one is said to be that."""
    known = model.objects.order_by()
    first, last = (known.order_by(order).values_list("pk", flat=True).first() or 0 for order in ("pk", "-pk"))
    width = WINDOW
    if place is not None and place.after:
        low = max(place.row_id + 1, first)
        while low <= last:
            yield low, low + width, low + width > last
            low, width = low + width, 2 * width
        return
    high = last + 1 if place is None else min(place.row_id, last + 1)
    while high > first:
        yield high - width, high, high - width <= first
        high, width = high - width, 2 * width


class KeysetChangeList(ChangeList):
    """The admin's list, paged by key. Its admin says which rows are known, and whether conditions are wide."""

    def __init__(self, *given: Any, **options: Any) -> None:
        """Be called after what is listed: there is nothing to select for."""
        super().__init__(*given, **options)
        self.title = str(self.opts.verbose_name_plural).capitalize()

    def get_ordering(self, *_: Any) -> list[str]:
        """Newest first, always."""
        return ["-pk"]

    def get_results(self, request: Any) -> None:
        """Take one page; the numbers that Django's templates ask for are those of this page."""
        place = Place.read(request.GET.get(PAGE_VAR, ""))
        self.page = page(self.queryset, place, self.list_per_page, **self.model_admin.how_to_look(self))
        self.result_list = self.model_admin.prepared(self.page.rows)
        self.result_count = self.full_result_count = len(self.page.rows)
        self.show_all = self.can_show_all = self.multi_page = False
        self.show_admin_actions = bool(self.page.rows)
        self.paginator = Paginator(self.page.rows, self.list_per_page)
        self.page_num = 1
        self.newer = self.page.newer and self.get_query_string({PAGE_VAR: str(self.page.newer)})
        self.older = self.page.older and self.get_query_string({PAGE_VAR: str(self.page.older)})
        after = place is not None and place.after
        self.further = (self.newer if after else self.older) if self.page.partial else None
        self.newest = self.get_query_string() if place is not None else None
