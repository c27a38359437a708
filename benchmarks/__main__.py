"""All benchmarks of ``make bench``, or those named: ``python -m benchmarks drain submit``; each is a command too."""

from __future__ import annotations

import subprocess
import sys
from itertools import takewhile
from pathlib import Path

#: What ``make bench`` runs, some ten minutes in all.
USUAL = ("drain", "submit", "latency", "cost")


def main(words: list[str]) -> int:
    """Run the named ones after another, or the usual ones; options that follow a single name are its own."""
    known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if "\ndef main(" in p.read_text())
    names = list(takewhile(lambda word: not word.startswith("-"), words))
    for name in names:
        if name not in known or name == "__main__":
            print(f"There is no benchmark {name!r}: {', '.join(known[1:])}.", file=sys.stderr)
            return 2
    options = words[len(names) :]
    return max(subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *options]) for name in names or USUAL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
