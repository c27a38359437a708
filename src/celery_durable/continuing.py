"""What follows a task that is over: Celery sends it; here it is seen to that this is once, and that it is all.

A delivery that tells an outcome may die at any place of it, and is then made again by a sweep. So whatever Celery
names anew while it sends (groups, the parts of a canvas) gets the same names each time; and what cannot be sent for
the moment leaves the outcome owed, instead of making a failure of the task.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from celery import canvas
from celery.exceptions import Reject
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid

from celery_durable.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from celery_durable.ledger import Ledger

#: Failures that another try may help.
PASSING = (OperationalError, OSError, LedgerError)
#: How often, and after how many seconds each, it is looked again whether another delivery has sent a chord's body.
LOOKS, LOOK = 10, 0.05


class Follower:
    """What a run is when its outcome is recorded: it names what follows, and ends what will not follow."""

    def __init__(self, task_id: str, claims: int) -> None:
        """Name by the task and its claim: another run's outcome is followed by something else."""
        self._named, self._base = 0, f"celery-durable {task_id} {claims}"
        #: Whether the ledger did not answer when what follows was to be sent.
        self.put_off = False

    def name(self) -> str:
        """Return the next id: the same at the same place of every telling."""
        self._named += 1
        return str(uuid5(NAMESPACE_OID, f"{self._base} {self._named}"))

    def end(self, ledger: Ledger, heirs: set[str], row_id: int) -> None:
        """End the rows that a failed task would have replaced by what followed it.

        Raises:
            Reject: the ledger does not answer; the outcome stays owed.
        """
        try:
            ledger.end_replaced(heirs, row_id, actor="")
        except LedgerError as exc:
            self.put_off = True
            raise Reject(exc, requeue=True) from exc


def install(follower: Callable[[], Follower | None]) -> None:
    """Have canvases named by the ``follower`` of the moment, where there is one."""

    def named() -> str:
        found = follower()
        return str(uuid()) if found is None else found.name()

    canvas.uuid = named


class Guard:
    """The result backend while an outcome is told: what it cannot take now, it is told later."""

    def __init__(self, backend: Any, *, succeeded: bool) -> None:
        """Wrap a backend; ``succeeded`` is what the ledger says of the task."""
        self.__dict__.update(_backend=backend, _succeeded=succeeded)

    def __getattr__(self, name: str) -> Any:
        """Whatever is not told here is the backend's own."""
        return getattr(self._backend, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What is set is set on the backend itself."""
        setattr(self._backend, name, value)

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, *args: Any, **options: Any) -> Any:
        """Store a success and count it for its chord."""
        return self._told(partial(self._backend.mark_as_done, task_id, result, request, *args, **options), request)

    def mark_as_revoked(self, task_id: str, reason: str = "", request: Any = None, **options: Any) -> Any:
        """Store a revoke and count it for its chord."""
        return self._told(partial(self._backend.mark_as_revoked, task_id, reason, request=request, **options), request)

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        """Store the failure of the task. One in sending what follows a success is none of the task's.

        Raises:
            Reject: the outcome stays owed.
        """
        if self._succeeded:
            raise Reject(exc, requeue=True) from exc
        store = partial(self._backend.mark_as_failure, task_id, exc, traceback, request=request, **options)
        return self._told(store, request)

    def _told(self, tell: Callable[[], Any], request: Any) -> Any:
        try:
            answer = tell()
            self._counted(request)
        except Reject:
            raise
        except Exception as exc:
            raise Reject(exc, requeue=True) from exc
        return answer

    def _counted(self, request: Any) -> None:
        """See that a chord's body is not left to a delivery that died with its claim on it (Redis)."""
        group = getattr(request, "group", None)
        if not group or not getattr(request, "chord", None):
            return
        # Only Redis' backend has it, of releases that know claims; its module cannot be asked without the driver.
        if not hasattr(type(self._backend), "_chord_part_return_script"):
            return
        for look in range(LOOKS):
            if self._sent_or_incomplete(group):
                return
            time.sleep(LOOK if look < LOOKS - 1 else 0)
        raise Reject(f"another delivery has claimed the body of chord {group}", requeue=True)

    def _sent_or_incomplete(self, group: str) -> bool:
        """Whether a chord's body is sent, or some part is still to come that will see to it."""
        client, key = self._backend.client, self._backend.get_key_for_group
        claim = client.get(key(group, ".c"))
        if claim is not None:
            return claim in {b"done", "done"}
        size, added = client.get(key(group, ".s")), client.get(key(group, ".t"))
        return size is None or int(client.scard(key(group, ".d"))) < int(size) + int(added or 0)


def heirs(embed: Mapping[str, Any]) -> set[str]:
    """Ids that a task's chain and chord would have brought: none of them comes any more when it fails."""
    found: set[str] = set()
    for signature in (*(embed.get("chain") or ()), *([embed["chord"]] if embed.get("chord") else ())):
        found.update(_ends(signature))
    return found


def _ends(signature: Mapping[str, Any]) -> Iterator[str]:
    options, kwargs = signature.get("options") or {}, signature.get("kwargs") or {}
    kind = signature.get("subtask_type")
    if kind == "chord":
        if kwargs.get("body"):
            yield from _ends(kwargs["body"])
    elif kind in {"chain", "group"}:
        for task in kwargs.get("tasks") or ():
            yield from _ends(task)
    elif options.get("task_id"):
        yield options["task_id"]
    for following in options.get("chain") or ():
        yield from _ends(following)
    if options.get("chord"):
        yield from _ends(options["chord"])


def last_task(signature: Any) -> str:
    """Name the task that a canvas ends with."""
    while True:
        kind, kwargs = signature.get("subtask_type"), signature.get("kwargs") or {}
        if kind == "chord" and kwargs.get("body"):
            signature = kwargs["body"]
        elif kind == "chain" and kwargs.get("tasks"):
            signature = kwargs["tasks"][-1]
        else:
            return str(signature["task"])
