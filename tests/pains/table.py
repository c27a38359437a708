"""The comparison as a table: on a terminal, as JSON, as a page of the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from tests.pains.kit import Seen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.pains.running import Row

HOMES = {"flower": "mher"}  # the others are Celery's own

PAGE = """# What users of Celery lose, side by side

Seventeen things that users of Celery report, each brought about twice by `make pains`: with a stock task, and with
the same task on `DurableTask`, on the same brokers, with the same configuration, workers and kills. A witness that
knows nothing of Celery or the ledger counts what ran. `make pains` fails when a stock task does not show what this page
says, or when ours does. The figures are those of one run: Celery {celery}, kombu {kombu}, Python {python}.

Most of this is what at-least-once or at-most-once delivery means, and no mistake in Celery. Where Celery has a setting
against it, the second table says so, and what that costs. Ours is impatient here, so that the comparison does not take
hours: `durable_lease` 3 s, `durable_sweep_interval` 0.25 s, `durable_republish_after` 1.5 s.

| | pain | stock task | `DurableTask` | reports |
|---|---|---|---|---|
{results}

## How it was brought about, and what Celery offers

| | set-up of both sides | what Celery offers against it |
|---|---|---|
{settings}
"""


def words(found: Seen | str) -> str:
    return found.text if isinstance(found, Seen) else f"FAILED: {found.strip().splitlines()[-1]}"


def link(report: str) -> str:
    """The address of a report such as `celery#2481`."""
    project, _, number = report.partition("#")
    return f"https://github.com/{HOMES.get(project, 'celery')}/{project}/issues/{number}"


def terminal(rows: Iterable[Row]) -> Table:
    table = Table("", "pain", "stock task", "DurableTask", "report", show_lines=True)
    for row in rows:
        style = "red" if row.faults else ""
        first = row.pain.reports[0]
        cells = [row.pain.title, words(row.stock), words(row.durable)]
        table.add_row(
            str(row.pain.number), *(_plain(c) for c in cells), f"[link={link(first)}]{first}[/link]", style=style
        )
    return table


def document(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [
        {
            "row": row.pain.number,
            "pain": row.pain.title,
            "stock": words(row.stock),
            "durable": words(row.durable),
            "setting": row.pain.setting,
            "cure": row.pain.cure,
            "reports": [link(r) for r in row.pain.reports],
            "faults": row.faults,
        }
        for row in rows
    ]


def page(rows: Iterable[Row], versions: dict[str, str]) -> str:
    results, settings = [], []
    for row in rows:
        p = row.pain
        reports = ", ".join(f"[{r}]({link(r)})" for r in p.reports)
        results.append(_line(p.number, p.title, words(row.stock), words(row.durable), reports))
        settings.append(_line(p.number, p.setting, p.cure))
    return PAGE.format(results="\n".join(results), settings="\n".join(settings), **versions)


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
