"""The ledger in Django's admin: tasks, failures and workers to look at, and the moves of an operator.

Nothing here writes a row: what changes is changed by a verb of the ledger, in the name of the user.
"""

from __future__ import annotations

from django.contrib import admin

from celery_durable.contrib.django.admin.failures import FailureAdmin, FailureGroupAdmin
from celery_durable.contrib.django.admin.tasks import TaskAdmin
from celery_durable.contrib.django.admin.workers import WorkerAdmin
from celery_durable.contrib.django.models import Failure, FailureGroup, Task, Worker
from celery_durable.contrib.django.place import ledger_alias

if ledger_alias() is not None:  # elsewhere there is nothing that Django could list
    admin.site.register(Task, TaskAdmin)
    admin.site.register(FailureGroup, FailureGroupAdmin)
    admin.site.register(Failure, FailureAdmin)
    admin.site.register(Worker, WorkerAdmin)
