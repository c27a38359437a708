"""``celery -A proj durable ...``: what an operator asks and does.

Exit codes: 0 done, 1 refused or something is wrong (one line on stderr says what), 2 wrong usage.
"""

from __future__ import annotations

from celery_durable.cli.group import durable

__all__ = ["durable"]
