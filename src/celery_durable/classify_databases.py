"""What the exceptions of databases carry besides their class: SQLSTATE, MySQL's and SQLite's numbers, Redis' words."""

from __future__ import annotations

import re

from celery_durable.classify_readers import PERMANENT, TRANSIENT, UNCLASSIFIED, Finding, first, look, text

#: SQLSTATEs, and classes of them, that pass by themselves. 25006 is a write to a standby: failover is under way.
_SQL_TRANSIENT = {
    "08": "connection", "53": "insufficient resources", "57": "operator intervention", "58": "system error",
    "40": "transaction rolled back", "55P03": "lock not available", "55006": "object in use",
    "25006": "read-only server", "25P03": "idle in transaction for too long",
}  # fmt: skip
_SQL_PERMANENT = {
    "22": "bad data", "23": "constraint violated", "40002": "constraint violated",
    "42": "wrong statement or no right to it",
    "0A": "not supported", "28": "authentication", "3D": "no such database", "3F": "no such schema",
    "44": "check option violated", "54": "beyond the program's limits",
}  # fmt: skip


def sqlstate(exc: BaseException) -> Finding | None:
    """Judge by SQLSTATE: the full code before its class (psycopg: ``sqlstate``; psycopg2: ``pgcode``)."""
    code = look(exc, "sqlstate") or look(exc, "pgcode")
    if not isinstance(code, str) or not re.fullmatch(r"[0-9A-Z]{5}", code):
        return None
    for part in (code, code[:2]):
        for kind, codes in ((TRANSIENT, _SQL_TRANSIENT), (PERMANENT, _SQL_PERMANENT)):
            if part in codes:
                return Finding(kind, f"SQLSTATE {code} ({codes[part]})")
    return Finding(UNCLASSIFIED, f"SQLSTATE {code}")


#: Server errors of MySQL and MariaDB that pass: too many connections or locks, deadlocks, limits of time and space,
#: shutdown, failover to a read-only server, a killed connection, a snapshot that is too old.
_MYSQL_TRANSIENT = frozenset({
    1020, 1021, 1030, 1037, 1038, 1040, 1041, 1053, 1114, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1205, 1206, 1213,
    1226, 1290, 1317, 1412, 1613, 1614, 1836, 1927, 1969, 3024, 3572,
})  # fmt: skip
#: Those that drivers call OperationalError although only a person can help: rights, unknown names, wrong statements.
_MYSQL_PERMANENT = frozenset({
    1044, 1045, 1049, 1050, 1051, 1054, 1060, 1061, 1064, 1068, 1071, 1091, 1136, 1142, 1143, 1146, 1227, 1305, 1364,
    1366, 1370, 1390, 1406, 1410, 4025,
})  # fmt: skip
_MYSQL_CLIENT = range(2000, 3000)
_OUT_OF_SYNC = 2014  # commands sent out of order: the program's mistake


def mysql(exc: BaseException) -> Finding | None:
    """Judge by MySQL's error number (``args[0]``).

    PyMySQL calls every server error that it has no class for an OperationalError, so that class alone says
    nothing: an unknown number stays unclassified.
    """
    number = first(exc.args)
    if not isinstance(number, int) or number <= 0:
        return None
    why = f"MySQL error {number}"
    if number in _MYSQL_TRANSIENT or (number in _MYSQL_CLIENT and number != _OUT_OF_SYNC):
        return Finding(TRANSIENT, why)
    if number in _MYSQL_PERMANENT or number == _OUT_OF_SYNC:
        return Finding(PERMANENT, why)
    vague = any(c.__name__ in {"OperationalError", "InternalError"} for c in type(exc).__mro__)
    return Finding(UNCLASSIFIED, why) if vague else None


_SQLITE_TRANSIENT = {
    5: "BUSY",
    6: "LOCKED",
    7: "NOMEM",
    9: "INTERRUPT",
    10: "IOERR",
    13: "FULL",
    14: "CANTOPEN",
    15: "PROTOCOL",
}
_SQLITE_WORDS = ("locked", "busy", "disk", "unable to open", "interrupted", "memory")


def sqlite(exc: BaseException) -> Finding | None:
    """Judge sqlite3's OperationalError: a lock or a full disk passes, "no such table" does not."""
    number = look(exc, "sqlite_errorcode")  # Python 3.11 and later
    if isinstance(number, int):
        name = _SQLITE_TRANSIENT.get(number & 0xFF)
        return Finding(TRANSIENT, f"SQLITE_{name}") if name else Finding(PERMANENT, f"SQLite error {number & 0xFF}")
    transient = any(word in text(exc) for word in _SQLITE_WORDS)
    return Finding(TRANSIENT if transient else PERMANENT, "what SQLite says")


def disconnected(exc: BaseException) -> Finding | None:
    """Judge SQLAlchemy's mark for a connection that broke under a statement."""
    return Finding(TRANSIENT, "SQLAlchemy found the connection broken") if look(exc, "connection_invalidated") else None


_REDIS_TRANSIENT = frozenset({
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN",
    "UNKILLABLE",
})  # fmt: skip


def redis(exc: BaseException) -> Finding | None:
    """Judge an error reply of Redis by its first word."""
    word = text(exc).partition(" ")[0]
    return Finding(TRANSIENT, f"Redis error {word}") if word in _REDIS_TRANSIENT else None
