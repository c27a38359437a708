"""What ``submit_many`` answers: a receipt for each call, kept in 17 bytes of memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

if TYPE_CHECKING:
    from collections.abc import Callable

#: What may become of one call; its place is what is kept.
OUTCOMES = ("new", "existing", "replayed", "alias")
_SIZE = 16


class Receipt(NamedTuple):
    """What became of one call.

    ``outcome`` is ``new``, ``existing`` (its key was there already, or came earlier in the same call: ``result`` is the
    first one's), ``replayed`` (the key's dead or cancelled row is queued again, with this call's message) or ``alias``
    (it has callbacks of its own and takes the outcome of the key's first).
    """

    result: Any
    outcome: str

    @property
    def id(self) -> str:
        """The task id."""
        return str(self.result.id)


class Receipts(Sequence[Receipt]):
    """The receipts of all calls, in their order; each is made as it is looked at."""

    def __init__(self, result: Callable[[str], Any]) -> None:
        """``result`` makes the ``AsyncResult`` of a task id."""
        self._result = result
        self._ids, self._outcomes = bytearray(), bytearray()
        self._others: dict[int, Any] = {}

    @property
    def counts(self) -> dict[str, int]:
        """How many calls had which outcome."""
        return {OUTCOMES[place]: count for place, count in sorted(Counter(self._outcomes).items())}

    def add(self, task_id: str, outcome: str) -> None:
        """Note what became of the next call."""
        packed = _packed(task_id)
        if packed is None:
            self._others[len(self)] = task_id
        self._ids += packed or bytes(_SIZE)
        self._outcomes.append(OUTCOMES.index(outcome))

    def keep(self, result: Any) -> None:
        """Note a call that has a result of its own kind (``task_always_eager``)."""
        self._others[len(self)] = result
        self._ids += bytes(_SIZE)
        self._outcomes.append(0)

    def __len__(self) -> int:
        return len(self._outcomes)

    @overload
    def __getitem__(self, index: int) -> Receipt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Receipt]: ...
    def __getitem__(self, index: int | slice) -> Receipt | list[Receipt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        found = self._others.get(place) or _text(self._ids[place * _SIZE : (place + 1) * _SIZE])
        result = self._result(found) if isinstance(found, str) else found
        return Receipt(result, OUTCOMES[self._outcomes[place]])

    def __repr__(self) -> str:
        return f"<{len(self)} receipts: {self.counts}>"


def _packed(task_id: str) -> bytes | None:
    """The bytes of a UUID in its usual form; None for any other id."""
    try:
        found = bytes.fromhex(task_id.replace("-", ""))
    except ValueError:
        return None
    return found if len(found) == _SIZE and _text(found) == task_id else None


def _text(packed: bytes | bytearray) -> str:
    h = packed.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
