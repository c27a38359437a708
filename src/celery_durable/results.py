"""``result_backend = "durable://"``: the rows of the ledger are the results, without a second store or write.

Results of stock tasks, states that tasks set themselves, and failures that Celery tells to steps of a chain which
were never sent have no row; they are kept in a table beside the rows. Chords are counted in the ledger.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery import states as celery_states
from celery.backends.base import BaseBackend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError, Reject
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult, result_from_tuple
from celery.utils.functional import _regen
from kombu.serialization import dumps, loads

from celery_durable import continuing, results_meta, runs
from celery_durable.errors import LedgerError, LedgerUnavailable
from celery_durable.ledger import Part, Stored
from celery_durable.sealing import opened_result, sealed_result
from celery_durable.wiring import plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from celery_durable.ledger import Ledger, Seen

#: What a row says by itself, so that it need not be stored.
DERIVED = frozenset({*celery_states.READY_STATES, celery_states.STARTED, celery_states.RETRY, celery_states.IGNORED})
#: Seconds before the second look at a result that is not there; each later one comes half as much later again.
FIRST_LOOK, SLOWER = 0.005, 1.5
#: How many ids one statement asks for.
BATCH = 500
#: Failures that another try may help: what could not be sent is sent later.
PASSING = (*continuing.PASSING, Reject)


class DurableBackend(BaseBackend):
    """Celery's result backend on the ledger that ``durable_ledger_url`` names."""

    supports_native_join = True
    #: What has a row is told of by the row; nobody has to be told a result.
    reads_the_ledger = True

    @property
    def _ledger(self) -> Ledger:
        return plugin(self.app).ledger

    def as_uri(self, include_password: bool = False) -> str:  # noqa: ARG002, FBT001, FBT002 - Celery's signature
        """Return the backend's URL; where the ledger is, ``durable_ledger_url`` says."""
        return "durable://"

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Say what ``result_backend_always_retry`` may try again."""
        return isinstance(exc, LedgerUnavailable)

    # Storing ----------------------------------------------------------------------------------------

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        """Store what has no row; of what has one, tell at most that it is over."""
        run = runs.at(task_id)
        if state in DERIVED and run is not None:
            if run.heard:
                self._hint(task_id, state)
            return result
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        rowless = state in DERIVED and self._durable(request)
        final = {celery_states.SUCCESS}
        if self._ledger.keep_result("task", task_id, Stored(state, *self._packed(meta)), unless=final, rowless=rowless):
            self._hint(task_id, state)
        return result

    def _durable(self, request: Any) -> bool:
        """Whether a request is, or may be, one of a task that has rows."""
        task = self.app.tasks.get(getattr(request, "task", None)) if request is not None else None
        return request is None or task is None or hasattr(task, "fence")

    def _hint(self, task_id: str, state: str) -> None:
        if state in celery_states.READY_STATES:
            with suppress(LedgerError):  # whoever waits looks by himself
                self._ledger.hint(task_id)

    def mark_as_revoked(self, task_id: str, reason: str = "", request: Any = None, **options: Any) -> None:
        """Store a revoke, unless a worker's event loop says so of a durable task: its row takes the revoke."""
        if request is not None and self._durable(request) and runs.at(task_id) is None:
            return
        super().mark_as_revoked(task_id, reason, request=request, **options)

    def _packed(self, value: Any) -> tuple[bytes, str]:
        content_type, encoding, data = dumps(value, serializer=self.serializer)
        data = data.encode() if isinstance(data, str) else data
        kind = content_type if encoding == "utf-8" else f"{content_type};{encoding}"
        return sealed_result(data, kind)  # nobody has looked for secrets in it

    def unpacked(self, content: bytes, kind: str) -> Any:
        """Decode what this backend has stored."""
        content, kind = opened_result(content, kind)
        content_type, _, encoding = kind.partition(";")
        return loads(bytes(content), content_type, encoding or "utf-8", accept=self.accept)

    def _forget(self, task_id: str) -> None:
        self._ledger.forget_result(task_id)

    def cleanup(self) -> None:
        """Delete what was stored beside the rows longer than ``result_expires`` ago; rows are not results to expire."""
        if self.expires:
            self._ledger.expire_results(float(self.expires))

    # Reading ----------------------------------------------------------------------------------------

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return self._metas([task_id])[task_id]

    def _metas(self, task_ids: Collection[str], *, children: bool = True) -> dict[str, dict[str, Any]]:
        """Look at many tasks: a statement or two per batch, and one for what they have sent."""
        found: dict[str, Seen] = {}
        ids = list(task_ids)
        for start in range(0, len(ids), BATCH):
            found |= self._ledger.seen(ids[start : start + BATCH])
        metas = {task_id: results_meta.meta(self, found.get(task_id)) for task_id in ids}
        if not children:
            return metas
        over = [i for i, m in metas.items() if m["status"] in celery_states.READY_STATES and "children" not in m]
        sent = self._ledger.children(over) if over else {}
        for task_id in over:
            metas[task_id]["children"] = results_meta.children(sent.get(task_id, []))
        return metas

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,  # noqa: ARG002, FBT001, FBT002 - Celery's signature
        on_interval: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Wait for a task and return its meta.

        Raises:
            celery.exceptions.TimeoutError: it was not over within ``timeout`` seconds.
        """
        for _, meta in self.get_many([task_id], timeout, interval, on_interval=on_interval):
            return meta
        raise AssertionError("unreachable: get_many yields or raises")

    def get_many(  # noqa: PLR0913, PLR0917 - Celery's signature
        self,
        task_ids: Collection[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,  # noqa: ARG002, FBT001, FBT002
        on_message: Callable[[dict[str, Any]], None] | None = None,
        on_interval: Callable[[], None] | None = None,
        max_iterations: int | None = None,
        **_: Any,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield ids with their metas as the tasks end.

        ``interval`` (seconds) is the longest time between two looks; the first come sooner, and PostgreSQL tells.

        Raises:
            celery.exceptions.TimeoutError: not all were over within ``timeout`` seconds.
        """
        self._ensure_not_eager()
        waiting = dict.fromkeys(task_ids)
        until = None if timeout is None else time.monotonic() + timeout
        longest, nap, turn = interval or 0.5, FIRST_LOOK, 0
        with self._ledger.ears.listen() as hear:
            while waiting:
                for task_id, meta in self._ready(waiting):
                    del waiting[task_id]
                    if on_message is not None:
                        on_message(meta)
                    yield task_id, meta
                if not waiting:
                    return
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise CeleryTimeoutError("The operation timed out.")
                if on_interval is not None:
                    on_interval()
                hear(min(nap, longest) if left is None else min(nap, longest, left), waiting)
                nap, turn = min(nap * SLOWER, longest), turn + 1
                if max_iterations and turn >= max_iterations:
                    return

    def _ready(self, waiting: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
        known = {i: self._cache[i] for i in waiting if i in self._cache}
        metas = known | self._metas([i for i in waiting if i not in known])
        ready = [(i, metas[i]) for i in waiting if metas[i]["status"] in celery_states.READY_STATES]
        self._cache.update({i: meta for i, meta in ready if meta["status"] == celery_states.SUCCESS})
        return ready

    # Groups -----------------------------------------------------------------------------------------

    def _save_group(self, group_id: str, result: Any) -> Any:
        told = Stored(celery_states.SUCCESS, *self._packed(result.as_tuple()))
        self._ledger.keep_result("group", group_id, told)
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        stored = self._ledger.group(group_id)
        if stored is None or stored.content is None or stored.content_type is None:
            return None
        told = self.unpacked(stored.content, stored.content_type)
        return {"result": result_from_tuple(told, self.app), "date_done": results_meta.moment(stored.stored_at)}

    def _delete_group(self, group_id: str) -> None:
        self._ledger.drop_result("group", group_id)

    # Chords -----------------------------------------------------------------------------------------

    def apply_chord(self, header_result_args: Any, body: Any, **_: Any) -> None:  # noqa: ARG002
        """Begin to count a chord; of a nested header the form is kept, so that its results have it too."""
        group_id, parts = header_result_args
        self._ledger.begin_chord(group_id)
        if not isinstance(parts, _regen) and any(isinstance(part, GroupResult) for part in parts):
            self.save_group(group_id, self.app.GroupResult(*header_result_args))

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Take the number of parts, before the last of them is sent."""
        self._ledger.size_chord(group_id, chord_size)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Expect one more part, once."""
        self._ledger.add_part(chord_id, result.id)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Count a part, once; the one that completes the chord sends the body."""
        group_id, task_id = request.group, request.id
        if not group_id or not task_id:
            return
        content = kind = None
        if runs.at(task_id) is None:  # a stock task, or a step that was never sent: no row has its result
            content, kind = self._packed(self.encode_result(result, state))
        part = Part(task_id, request.group_index, state, content, kind)
        if self._ledger.part_returned(group_id, part):
            self._finish(group_id, maybe_signature(request.chord, app=self.app))

    def _finish(self, group_id: str, body: Any) -> None:
        """Send the body with the results of the parts, or tell that one of them failed."""
        try:
            values = self._gathered(group_id)
        except ChordError as exc:
            self._fail_chord(group_id, body, exc)
            return
        try:
            body.delay(values)
        except PASSING:
            raise
        except Exception as exc:  # noqa: BLE001 - as in stock Celery: what cannot be sent has failed
            self._fail_chord(group_id, body, ChordError(f"Callback error: {exc!r}"))
            return
        self._ledger.close_chord(group_id, "sent")

    def _fail_chord(self, group_id: str, body: Any, exc: ChordError) -> None:
        """Tell a chord's failure, once."""
        if self._ledger.chord_state(group_id) != "failed":
            self.chord_error_from_stack(body, exc)
            self._ledger.close_chord(group_id, "failed")

    def _gathered(self, group_id: str) -> list[Any]:
        """Return the results of the parts, in the form of the header.

        Raises:
            ChordError: a part failed.
        """
        parts = self._ledger.parts(group_id)
        rows = self._metas([part.task_id for part in parts if part.content is None], children=False)
        values = {part.task_id: self._value(part, rows.get(part.task_id)) for part in parts}
        form = self.restore_group(group_id, cache=False)
        return [*values.values()] if form is None else _shaped(form, values)

    def _value(self, part: Part, meta: dict[str, Any] | None) -> Any:
        if meta is None and part.content is not None and part.content_type is not None:
            meta = {"status": part.state, "result": self.unpacked(part.content, part.content_type)}
            meta = self.meta_from_decoded(meta)
        if meta is None or meta["status"] != celery_states.SUCCESS:
            raised = meta["result"] if meta else None
            error = ChordError(f"Dependency {part.task_id} raised {raised!r}")
            error.__cause__ = raised if isinstance(raised, BaseException) else None
            raise error
        return meta["result"]


def _shaped(form: Any, values: dict[str, Any]) -> list[Any]:
    """Put results into the form of a group whose members may be groups."""
    return [_shaped(one, values) if isinstance(one, GroupResult) else values.get(one.id) for one in form.results]
