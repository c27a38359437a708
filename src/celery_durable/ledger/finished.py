"""One look at a row that somebody says is done."""

from __future__ import annotations

from functools import cached_property

import sqlalchemy as sa

from celery_durable import states
from celery_durable.ledger.base import Room
from celery_durable.ledger.prepared import Prepared, fixed, given
from celery_durable.ledger.replacing import Submitted


class Finished(Room):
    """Judges a hint: it is right, or it counts for nothing."""

    def finished(self, row_id: int, key_digest: bytes) -> Submitted | None:
        """Return what a submission of this key is answered with, if this very row has it and has succeeded.

        It needs no lock: a success never changes.
        """
        told = {"v_row": row_id, "v_digest": key_digest}
        row = self.db.run(lambda connection: self._finished.first(connection, told), read_only=True)
        if row is None:
            return None
        return Submitted(
            "existing", row.id, row.task_id, states.SUCCEEDED, row.envelope_no, result=row.result,
            result_type=row.result_type,
        )  # fmt: skip

    @cached_property
    def _finished(self) -> Prepared:
        c = self.t.task.c
        told = sa.select(c.id, c.task_id, c.envelope_no, c.result, c.result_type).where(
            c.id == given("row", sa.BigInteger), c.key_digest == given("digest", c.key_digest.type),
            self.in_state(states.SUCCEEDED), c.observed == fixed(0),
        )  # fmt: skip
        return Prepared(told)
