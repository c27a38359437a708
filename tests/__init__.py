"""Tests of celery-durable; a package, so that no other `tests` on the path shadows it."""
