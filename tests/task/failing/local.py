"""What needs no server: files, processes, data, Celery's own, groups."""

from __future__ import annotations

import asyncio
import csv
import errno
import json
import lzma
import os
import pickle
import re
import resource
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
import zipfile
import zlib
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import kombu
import pydantic
from billiard.pool import soft_timeout_sighandler
from celery import Celery
from kombu.serialization import dumps, loads

from celery_durable.settings import Settings

from .case import PERMANENT, TIMEOUT, TRANSIENT, UNCLASSIFIED, Case, collector

CASES: list[Case] = []
case = collector(CASES)


@case("OSError", TRANSIENT, "errno ENOSPC")
def disk_full(w):
    with Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")


@case("FileNotFoundError", PERMANENT, "errno ENOENT")
def missing_file(w):
    Path("/nonexistent/file").read_bytes()


@case("IsADirectoryError", PERMANENT, "errno EISDIR")
def directory_as_file(w):
    Path("/").read_bytes()


@case("NotADirectoryError", PERMANENT, "errno ENOTDIR")
def file_as_directory(w):
    Path("/dev/null/x").read_bytes()


@case("FileExistsError", PERMANENT, "errno EEXIST")
def file_exists(w):
    Path("/").mkdir()


@case("PermissionError", PERMANENT, "errno EACCES")
def permission_denied(w):
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # nothing is denied to root
        try:
            Path(file.name).read_bytes()
        finally:
            os.seteuid(user)


@case("OSError", TRANSIENT, "errno EMFILE")
def too_many_open_files(w):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        os.open("/dev/null", os.O_RDONLY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@case("BlockingIOError", TRANSIENT, "a shortage that passes")
def nothing_to_read_yet(w):
    read, write = os.pipe()
    os.set_blocking(read, False)
    try:
        os.read(read, 1)
    finally:
        os.close(read)
        os.close(write)


@case("OSError", UNCLASSIFIED, "nothing is known of OSError")
def os_error_without_number(w):
    raise OSError(errno.errorcode[errno.EIO])


@case("subprocess.TimeoutExpired", TRANSIENT, "a timeout")
def command_timed_out(w):
    subprocess.run(["sleep", "5"], timeout=0.05, check=True)


@case("subprocess.CalledProcessError", TRANSIENT, "EX_TEMPFAIL")
def command_failed_for_now(w):
    subprocess.run(["sh", "-c", "exit 75"], check=True)


@case("subprocess.CalledProcessError", UNCLASSIFIED, "nothing is known of")
def command_failed(w):
    subprocess.run(["false"], check=True)


@case("asyncio.exceptions.TimeoutError" if sys.version_info < (3, 11) else "TimeoutError", TRANSIENT, "a timeout")
def asyncio_timeout(w):
    asyncio.run(asyncio.wait_for(asyncio.sleep(5), 0.01))


@case("asyncio.exceptions.IncompleteReadError", TRANSIENT, "a connection error")
def asyncio_stream_ended(w):
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_eof()
        await reader.readexactly(1)

    asyncio.run(read())


for code, raises, kind, why in [
    ("len(1)", "TypeError", PERMANENT, "a programming error"),
    ("None.x", "AttributeError", PERMANENT, "a programming error"),
    ("no_such_name", "NameError", PERMANENT, "a programming error"),
    ("import no_such_module", "ModuleNotFoundError", PERMANENT, "ImportError is a programming error"),
    ("(", "SyntaxError", PERMANENT, "a programming error"),
    ("assert False", "AssertionError", PERMANENT, "a programming error"),
    ("raise NotImplementedError", "NotImplementedError", PERMANENT, "a programming error"),
    ("f = lambda: f()\nf()", "RecursionError", PERMANENT, "a programming error"),
    ("int('x')", "ValueError", PERMANENT, "a validation error"),
    ("{}['x']", "KeyError", PERMANENT, "LookupError is an error in the data"),
    ("[][1]", "IndexError", PERMANENT, "an error in the data"),
    ("1 / 0", "ZeroDivisionError", PERMANENT, "an error in the data"),
    ("b'\\xff'.decode()", "UnicodeDecodeError", PERMANENT, "a validation error"),
    ("raise RuntimeError('dictionary changed size')", "RuntimeError", UNCLASSIFIED, "nothing is known"),
    ("raise EOFError", "EOFError", UNCLASSIFIED, "nothing is known"),
    ("raise Exception", "Exception", UNCLASSIFIED, "nothing is known"),
]:

    @case(raises, kind, why)
    def code_of_the_task(w, code=code):
        exec(code, {})  # noqa: S102 - these few lines


@case("json.decoder.JSONDecodeError", PERMANENT, "a validation error")
def not_json(w):
    json.loads('{"half":')


@case("struct.error", PERMANENT, "an error in the data")
def not_a_struct(w):
    struct.unpack("<Q", b"x")


@case("decimal.InvalidOperation", PERMANENT, "an error in the data")
def not_a_number(w):
    Decimal("ten")


@case("_pickle.UnpicklingError", PERMANENT, "an error in the data")
def not_a_pickle(w):
    pickle.loads(b"x")  # noqa: S301 - it is none


@case("zlib.error", PERMANENT, "an error in the data")
def not_compressed(w):
    zlib.decompress(b"x")


@case("_lzma.LZMAError", PERMANENT, "an error in the data")
def not_xz(w):
    lzma.decompress(b"not xz at all")


@case("zipfile.BadZipFile", PERMANENT, "an error in the data")
def not_a_zip(w):
    with tempfile.TemporaryFile() as file:
        zipfile.ZipFile(file)


@case("_csv.Error", PERMANENT, "an error in the data")
def not_a_table(w):
    next(csv.reader(['"a"b'], strict=True))


@case("xml.etree.ElementTree.ParseError", PERMANENT, "a programming error")
def not_xml(w):
    ET.fromstring("<a>")  # noqa: S314 - three characters


@case("re.error" if sys.version_info < (3, 13) else "re.PatternError", PERMANENT, "an error in the data")
def not_a_pattern(w):
    re.compile("(")


@case("pydantic_core._pydantic_core.ValidationError", PERMANENT, "a validation error")
def pydantic_refuses(w):
    pydantic.TypeAdapter(int).validate_python("ten")


# Celery and kombu -------------------------------------------------------------------------------------


@case("billiard.exceptions.SoftTimeLimitExceeded", TIMEOUT, "Celery's time limit")
def soft_time_limit(w):
    before = signal.signal(signal.SIGUSR1, soft_timeout_sighandler)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.pause()
    finally:
        signal.signal(signal.SIGUSR1, before)


@case("celery.exceptions.TimeoutError", TRANSIENT, "a timeout")
def result_did_not_come(w):
    app = Celery(broker="memory://", backend="cache+memory://", set_as_current=False)
    app.AsyncResult("nobody").get(timeout=0.05, interval=0.01)


@case("celery.exceptions.NotRegistered", PERMANENT, "an error of configuration")
def no_such_task(w):
    app = Celery(set_as_current=False)
    app.tasks["no.such.task"]


@case("celery.exceptions.ImproperlyConfigured", PERMANENT, "an error of configuration")
def celery_misconfigured(w):
    app = Celery(set_as_current=False)
    app.config_from_object({"CELERY_RESULT_SERIALIZER": "json", "task_acks_late": True}, force=True)
    app.conf.task_acks_late  # noqa: B018 - read


@case("kombu.exceptions.EncodeError", PERMANENT, "a programming error")
def not_serialisable(w):
    dumps(object(), serializer="json")


@case("kombu.exceptions.DecodeError", PERMANENT, "a programming error")
def not_deserialisable(w):
    loads(b"{", "application/json", "utf-8")


@case("kombu.exceptions.ContentDisallowed", PERMANENT, "a programming error")
def content_not_accepted(w):
    loads(b"x", "application/x-python-serialize", "binary", accept=["json"])


@case("kombu.exceptions.OperationalError", TRANSIENT, "ECONNREFUSED, inside kombu.exceptions.OperationalError")
def amqp_refused(w):
    with kombu.Connection(f"amqp://127.0.0.1:{w.closed_port}//") as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)


@case("kombu.exceptions.OperationalError", TRANSIENT, "inside kombu.exceptions.OperationalError")
def kombu_redis_refused(w):
    with kombu.Connection(f"redis://127.0.0.1:{w.closed_port}//") as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)


@case("celery_durable.errors.SettingsError", PERMANENT, "a programming error")
def settings_of_our_own(w):
    Settings.read({"durable_lease": "soon"})


# SQLite -----------------------------------------------------------------------------------------------


def _sqlite(*statements: str, path: str = ":memory:") -> None:
    with closing(sqlite3.connect(path, timeout=0)) as connection:
        for statement in statements:
            connection.execute(statement)


@case("sqlite3.OperationalError", PERMANENT, "SQLite")
def sqlite_no_such_table(w):
    _sqlite("SELECT * FROM nowhere")


@case("sqlite3.OperationalError", TRANSIENT, "SQL")
def sqlite_locked(w):
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(f"{folder}/x.db")) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        _sqlite("INSERT INTO t VALUES (1)", path=f"{folder}/x.db")


@case("sqlite3.IntegrityError", PERMANENT, "an integrity error")
def sqlite_unique(w):
    _sqlite("CREATE TABLE t (x UNIQUE)", "INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (1)")


@case("sqlite3.OperationalError", TRANSIENT, "SQL")
def sqlite_full(w):
    _sqlite("PRAGMA max_page_count=2", "CREATE TABLE t (x)", "INSERT INTO t VALUES (zeroblob(100000))")


@case("sqlite3.DatabaseError", PERMANENT, "an error in the data")
def sqlite_not_a_database(w):
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * 4096)
        file.flush()
        _sqlite("SELECT * FROM t", path=file.name)


@case("sqlite3.ProgrammingError", PERMANENT, "a programming error")
def sqlite_closed(w):
    connection = sqlite3.connect(":memory:")
    connection.close()
    connection.execute("SELECT 1")
