"""What a database itself says about the ledger's tables, to be held equal."""

from __future__ import annotations

import re

import sqlalchemy as sa


def told(ledger, prefix):
    """What the database itself says about our tables: table -> its definition."""
    with ledger.db.connection(read_only=True) as connection:
        names = [n for n in sa.inspect(connection).get_table_names() if n.startswith(prefix)]
        return {
            n: sorted(s.replace(prefix, "durable_") for s in DEFINITIONS[ledger.dialect.name](connection, n))
            for n in names
        }


def _sqlite(connection, name):
    rows = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL", (name,))
    return [part for row in rows for part in _parts(" ".join(row.sql.split()))]


def _parts(sql):
    """The columns and rules of a table; SQLite appends what a migration adds, a rule with its column."""
    head, _, body = sql.partition("(")
    if not head.startswith("CREATE TABLE"):
        return [sql]
    parts, depth = [""], 0
    for char in body.rpartition(")")[0].replace(" CONSTRAINT ", ", CONSTRAINT ").replace(",,", ","):
        depth += (char == "(") - (char == ")")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return [head, *sorted(part.strip() for part in parts if part.strip())]


def _mariadb(connection, name):
    text = connection.exec_driver_sql(f"SHOW CREATE TABLE {name}").one()[1]
    return re.sub(r" AUTO_INCREMENT=\d+", "", text).replace(",\n", "\n").splitlines()


def _postgresql(connection, name):
    columns = (
        "SELECT column_name || ' ' || data_type || ' ' || coalesce(character_maximum_length::text, '') || ' ' ||"
        " is_nullable || ' ' || coalesce(column_default, '')"
        f" FROM information_schema.columns WHERE table_name = '{name}'"
    )
    indexes = f"SELECT indexdef FROM pg_indexes WHERE tablename = '{name}'"
    checks = f"SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = '{name}'::regclass"
    function = f"SELECT prosrc FROM pg_proc WHERE proname = '{name}_legal'"
    return [row[0] for query in (columns, indexes, checks, function) for row in connection.exec_driver_sql(query)]


DEFINITIONS = {"sqlite": _sqlite, "mysql": _mariadb, "postgresql": _postgresql}
