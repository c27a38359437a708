"""A sweep of one ledger: every move, struck at its first, second, third ... system call, until there is none left."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tests.points.judge import judge
from tests.points.tasks import metadata
from tests.points.tour import BACK_SOON, CONF, Points
from tests.sweep.moves import MOVES, again, put_off
from tests.sweep.strace import DISK, NETWORK
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Broker
    from tests.sweep.strace import Strace, Strike

#: More than any move has.
MANY = 60
PATIENCE = 120.0


class Sweep:
    """The rows that strikes leave are recovered together, by a worker that starts when all is over."""

    def __init__(self, folder: Path, broker: Broker, ledger_url: str, strace: Strace) -> None:
        options = BACK_SOON | broker.conf.get("broker_transport_options", {})
        self.stage = Points(folder, broker.conf | {"broker_transport_options": options}, ledger_url, **CONF)
        self.stage.ledger.db.run(metadata.create_all)
        self.strace = strace
        self.kinds: tuple[Strike, ...] = DISK if self.stage.ledger.dialect.name == "sqlite" else NETWORK
        assert self.stage.ledger.uuid  # asked once in a process

    def points(self, move: str, strike: Strike) -> int:
        """Strike at each system call of a move; return how many there were."""
        for nth in itertools.count(1):
            assert nth < MANY, f"{move} has no end"
            if not self.strike(move, strike, nth):
                return nth - 1
        raise AssertionError  # it counts for ever

    def strike(self, name: str, strike: Strike, nth: int) -> bool:
        """Strike at the N-th system call of a move, unless it has fewer; say whether it did."""
        stage, move = self.stage, MOVES[name]
        ref = f"{name}: {strike.name} {nth}".replace(" ", "-")
        self._expect(ref, move.states)
        prepared = move.prepare(stage, ref)
        stage.ledger.db.dispose()  # none crosses the fork; SQLite writes its log back
        struck = self.strace.strike(
            stage.folder, strike, nth, self._connect, lambda: again(lambda: move.do(stage, prepared))
        )
        if struck.fired and strike.deadly:
            again(lambda: move.do(stage, prepared)) if move.client else None
        else:
            assert struck.code == 0, f"{ref} did not get over it:\n{struck.said}"
            assert move.stands(stage, ref), f"{ref} was promised, and is not there"
        return struck.fired

    def _expect(self, ref: str, states: tuple[str, ...]) -> None:
        with (self.stage.folder / "expected").open("a") as out:
            out.write(json.dumps({"ref": ref, "states": states, "rows": 1, "optional": False}) + "\n")

    def _connect(self) -> None:
        """Open the connections that a move takes: one for transactions, one that commits each statement."""
        for how in ({}, {"autocommit": True}, {"read_only": True}):
            self.stage.ledger.db.run(lambda connection: connection.execute(sa.select(1)).all(), **how)

    def judge(self) -> None:
        """Let leases and waits pass, have a worker go over it, and look whether all is as it must be."""
        t, clock = self.stage.ledger.t.task, self.stage.ledger.dialect.clock_sql
        lapse: Any = sa.update(t).where(t.c.lease_expires_at.is_not(None)).values(lease_expires_at=clock)
        self.stage.ledger.db.run(lambda connection: connection.execute(lapse))
        put_off(self.stage, 0)
        self.stage.fleet.start()
        wait_until(lambda: not self.stage.rows(t.c.finished_at.is_(None)), PATIENCE, "something is stuck")
        judge(self.stage)

    def close(self) -> None:
        self.stage.close()
