"""celery-durable: a stock Celery deployment, made crash-safe."""

from __future__ import annotations

from celery_durable.api import ledger
from celery_durable.control import Cancelled, Draining
from celery_durable.errors import (
    BadRequest,
    DurableError,
    IdempotencyKeyError,
    KeyBusy,
    KeyConflict,
    LeaseLost,
    LedgerError,
    LedgerSchemaError,
    LedgerUnavailable,
    NoSuchTask,
    PayloadRefused,
    PayloadTooLarge,
    SettingsError,
    StepError,
    SubmitError,
    TaskIdConflict,
)
from celery_durable.observing import install
from celery_durable.task import DurableTask

__version__ = "0.1.0"
__all__ = [
    "BadRequest",
    "Cancelled",
    "Draining",
    "DurableError",
    "DurableTask",
    "IdempotencyKeyError",
    "KeyBusy",
    "KeyConflict",
    "LeaseLost",
    "LedgerError",
    "LedgerSchemaError",
    "LedgerUnavailable",
    "NoSuchTask",
    "PayloadRefused",
    "PayloadTooLarge",
    "SettingsError",
    "StepError",
    "SubmitError",
    "TaskIdConflict",
    "install",
    "ledger",
]
