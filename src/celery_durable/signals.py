"""Signals in Celery's style. They observe; they never carry correctness: Celery swallows what receivers raise."""

from __future__ import annotations

from celery import signals as celery
from celery.utils.dispatch import Signal

#: An attempt outlived its lease and what it did was thrown away. Sent in the pool process.
#: Arguments: ``task_id`` (str), ``claim`` (int, the fence that was refused).
task_fenced = Signal(name="task_fenced", providing_args={"task_id", "claim"})
#: An attempt was lost: its process died, hit the hard time limit or ran out of memory. Sent in the worker's parent.
#: Arguments: ``task_id`` (str), ``kind`` (str), ``state`` (str, what the task is now).
task_lost = Signal(name="task_lost", providing_args={"task_id", "kind", "state"})

__all__ = ["celery", "task_fenced", "task_lost"]
