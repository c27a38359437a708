"""The smoke tests are a run of their own: here a sample of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_sample_of_the_smoke_tests():
    words = ["-m", "pytest", "tests/smoke", "-m", "sample", "-k", "redis", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout or "NOT TESTED" in done.stdout, done.stdout
