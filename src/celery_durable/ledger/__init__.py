"""The ledger: every task as a row, every move of it as one atomic verb."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import sqlalchemy as sa

from celery_durable import failpoints
from celery_durable.ledger import injecting, migrating
from celery_durable.ledger.borrowing import Borrowed
from celery_durable.ledger.bulk import Bulk
from celery_durable.ledger.burying import Burial, Burying
from celery_durable.ledger.chords import Chords, Part
from celery_durable.ledger.claiming import Claiming
from celery_durable.ledger.database import Database
from celery_durable.ledger.enclosing import Enclosure
from celery_durable.ledger.finished import Finished
from celery_durable.ledger.inspecting import Inspecting
from celery_durable.ledger.lending import Lender, lend
from celery_durable.ledger.listening import Ears
from celery_durable.ledger.liveness import Held, LivenessLock, Peer
from celery_durable.ledger.operating import Operating
from celery_durable.ledger.parking import Parcel, Parking, Stranger
from celery_durable.ledger.pruning import Aged, Pruning
from celery_durable.ledger.querying import Querying
from celery_durable.ledger.registry import Presence
from celery_durable.ledger.replacing import Submitted
from celery_durable.ledger.replaying import Batch, Casualties
from celery_durable.ledger.reporting import Failed, FailureGroup, Reporting, Which
from celery_durable.ledger.results import Seen, Stored
from celery_durable.ledger.running import Asked, Running
from celery_durable.ledger.sightings import Sighting, Sightings
from celery_durable.ledger.stepping import Stepping
from celery_durable.ledger.surveying import Likeness
from celery_durable.ledger.sweeping import Glance, Ring, Sweeping
from celery_durable.ledger.verifying import Verifying
from celery_durable.overview import Count

if TYPE_CHECKING:
    from celery_durable.settings import Settings

__all__ = [
    "Aged", "Asked", "Batch", "Burial", "Casualties", "Claiming", "Count", "Enclosure", "Failed", "FailureGroup",
    "Glance", "Held", "Ledger", "Lender", "Likeness", "LivenessLock", "Parcel", "Part", "Peer", "Presence", "Ring",
    "Seen", "Sighting", "Stored", "Stranger", "Submitted", "Which",
]  # fmt: skip


class Ledger(
    Bulk,
    Burying,
    Parking,
    Sightings,
    Stepping,
    Sweeping,
    Running,
    Operating,
    Chords,
    Reporting,
    Inspecting,
    Pruning,
    Finished,
    Querying,
    Verifying,
):
    """One ledger: a database and a table prefix. Safe to share between threads and to use after a fork."""

    @classmethod
    def open(cls, settings: Settings) -> Ledger:
        """Make a ledger from settings; nothing connects yet.

        Raises:
            SettingsError: ``durable_ledger_url`` cannot be used, or a failpoint is armed that does not exist.
        """
        if failpoints.armed():
            failpoints.check(cls.verbs())
        database = Database(settings.resolved_url())
        return cls(database, prefix=settings.table_prefix, republish_after=settings.republish_after)

    def within(self, lender: Lender) -> Ledger:
        """Return the ledger in somebody else's transaction on its database, for the verbs that submit and ring."""
        known = (sa.select(self.t.ledger.c.uuid), self.uuid)
        return Ledger(Borrowed(self.db, lender, known), prefix=self.t.prefix, republish_after=self.republish_after)

    def lender(self, given: object) -> Lender:
        """Take a Session or a Connection of SQLAlchemy for what it lends.

        Raises:
            BadRequest: it is something else.
        """
        return lend(given, self.t.task)

    @classmethod
    def verbs(cls) -> list[str]:
        """Name the methods that ask the database something, as failpoints call them."""
        return injecting.verbs_of(cls)

    @cached_property
    def ears(self) -> Ears:
        """Who listens for results."""
        return Ears(self.db, self.channel)

    @cached_property
    def uuid(self) -> str:
        """The ledger's identity, which marks the messages of its rows.

        Raises:
            LedgerUnavailable: the database did not answer.
            LedgerSchemaError: its tables are missing or of another version.
        """
        self.ready()
        query = sa.select(self.t.ledger.c.uuid)
        return str(self.db.run(lambda c: c.execute(query).scalar_one(), read_only=True))

    def ready(self) -> None:
        """See that the schema is the one this version knows; SQLite migrates itself, unless somebody else does.

        Raises:
            LedgerUnavailable: the database did not answer.
            LedgerSchemaError: its tables are missing or of another version.
        """
        if self.dialect.name == "sqlite" and not self.db.migrated_by:
            self.migrate()
        migrating.check(self.db, self.t)

    def migrated_by(self, command: str) -> None:
        """Say that its tables are made by another command than ours."""
        self.db.migrated_by = command

    def migrate(self) -> tuple[str | None, str]:
        """Bring the schema to this version; return the revision before and after."""
        return migrating.upgrade(self.db, self.t)
