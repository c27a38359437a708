"""Submissions inside a transaction of the caller's: rows come and go with it, messages leave after its COMMIT."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from celery_durable.errors import SubmitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery_durable.ledger import Ledger, Lender, Submitted
    from celery_durable.records import Submission
    from celery_durable.wiring import Plugin

logger = logging.getLogger(__name__)

#: Messages that are sent between two looks at the ledger.
BATCH = 500

_block: ContextVar[Block | None] = ContextVar("durable_transaction", default=None)


class Block:
    """The inside of ``with ledger(app).transaction(...)``."""

    def __init__(self, side: Plugin, lender: Lender) -> None:
        """Belong to one app's ledger and to this thread."""
        self.side, self.lender = side, lender
        self.ledger = side.ledger.within(lender)
        self.thread = threading.get_ident()
        self.open = True

    def submit(self, sub: Submission, *, on_conflict: str) -> Submitted:
        """Write a submission in the caller's transaction; its message leaves after the commit."""
        submitted = self.ledger.submit(sub, on_conflict=on_conflict)
        if submitted.publish:
            self.side.publisher.prepare_reply_quietly(submitted.task_id)
            self.lender.after_commit(self.ring, [submitted.row_id])
        return submitted

    def submit_many(self, subs: Sequence[Submission]) -> list[Submitted]:
        """Write a chunk of them."""
        answers = self.ledger.submit_many(subs)
        due = [answer.row_id for answer in answers if answer.publish]
        if due:
            self.lender.after_commit(self.ring, due)
        return answers

    def ring(self, row_ids: list[int]) -> None:
        """Send the messages of rows that were committed just now. Never raises: a sweep sends what is left."""
        self.ring_by(self.side.ledger, row_ids)

    def ring_by(self, ledger: Ledger, row_ids: list[int]) -> None:
        """Do so by a ledger that sees these rows."""
        side, publisher = self.side, self.side.publisher
        try:
            for start in range(0, len(row_ids), BATCH):
                if publisher.down:
                    return
                among = row_ids[start : start + BATCH]
                # What a savepoint has taken back is not found here, nor what a sweep was quicker with.
                rings, _ = ledger.take_rings(side.broker, len(among), depths={}, among=among)
                unsent = publisher.ring_all(rings)
                ledger.ring_again(unsent, at_once=True)
        except Exception as exc:  # noqa: BLE001 - the transaction is committed; nothing may say otherwise
            logger.warning(
                "Messages of a transaction were not sent (%s: %s); a worker's sweep sends them.",
                type(exc).__name__, exc,
            )  # fmt: skip


@contextmanager
def opened(side: Plugin, lender: Lender) -> Iterator[None]:
    """Let submissions of this thread go into a lent transaction."""
    block = Block(side, lender)
    token = _block.set(block)
    try:
        yield
    finally:
        block.open = False
        _block.reset(token)


def current(side: Plugin, task: str) -> Block | None:
    """Return the block that a submission of this app is in.

    Raises:
        SubmitError: it is in one that it cannot be part of.
    """
    block = _block.get()
    if block is None or not block.open:
        return side.host.block(side) if side.host is not None else None
    if block.thread != threading.get_ident():
        raise SubmitError(
            f"{task} was called in a thread that inherited the block of a transaction from another one: that "
            "transaction cannot be used here. Call it in the block's own thread."
        )
    if block.side is not side and block.side.ledger.uuid != side.ledger.uuid:
        raise SubmitError(
            f"{task} belongs to the ledger {side.ledger.db}, the transaction that is open here to "
            f"{block.side.ledger.db}: its row cannot be part of it. Call it outside of the block."
        )
    return block


__all__ = ["Block", "current", "opened"]
