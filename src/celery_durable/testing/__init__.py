"""For tests of your own tasks: killed at every crash point, recovered, judged. See docs/testing.md."""

from __future__ import annotations

from celery_durable.testing.crashing import Durable
from celery_durable.testing.effects import Effects
from celery_durable.testing.sandbox import SandboxError
from celery_durable.testing.verdicts import CrashTestFailed, Report, Verdict

__all__ = ["CrashTestFailed", "Durable", "Effects", "Report", "SandboxError", "Verdict"]
