"""What a soak found: on a terminal, as JSON, as a picture. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from rich.table import Table

from tests.soak.judge import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.soak.judge import Fault
    from tests.soak.storm import Outcome


def document(outcomes: Sequence[Outcome], seed: int, minutes: float) -> dict[str, Any]:
    """All of it, for machines."""
    return {"seed": seed, "minutes": minutes, "soaks": [_one(outcome) for outcome in outcomes]}


def _one(o: Outcome) -> dict[str, Any]:
    return {
        "side": o.side, "pair": o.pair, "kept": o.kept, "settled": o.settled, "verdict": asdict(o.verdict),
        "ledger": o.audit, "faults": o.counts, "not_brought_about": o.failed,
        "workers_started": o.workers, "workers_fell": o.fell,
        "recovery_seconds": {kind: _spread(times) for kind, times in sorted(o.recoveries.items())},
        "timeline": throughput(o.finished, o.began),
        "strikes": [
            {"kind": f.kind, "begin": round(f.begin - o.began, 3), "end": round(f.end - o.began, 3)} for f in o.faults
        ],
    }  # fmt: skip


def _spread(times: Sequence[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {"count": len(times)} | {name: round(percentile(times, share), 3) for name, share in shares.items()}


def throughput(finished: Sequence[float], began: float) -> list[int]:
    """How many bodies came to their end in each second."""
    counts = Counter(int(at - began) for at in finished)
    return [counts[second] for second in range(max(counts, default=-1) + 1)]


# On a terminal -----------------------------------------------------------------------------------


def tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """One with what was kept, one with the times to recovery; a column for each side."""
    return [_verdicts(outcomes), _recoveries(outcomes)]


def _verdicts(outcomes: Sequence[Outcome]) -> Table:
    table = Table("", *(f"{o.side}, {o.pair}" for o in outcomes), title="promises")
    rows: dict[str, list[object]] = {
        "orders given": [o.verdict.attempts for o in outcomes],
        "accepted": [o.verdict.accepted for o in outcomes],
        "refused with an error": [o.verdict.refused for o in outcomes],
        "completed": [o.verdict.completed for o in outcomes],
        "LOST: accepted, never completed": [len(o.verdict.lost) for o in outcomes],
        "unexpected": [len(o.verdict.unexpected) for o in outcomes],
        "effects missing": [o.verdict.effects_lost for o in outcomes],
        "effects DOUBLED": [len(o.verdict.effects_doubled) for o in outcomes],
        "bodies that ended twice": [o.verdict.repeated for o in outcomes],
        "refused, and completed": [o.verdict.recovered for o in outcomes],
        "ledger: completed twice": [o.audit.get("completed_twice", "-") for o in outcomes],
        "ledger: violations": [len(o.audit["violations"]) if o.audit else "-" for o in outcomes],
        "all over at the end": ["yes" if o.settled else "NO" for o in outcomes],
        "kills, other faults": [f"{_kills(o)}, {len(o.faults) - _kills(o)}" for o in outcomes],
        "workers started; ended by themselves": [f"{o.workers}; {o.fell}" for o in outcomes],
    }
    for name, cells in rows.items():
        table.add_row(name, *map(str, cells))
    return table


def _kills(outcome: Outcome) -> int:
    return sum(fault.kind.startswith("kill") for fault in outcome.faults)


def _recoveries(outcomes: Sequence[Outcome]) -> Table:
    table = Table(
        "", *(f"{o.side}, {o.pair}" for o in outcomes), title="seconds to recovery: p50, p99, max (times seen)"
    )
    for kind in sorted({kind for o in outcomes for kind in o.recoveries}):
        cells = []
        for outcome in outcomes:
            times = outcome.recoveries.get(kind, [])
            s = _spread(times) if times else {}
            cells.append(f"{s['p50']:.2f}, {s['p99']:.2f}, {s['max']:.2f} ({len(times)})" if s else "never")
        table.add_row(kind, *cells)
    return table


# As a picture ------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, GAP = 1200, 140, 40, 70
COLOURS = {
    "freeze": "#9467bd", "cut": "#ff7f0e", "broker": "#2ca02c", "database": "#1f77b4", "disk": "#8c564b",
    "memory": "#e377c2", "clock": "#7f7f7f", "kill": "#d62728",
}  # fmt: skip


def picture(outcomes: Sequence[Outcome], seed: int) -> str:
    """One timeline for each soak as SVG: what was completed in each second, faults behind it, kills below."""
    height = len(outcomes) * (HEIGHT + GAP) + 30
    parts = [_panel(outcome, n * (HEIGHT + GAP) + 30) for n, outcome in enumerate(outcomes)]
    legend = "".join(
        f'<rect x="{LEFT + n * 110}" y="6" width="12" height="12" fill="{colour}"/>'
        f'<text x="{LEFT + 16 + n * 110}" y="16">{name}</text>'
        for n, (name, colour) in enumerate(COLOURS.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{legend}{"".join(parts)}'
        f'<text x="{WIDTH - 10}" y="16" text-anchor="end">seed {seed}</text></svg>\n'
    )


def _panel(o: Outcome, top: int) -> str:
    counts = throughput(o.finished, o.began)
    seconds = max([len(counts), *(int(f.end - o.began) + 1 for f in o.faults)])
    scale, most = (WIDTH - LEFT - 10) / max(seconds, 1), max(counts, default=1)
    bottom = top + 20 + HEIGHT
    parts = [f'<text x="{LEFT}" y="{top + 14}" font-weight="bold">{escape(f"{o.side}, {o.pair}")}: {_told(o)}</text>']
    parts += [_mark(fault, o.began, scale, top, bottom) for fault in o.faults]
    bars = "".join(
        f"M{LEFT + n * scale:.1f} {bottom}v-{count / most * HEIGHT:.1f}h{scale:.2f}V{bottom}z"
        for n, count in enumerate(counts)
        if count
    )
    parts.append(f'<path d="{bars}" fill="#333" fill-opacity=".75"/>')
    parts += [
        f'<text x="{LEFT + minute * 60 * scale:.1f}" y="{bottom + 26}">{minute} min</text>'
        for minute in range(seconds // 60 + 1)
    ]
    parts.append(f'<text x="{LEFT - 4}" y="{top + 30}" text-anchor="end">{most}/s</text>')
    return "".join(parts)


def _told(o: Outcome) -> str:
    v = o.verdict
    return f"{v.accepted} accepted, {len(v.lost)} lost, {len(v.effects_doubled)} effects doubled"


def _mark(fault: Fault, began: float, scale: float, top: int, bottom: int) -> str:
    colour = COLOURS[fault.kind.partition("_")[0]]
    x, width = LEFT + (fault.begin - began) * scale, max(1.0, (fault.end - fault.begin) * scale)
    y, height = (bottom + 2, 10) if fault.kind.startswith("kill") else (top + 20, HEIGHT)
    title = f"<title>{fault.kind} at {fault.begin - began:.1f} s</title>"
    place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}"'
    return f'<rect {place} fill="{colour}" fill-opacity=".45">{title}</rect>'
