"""Takes the rules of the protocol out of the code, one at a time, and sees that a test fails each time.

    python -m tests.mutants [word ...]      only the mutants whose name has one of the words

The source is copied to a temporary directory and changed there. Exits with 1 when a mutant survives, or when the text
that it changes is not there any more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.mutations import MUTANTS, Mutant
from tests.services import MariaDB, MissingServerError, Postgres

ROOT = Path(__file__).parents[1]


def source_of(mutant: Mutant) -> str:
    """The file with the rule taken out."""
    text = (ROOT / "src" / "celery_durable" / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise LookupError(f"its text is there {text.count(mutant.old)} times")
    return text.replace(mutant.old, mutant.new)


def files_of(mutant: Mutant) -> list[Path]:
    """The test files with a test of that expression's first word: collecting all takes longer than testing."""
    word = mutant.tests.split()[0]
    paths = [path for folder in ("ledger", "machine") for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    return [path for path in paths if word in path.name or f"_{word}" in path.read_text()]


def verdict(mutant: Mutant, servers: dict[str, str]) -> str | None:
    """What is wrong with this mutant; None when a test has killed it."""
    try:
        text = source_of(mutant)
    except LookupError as error:
        return f"{error}: {mutant.file}"
    with tempfile.TemporaryDirectory(prefix="durable-mutant-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        (source / "celery_durable" / mutant.file).write_text(text)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "--no-header",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
        ]
        command += [*map(str, files_of(mutant)), "-k", mutant.tests]
        paths = {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "DURABLE_MACHINE": "400"}
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | servers | paths, capture_output=True, text=True, check=False
        )
    if done.returncode == 1:  # tests ran, and some failed
        return None
    what = "survives" if done.returncode == 0 else f"pytest ended with {done.returncode}"
    return f"{what}: {mutant.tests}\n{done.stdout[-2000:] if done.returncode else ''}"


def main(words: list[str]) -> int:
    """Try every mutant; two at a time, on servers that all of them share."""
    chosen = [m for m in MUTANTS if not words or any(w in m.name for w in words)]
    with ExitStack() as stack:
        servers = {}
        for kind, name in ((Postgres, "POSTGRESQL"), (MariaDB, "MARIADB")):
            try:
                servers[f"DURABLE_TEST_{name}"] = stack.enter_context(kind()).url
            except MissingServerError as error:
                print(f"cannot tell anything without {name}: {error}", file=sys.stderr)
                return 1
        with ThreadPoolExecutor(2) as pool:
            verdicts = list(pool.map(lambda m: (m, _told(m, verdict(m, servers))), chosen))
    wrong = [(m, v) for m, v in verdicts if v]
    print(f"{len(chosen) - len(wrong)} of {len(chosen)} mutants killed")
    for mutant, what in wrong:
        print(f"NOT KILLED {mutant.name}: {what}")
    return 1 if wrong else 0


def _told(mutant: Mutant, wrong: str | None) -> str | None:
    print(f"{'NOT KILLED' if wrong else 'killed    '} {mutant.name}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
