"""Takes the rules that live in task, run and worker out of the code, one at a time: a test has to fail each time.

    python -m tests.mutants_worker [word ...]      only the mutants whose name has one of the words

As `tests.mutants`, which does the same for the ledger.
"""
# ruff: noqa: E501 - the texts stand as they stand in the code

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants import ROOT, source_of
from tests.mutations import Mutant

SUBMISSION, RUNS, ATTEMPT, OUTCOMES = "submission.py", "runs.py", "attempt.py", "outcomes.py"
KEEPER, REQUEST, SWEEPER = "worker/keeper.py", "worker/request.py", "worker/sweeper.py"
LEASES = "worker/leases.py"
MUTANTS = [
    Mutant("rule 1: all deliveries have one token", "delivery.py", "cls(uuid4().hex,", 'cls("0" * 32,', "rule_01"),
    Mutant("rule 2: the envelope's number is ignored", RUNS, "note.envelope_no if note.recorded else None", "None", "rule_02"),
    Mutant(
        "rule 4: an awaited submission collapses", SUBMISSION,
        'awaited=call.id_chosen or chained or bool(headers.get("group")),', "awaited=False,", "rule_04",
    ),
    Mutant("rule 6: a marked message without a row is adopted", RUNS, "if note.recorded:\n            adoption", "if False:\n            adoption", "rule_06"),
    Mutant("rule 9: a sweeper that was away expires at once", SWEEPER, "return now >= self._patient_until", "return True", "rule_09"),
    Mutant("rule 9: a jump of the clock is overlooked", SWEEPER, "elif abs(", "elif False and abs(", "rule_09"),
    Mutant("rule 11: a hung body is renewed for ever", LEASES, "now > kept.until", "now > kept.until + 1e9", "rule_11"),
    Mutant("rule 11: nothing is renewed", LEASES, "self._ledger.renew(", "dict(", "rule_11"),
    Mutant("rule 12: consumption goes on without a ledger", KEEPER, "self.paused = True", "return", "rule_12"),
    Mutant("rule 13: a success owes nothing", ATTEMPT, "owes=self._owes, actor", "owes=False, actor", "rule_13"),
    Mutant("rule 13: what is owed is never told", RUNS, "return Telling(delivery, answer.row) if owing else", "return", "rule_13"),
    Mutant("rule 14: a revoke moves no row", REQUEST, "self.keeper.revoked(self, expired=expired, reason=reason)", "pass", "rule_14"),
    Mutant("rule 14: a revoke stops the outcome on its way", REQUEST, "return False  # the row has taken the revoke", "pass  #", "rule_14"),
    Mutant("rule 14: a body that is told succeeds", ATTEMPT, "self._settle(self._outcomes.cancelled(str(ending)))", "return self._succeed(None)", "rule_14"),
    Mutant("rule 14: nobody is told", LEASES, "self.board.renewed(kept.line, token, until, cancelled=cancelled)", "pass", "rule_14"),
    Mutant("rule 16: a swallowed exception is forgotten", ATTEMPT, "        self._ending = self._ending or ending\n        raise self._ending", "        raise ending", "rule_16"),
    Mutant("rule 16: the next step does not look", ATTEMPT, "        self.proceed()\n        return self.steps.step", "        return self.steps.step", "rule_16"),
    Mutant("rule 16: a lease that has passed is no refusal", "watch.py", "if now <= self._until:\n            return None\n        told", "if now:\n            return None\n        told", "rule_16"),
    Mutant("rule 15: ignore is a failure", OUTCOMES, "if isinstance(exc, Ignore):", "if False:", "rule_15"),
    Mutant("rule 15: requeue is ignored", OUTCOMES, "if not exc.requeue:", "if True:", "rule_15"),
    Mutant("rule 15: an unstorable result is stored as none", ATTEMPT, "            raise EncodeError(", "            return None, None\n            raise EncodeError(", "rule_15"),
    Mutant("rule 23: one's own row is a conflict", "ledger/submitting.py", "if (row.task_id, row.task, row.idempotency_key) != (", "if () != (", "rule_23"),
]  # fmt: skip


def verdict(mutant: Mutant) -> str | None:
    """What is wrong with this mutant; None when a test has killed it."""
    try:
        text = source_of(mutant)
    except LookupError as error:
        return f"{error}: {mutant.file}"
    with tempfile.TemporaryDirectory(prefix="durable-mutant-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        (source / "celery_durable" / mutant.file).write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
        command += [*map(str, sorted(ROOT.glob("tests/worker/test_protocol*.py"))), "-k", mutant.tests]
        paths = {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=os.environ | paths, capture_output=True, text=True, check=False)
    if done.returncode == 1:  # tests ran, and some failed
        return None
    return "survives" if done.returncode == 0 else f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}"


def main(words: list[str]) -> int:
    """Try every mutant."""
    survivors = 0
    for mutant in (m for m in MUTANTS if not words or any(w in m.name for w in words)):
        wrong = verdict(mutant)
        print(f"{'killed' if wrong is None else 'NOT KILLED'}  {mutant.name}{'' if wrong is None else ': ' + wrong}")
        survivors += wrong is not None
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
