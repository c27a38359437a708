"""`make pains`: 17 pains of stock Celery, side by side with DurableTask; exit code 1 when a row is not as it says."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tests.crash.fleet import ROOT
from tests.pains import table
from tests.pains.kit import Servers
from tests.pains.running import PAINS, Row, compare

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCS = ROOT / "docs" / "pains.md"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make pains", description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, help="which rows (all)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--write", action="store_true", help=f"write {DOCS.relative_to(ROOT)}")
    parser.add_argument("--jobs", type=int, default=4, help="sides at a time: most of them wait (%(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="run everything so many times, and print the last")
    given = parser.parse_args(arguments)
    unknown = set(given.rows) - set(PAINS)
    if unknown:
        parser.error(f"there is no row {min(unknown)}; there are {min(PAINS)} to {max(PAINS)}")
    rows, faults = [], 0
    for _ in range(given.repeat):
        rows = _run(given.rows or sorted(PAINS), given.jobs)
        faults += sum(bool(row.faults) for row in rows)
    if given.json:
        print(json.dumps(table.document(rows), indent=2))
    else:
        Console().print(table.terminal(rows))
    if given.write and len(rows) == len(PAINS) and not faults:
        versions = {"celery": version("celery"), "kombu": version("kombu"), "python": platform.python_version()}
        DOCS.write_text(table.page(rows, versions))
    return 1 if faults else 0


def _run(numbers: Sequence[int], jobs: int) -> list[Row]:
    def told(row: Row) -> None:
        print(f"row {row.pain.number}: {'FAULT' if row.faults else 'as told'}", file=sys.stderr)
        for fault in row.faults:
            print(f"  {fault}", file=sys.stderr)

    servers = Servers()
    with tempfile.TemporaryDirectory(prefix="durable-pains-") as folder, Path(os.devnull).open("w") as nowhere:
        try:
            with redirect_stdout(nowhere):  # fleets print how the logs of their workers end
                return compare(servers, Path(folder), numbers, jobs=jobs, told=told)
        finally:
            servers.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
