"""What can be found in the ledger's database: whether it is there, ours, and keeps what it has committed. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.doctor.findings import error, info, listed, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.doctor.facts import LedgerSeen
    from celery_durable.doctor.findings import Finding
    from celery_durable.overview import Setup

#: File systems on which SQLite's locks cannot be relied on.
NETWORK = frozenset({"nfs", "nfs3", "nfs4", "cifs", "smb2", "smb3", "smbfs", "fuse.sshfs", "afs", "ceph", "lustre"})
#: Seconds by which the database's clock may differ from this process's.
CLOCK = 2.0
#: Since when they have SKIP LOCKED.
LEAST = {"MySQL": (8, 0, 1), "MariaDB": (10, 6)}
#: What a statement needs beside the message in it.
ROOM = 64 * 1024


def judge(seen: LedgerSeen) -> Iterator[Finding]:
    """Say what is wrong with the ledger's database."""
    yield from _standing(seen)
    if seen.setup is None:
        return
    yield from _clock(seen.setup)
    rules = {"SQLite": _sqlite, "PostgreSQL": _postgresql}
    yield from rules.get(seen.setup.product, _mysql)(seen, seen.setup)


def _standing(seen: LedgerSeen) -> Iterator[Finding]:
    needed = seen.known[-1]
    if seen.problem:
        yield error(
            "ledger-unreachable", seen.problem,
            "See that the database runs, and that durable_ledger_url names it with a user who may use it.",
        )  # fmt: skip
    elif seen.migrates_itself and seen.revision in {None, *seen.known[:-1]}:
        stands = "is not there yet" if seen.revision is None else f"has schema version {seen.revision}, not {needed}"
        yield info(
            "ledger-to-come", f"The ledger {seen.name} {stands}.",
            f"The first worker or submission sees to it; so does '{seen.migrate}'.",
        )  # fmt: skip
    elif seen.revision is None:
        yield error(
            "ledger-unmigrated", f"The ledger {seen.name} has no celery-durable tables: nothing can be submitted.",
            f"Run '{seen.migrate}'.",
        )  # fmt: skip
    elif seen.revision not in seen.known:
        yield error(
            "ledger-newer",
            f"The ledger {seen.name} has schema version {seen.revision}, newer than {needed}, which this "
            "celery-durable needs: its workers do not start.",
            "Upgrade the package here.",
        )
    elif seen.revision != needed:
        yield error(
            "ledger-older",
            f"The ledger {seen.name} has schema version {seen.revision}, this celery-durable needs {needed}: its "
            "workers do not start.",
            f"Run '{seen.migrate}'.",
        )


def _clock(setup: Setup) -> Iterator[Finding]:
    if abs(setup.ahead) < CLOCK:
        return
    way = "ahead of" if setup.ahead > 0 else "behind"
    yield warning(
        "clock",
        f"The database's clock is {abs(setup.ahead):.1f} s {way} this host's. Leases and waits go by the database's "
        "alone; an ETA, expires= or a tick of beat that this host has computed is off by as much.",
        "Synchronise both hosts (NTP).",
    )


def _sqlite(seen: LedgerSeen, setup: Setup) -> Iterator[Finding]:
    mode = setup.variables.get("journal_mode", "wal")
    if mode != "wal":
        yield warning(
            "sqlite-not-wal",
            f"The SQLite ledger has journal_mode {mode}: readers and writers wait for one another, and 'database is "
            "locked' comes under load.",
            "Run 'PRAGMA journal_mode=WAL' once while nobody uses it; it stays. The folder must be writable.",
        )
    if seen.filesystem in NETWORK:
        yield error(
            "sqlite-network",
            f"The SQLite ledger is on a network file system ({seen.filesystem}), whose locks do not keep writers "
            "apart: the file can be destroyed.",
            "Put it on a local disk, or use a database setup.",
        )
    hosts = {w.hostname.rpartition("@")[2] for w in seen.live}
    if len(hosts) > 1:
        yield error(
            "sqlite-several-hosts",
            f"Workers of {len(hosts)} hosts ({listed(hosts)}) use one SQLite ledger, which serves one host only.",
            "Use PostgreSQL, MariaDB or MySQL; or, if that is one host, name its workers with the same host (-n).",
        )


def _postgresql(_seen: LedgerSeen, setup: Setup) -> Iterator[Finding]:
    told = setup.variables
    if told.get("fsync") == "off":
        yield error(
            "postgresql-fsync", "PostgreSQL runs with fsync = off: a crash of its host can lose or destroy the ledger.",
            "Set fsync = on.",
        )  # fmt: skip
    if told.get("synchronous_commit") == "off":
        yield error(
            "postgresql-synchronous-commit",
            "PostgreSQL runs with synchronous_commit = off: what it says is committed is lost when it crashes, and "
            "with it accepted work.",
            "Set it to on, at least for the ledger's user: ALTER ROLE ... SET synchronous_commit = on.",
        )
    yield from _read_only(told.get("transaction_read_only"))
    yield from _isolation(told.get("default_transaction_isolation"))


def _read_only(value: str | None) -> Iterator[Finding]:
    if value and value.lower() in {"on", "1"}:
        yield error(
            "ledger-read-only", "The ledger's database takes no writes (a replica?): nothing can be submitted.",
            "Let durable_ledger_url name the primary.",
        )  # fmt: skip


def _isolation(value: str | None) -> Iterator[Finding]:
    if value and value.lower() != "read committed":
        yield warning(
            "isolation",
            f"Transactions on the ledger begin as {value.lower()}: work that meets another's is tried again until it "
            "fails, where read committed would wait.",
            "Set the default of the ledger's user to read committed.",
        )


def _mysql(seen: LedgerSeen, setup: Setup) -> Iterator[Finding]:
    told, product = setup.variables, setup.product
    if setup.version and setup.version < LEAST[product]:
        least = ".".join(map(str, LEAST[product]))
        yield error(
            "mysql-version", f"{product} is version {'.'.join(map(str, setup.version))}, which has no SKIP LOCKED.",
            f"Upgrade it to {least} or newer.",
        )  # fmt: skip
    if setup.not_transactional:
        yield error(
            "mysql-engine", f"The tables {listed(setup.not_transactional)} are not InnoDB: they have no transactions.",
            "ALTER TABLE ... ENGINE = InnoDB.",
        )  # fmt: skip
    flush = told.get("innodb_flush_log_at_trx_commit", "1")
    if flush != "1":
        yield error(
            "mysql-flush",
            f"innodb_flush_log_at_trx_commit is {flush}: what {product} says is committed is lost when "
            f"{'it or its host' if flush == '0' else 'its host'} crashes, and with it accepted work.",
            "Set it to 1.",
        )
    if "STRICT_" not in told.get("sql_mode", "STRICT_"):
        yield warning(
            "mysql-strict", f"sql_mode has no STRICT_TRANS_TABLES: {product} cuts what does not fit.",
            "Add it to sql_mode.",
        )  # fmt: skip
    packet = int(told.get("max_allowed_packet", 2**30))
    if packet < seen.max_message_bytes + ROOM:
        yield warning(
            "mysql-packet",
            f"max_allowed_packet is {packet} bytes: a message of durable_max_message_bytes ({seen.max_message_bytes}) "
            "cannot be recorded.",
            "Set it to 16M or more.",
        )
    yield from _read_only(told.get("read_only"))


__all__ = ["judge"]
