"""Workers, a broker and a database under a seeded storm of faults, for one or more sides.

Fails when ours breaks a promise. The logs stay in the folder that is named at the end.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tests.soak import report
from tests.soak.places import PAIRS, apart
from tests.soak.plan import SPELLS, draw
from tests.soak.sides import SIDES
from tests.soak.storm import SLOTS, soak

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--rate", type=float, default=25.0, help="orders a second (default: %(default)s)")
    parser.add_argument("--pairs", default="redis-postgresql", help=f"of {', '.join(PAIRS)} (default: %(default)s)")
    parser.add_argument("--sides", default="durable", help=f"of {', '.join(SIDES)} (default: %(default)s)")
    parser.add_argument("--faults", default=",".join(SPELLS), help="beside kills (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write timelines as SVG")
    given = parser.parse_args(words)
    pairs, sides, faults = (_names(parser, *chosen) for chosen in (
        (given.pairs, PAIRS), (given.sides, SIDES), (given.faults, SPELLS)))  # fmt: skip
    try:
        plan = draw(given.minutes, given.seed, SLOTS, kinds=tuple(faults))
    except ValueError as error:
        parser.error(str(error))
    if "SOAK_APART" not in os.environ:
        apart([sys.executable, "-m", "tests.soak", "--seed", str(given.seed), *words])
    folder = Path(tempfile.mkdtemp(prefix="durable-soak-"))
    folder.chmod(0o755)  # for the users that servers run as
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"seed {given.seed}, {given.minutes:g} minutes, {len(plan)} faults; repeat with SEED={given.seed}")
    outcomes = []
    for pair in pairs:
        for side in sides:
            with redirect_stdout(io.StringIO()):  # fleets print how the logs of their workers end
                outcomes.append(
                    soak(side, pair, plan, given.minutes, given.seed, given.rate, folder / f"{side}-{pair}")
                )
            console.print(f"{side}, {pair}: {'every promise kept' if outcomes[-1].kept else 'PROMISES BROKEN'}")
            for failure in outcomes[-1].failed:
                console.print(f"  not brought about: {failure}", markup=False)
    for table in report.tables(outcomes):
        console.print(table)
    if given.json:
        given.json.write_text(json.dumps(report.document(outcomes, given.seed, given.minutes), indent=1) + "\n")
    if given.picture:
        given.picture.write_text(report.picture(outcomes, given.seed))
    console.print(f"logs: {folder}", highlight=False)
    return 0 if all(o.kept for o in outcomes if o.side == "durable") else 1


def _names(parser: argparse.ArgumentParser, given: str, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}.")
    return names


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
