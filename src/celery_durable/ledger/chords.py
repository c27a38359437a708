"""Chords, counted in the ledger: each part once, whatever is delivered twice; one part sends the body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc

from celery_durable.ledger.results import Results

if TYPE_CHECKING:
    from collections.abc import Sequence

OPEN, SENT, FAILED = "open", "sent", "failed"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a chord that has returned; ``content`` is kept only where no row has its result."""

    task_id: str
    position: int | None
    state: str
    content: bytes | None = None
    content_type: str | None = None


class Chords(Results):
    """A chord is a row that counts; its parts are rows, so that one that returns twice is counted once."""

    def begin_chord(self, group_id: str) -> None:
        """Make the chord's row; it may be there already."""
        self.db.run(lambda connection: self._chord(connection, group_id))

    def size_chord(self, group_id: str, size: int) -> None:
        """Say how many parts a chord has; said before its last part is sent."""

        def work(connection: sa.Connection) -> None:
            self._chord(connection, group_id)
            chord = sa.update(self.t.chord).where(self.t.chord.c.group_id == group_id)
            connection.execute(chord.values(size=size))

        self.db.run(work)

    def add_part(self, group_id: str, task_id: str) -> None:
        """Expect one more part, which a part has added; adding the same one again changes nothing."""

        def work(connection: sa.Connection) -> None:
            chord = self._chord(connection, group_id)
            if self._part(connection, group_id, task_id) is None:
                connection.execute(sa.insert(self.t.part).values(group_id=group_id, task_id=task_id))
                update = sa.update(self.t.chord).where(self.t.chord.c.group_id == group_id)
                connection.execute(update.values(added=chord.added + 1))

        self.db.run(work)

    def part_returned(self, group_id: str, part: Part) -> bool:
        """Count a part, once; return whether it is this part's task to send the body now.

        That is the part that made the chord complete. It is owed until the body was sent: should it die before
        that, its outcome is told again, and again it is asked to. After a failure of the chord any part that
        returns once more (it was replayed) is.
        """

        def work(connection: sa.Connection) -> bool:
            chord = self._chord(connection, group_id)
            if chord.state == SENT:
                return False
            found = self._part(connection, group_id, part.task_id)
            said = {"state": part.state, "content": part.content, "content_type": part.content_type}
            if found is None:
                new = sa.insert(self.t.part).values(group_id=group_id, task_id=part.task_id, position=part.position)
                connection.execute(new.values(said))
            else:
                p = self.t.part.c
                mine = sa.update(self.t.part).where(p.group_id == group_id, p.task_id == part.task_id)
                connection.execute(mine.values(position=part.position, **said))
            if found is not None and found.state is not None:
                return chord.state == FAILED or bool(chord.driver == part.task_id)
            arrived = chord.arrived + 1
            complete = chord.size is not None and arrived >= chord.size + chord.added
            driver = part.task_id if complete else chord.driver
            update = sa.update(self.t.chord).where(self.t.chord.c.group_id == group_id)
            connection.execute(update.values(arrived=arrived, driver=driver))
            return complete

        return self.db.run(work)

    def parts(self, group_id: str) -> Sequence[Part]:
        """List the parts that have returned, in the order of their positions."""
        p = self.t.part.c
        query = sa.select(self.t.part).where(p.group_id == group_id, p.state.is_not(None))
        rows = sorted(self._ask(query), key=lambda r: (r.position is None, r.position or 0))
        return [Part(r.task_id, r.position, r.state, r.content, r.content_type) for r in rows]

    def chord_state(self, group_id: str) -> str | None:
        """Return how a chord stands; None when it is not known."""
        c = self.t.chord.c
        rows = self._ask(sa.select(c.state).where(c.group_id == group_id))
        return rows[0].state if rows else None

    def close_chord(self, group_id: str, state: str) -> None:
        """Note that the body was sent, or that the chord's failure was told."""

        def work(connection: sa.Connection) -> None:
            self._chord(connection, group_id)
            chord = sa.update(self.t.chord).where(self.t.chord.c.group_id == group_id)
            connection.execute(chord.values(state=state))
            if state == SENT:
                connection.execute(sa.delete(self.t.part).where(self.t.part.c.group_id == group_id))

        self.db.run(work)

    def _chord(self, connection: sa.Connection, group_id: str) -> sa.Row[Any]:
        """Lock the chord's row, making it where there is none."""
        locked = sa.select(self.t.chord).where(self.t.chord.c.group_id == group_id).with_for_update()
        row = connection.execute(locked).first()
        if row is not None:
            return row
        try:
            with connection.begin_nested():
                new = sa.insert(self.t.chord).values(group_id=group_id, state=OPEN, added=0, arrived=0)
                connection.execute(new.values(began_at=self.dialect.clock_sql))
        except exc.IntegrityError:  # another part has just done so
            pass
        return connection.execute(locked).one()

    def _part(self, connection: sa.Connection, group_id: str, task_id: str) -> sa.Row[Any] | None:
        p = self.t.part.c
        return connection.execute(sa.select(p.state).where(p.group_id == group_id, p.task_id == task_id)).first()
