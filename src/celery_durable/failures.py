"""Failures as state: from an exception to the row that keeps it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
import traceback
from typing import TYPE_CHECKING, Any

from celery_durable.records import Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

#: Longest message and traceback kept, in characters; the middle of a longer one is left out.
MAX_MESSAGE, MAX_TRACEBACK = 4_000, 64_000
#: How many of the innermost user frames make a fingerprint.
FINGERPRINT_FRAMES = 3
#: How many exceptions of a cause chain are kept.
MAX_CAUSES = 10

_LIBRARIES = tuple(
    os.path.realpath(p) + os.sep
    for p in {sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")}
    if p
)
_OWN = os.path.dirname(os.path.realpath(__file__)) + os.sep  # noqa: PTH120 - compared as text below


def describe(
    exc: BaseException, kind: str, *, worker: str = "", claim: int = 0, scrub: Callable[[str], str] = str
) -> Failure:
    """Make the failure row of an exception: what, where and how like others it is.

    ``scrub`` takes secrets out of texts; it sees them whole, before they are shortened.
    """
    return Failure(
        kind=kind,
        exception=qualified_name(type(exc)),
        message=shortened(scrub(storable(_message(exc))), MAX_MESSAGE),
        traceback=shortened(scrub(storable("".join(traceback.format_exception(exc)))), MAX_TRACEBACK),
        fingerprint=fingerprint(type(exc), exc.__traceback__),
        worker=worker,
        pid=os.getpid(),
        claim=claim,
        exception_args=_arguments(exc, scrub),
    )


def loss(kind: str, exception: str, message: str, *, worker: str, pid: int | None, claim: int) -> Failure:
    """Make the failure row of an attempt that ended without an exception of its own."""
    return Failure(
        kind=kind, exception=exception, message=message, fingerprint=_digest([exception]), retryable=True,
        worker=worker, pid=pid, claim=claim,
    )  # fmt: skip


def causes(exc: BaseException) -> list[dict[str, str]]:
    """Tell what an exception was raised from, the nearest first."""
    told: list[dict[str, str]] = []
    seen = {id(exc)}
    while len(told) < MAX_CAUSES:
        before = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
        if before is None or id(before) in seen:
            break
        seen.add(id(before))
        told.append({"exception": qualified_name(type(before)), "message": storable(_message(before))[:1000]})
        exc = before
    return told


def memory() -> int | None:
    """Return the resident memory of this process in bytes, None where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - read at every failure
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def qualified_name(cls: type) -> str:
    """``module.Class``, without the module for builtins."""
    module = cls.__module__
    return cls.__qualname__ if module in {"builtins", None} else f"{module}.{cls.__qualname__}"


def _arguments(exc: BaseException, scrub: Callable[[str], str]) -> str | None:
    """Keep what the exception was made with, so far as that is plain data; None where its message has to do."""
    try:
        told = json.dumps([_plain(value, scrub) for value in exc.args])
    except Exception:  # noqa: BLE001 - whatever it holds must not hide the failure
        return None
    return told if len(told) <= MAX_MESSAGE else None


def _plain(value: object, scrub: Callable[[str], str]) -> object:
    """One argument as JSON has it; what is no plain value is shown as its text, as Celery does."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return scrub(storable(value if isinstance(value, str) else repr(value)))


def fingerprint(cls: type, tb: TracebackType | None) -> str:
    """Hash the exception's type and the innermost frames of user code.

    Frames are named by module and function, never by line, so that an edit elsewhere in the file
    does not split a group.
    """
    frames = [
        (
            f.f_globals.get("__name__", ""),
            f.f_code.co_qualname if sys.version_info >= (3, 11) else f.f_code.co_name,
        )
        for f, _ in traceback.walk_tb(tb)
        if _is_user_code(f.f_code.co_filename)
    ]
    return _digest([qualified_name(cls), *(f"{m}:{n}" for m, n in frames[-FINGERPRINT_FRAMES:])])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _is_user_code(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = os.path.realpath(filename)
    return not path.startswith(_LIBRARIES) and not path.startswith(_OWN)


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the failure
        return f"<{type(exc).__name__} whose str() fails>"


def storable(text: str) -> str:
    """Make text that every database takes: no NUL (PostgreSQL), no half surrogate pair (UTF-8)."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def shortened(text: str, limit: int) -> str:
    """Cut the middle out of text longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 40) // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def rebuilt(failure: Any, create: Any) -> Exception:
    """Make an exception that stands for a stored one: of its own class where that is loaded, with its arguments.

    Its message stands in for arguments that could not be kept. ``create`` is Celery's factory for classes that are
    not there, passed in to stay pure.
    """
    module, _, name = failure.exception.rpartition(".")
    own: Any = getattr(sys.modules.get(module or "builtins"), name, None)
    if isinstance(own, type) and not issubclass(own, Exception):  # SystemExit ends whoever raises it
        return RuntimeError(f"{name}: {failure.message}")
    given = [json.loads(failure.exception_args)] if failure.exception_args else []
    for make in (own, create(name, module or "builtins")):
        for args in (*given, [failure.message]):
            try:
                exc = make(*args) if make is not None else None
            except Exception:  # noqa: BLE001, S112 - its constructor wants something else
                continue
            if isinstance(exc, Exception):
                return exc
    return RuntimeError(failure.message)
