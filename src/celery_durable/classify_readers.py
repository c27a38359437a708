"""What an exception carries besides its class: an HTTP status, an errno, the codes of AWS, TLS, SMTP.

Everything here reads attributes and imports nothing of the libraries. A reader answers None where the exception
carries nothing that it knows, and the class alone has to do.
"""

from __future__ import annotations

import errno
import math
import re
import socket
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The kinds of failure that a judgement may end with.
TRANSIENT, PERMANENT, UNCLASSIFIED, TIMEOUT = "transient", "permanent", "unclassified", "timeout"

#: The longest Retry-After that is honoured, in seconds: a server may not park a task for a year.
MAX_RETRY_AFTER = 86_400.0


class Finding(NamedTuple):
    """What the built-in knowledge says; ``retry_after`` in seconds, where the other side named it."""

    kind: str
    why: str
    retry_after: float | None = None


def look(thing: Any, name: str) -> Any:
    """Read an attribute; one whose property fails counts as missing."""
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001 - a hostile exception must not stop its own classification
        return None


def text(exc: BaseException) -> str:
    """Return the message, empty where ``__str__`` fails."""
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - as above
        return ""


def first(thing: Any) -> Any:
    """Return the first item of a tuple or list."""
    return thing[0] if isinstance(thing, tuple | list) and thing else None


# HTTP -----------------------------------------------------------------------------------------------


def http(exc: BaseException) -> Finding | None:
    """Judge by the HTTP status: on the exception (urllib, aiohttp, kubernetes) or its response (requests, httpx)."""
    response = look(exc, "response")
    for holder in (response, exc):
        for name in ("status_code", "status", "http_status"):
            status = look(holder, name)
            if isinstance(status, int) and 400 <= status <= 599:  # noqa: PLR2004 - HTTP's own numbers
                return _by_status(int(status), retry_after(exc))
    return None


def _by_status(status: int, wait: float | None, what: str = "HTTP") -> Finding:
    # 408: the server gave up waiting for us; 425: too early; 429: too many requests
    if status in {408, 425, 429} or status >= 500:  # noqa: PLR2004
        return Finding(
            TRANSIENT, f"{what} {status}" + (f" with Retry-After {wait:g}" if wait is not None else ""), wait
        )
    return Finding(PERMANENT, f"{what} {status}")


def retry_after(exc: BaseException) -> float | None:
    """Return the seconds that the response of an exception asks to wait, None where it does not ask."""
    for holder in (look(exc, "response"), exc):
        headers = holder.get("ResponseMetadata", {}) if isinstance(holder, dict) else holder
        headers = headers.get("HTTPHeaders") if isinstance(headers, dict) else look(headers, "headers")
        value = _header(headers, "Retry-After")
        if value:
            return _seconds(value, _header(headers, "Date"))
    return None


def _header(headers: Any, name: str) -> str | None:
    get = look(headers, "get")
    for spelling in (name, name.lower()) if callable(get) else ():
        try:
            value = get(spelling)
        except Exception:  # noqa: BLE001 - headers of another's making
            return None
        if isinstance(value, str):
            return value.strip()
    return None


def _seconds(value: str, date: str | None) -> float | None:
    """Read a Retry-After: seconds, or a date counted from the server's own clock where it told it."""
    try:
        wait = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value).timestamp()
            now = parsedate_to_datetime(date).timestamp() if date else time.time()
        except (ValueError, TypeError, OverflowError):
            return None
        wait = until - now
    return min(max(wait, 0.0), MAX_RETRY_AFTER) if math.isfinite(wait) else None


#: Error codes of AWS that come with HTTP 400 and yet pass: botocore's own lists (standard retry mode).
_AWS_TRANSIENT = frozenset({
    "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottledException", "RequestThrottled",
    "TooManyRequestsException", "ProvisionedThroughputExceededException", "TransactionInProgressException",
    "RequestLimitExceeded", "BandwidthLimitExceeded", "LimitExceededException", "SlowDown",
    "PriorRequestNotComplete", "EC2ThrottledException", "RequestTimeout", "RequestTimeoutException",
    "IDPCommunicationError", "TransactionConflictException", "OperationAborted", "InternalError",
    "ServiceUnavailable",
})  # fmt: skip


def aws(exc: BaseException) -> Finding | None:
    """Judge botocore's ClientError by its error code, then by the HTTP status of the response."""
    response = look(exc, "response")
    if not isinstance(response, dict):
        return None
    error, meta = response.get("Error"), response.get("ResponseMetadata")
    code = error.get("Code") if isinstance(error, dict) else None
    status = meta.get("HTTPStatusCode") if isinstance(meta, dict) else None
    if isinstance(code, str) and code in _AWS_TRANSIENT:
        return Finding(TRANSIENT, f"AWS error {code}", retry_after(exc))
    if isinstance(status, int) and status >= 400:  # noqa: PLR2004
        return _by_status(status, retry_after(exc), f"AWS error {code}, HTTP")
    return None


# The operating system and its protocols ---------------------------------------------------------------


def _numbers(names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names.split() if hasattr(errno, name))


#: Resources that others give back, the network, locks, a disk or a network file system that hiccups.
_ERRNO_TRANSIENT = _numbers(
    "EAGAIN EWOULDBLOCK EINTR EINPROGRESS EALREADY ENOMEM ENOBUFS ENOSPC EDQUOT EMFILE ENFILE EBUSY ETXTBSY EIO ESTALE "
    "ENOLCK EDEADLK EPIPE ESHUTDOWN ECONNREFUSED ECONNRESET ECONNABORTED ENOTCONN ETIMEDOUT EHOSTUNREACH EHOSTDOWN "
    "ENETDOWN ENETUNREACH ENETRESET EADDRINUSE EADDRNOTAVAIL EREMOTEIO ENOLINK ECOMM ETIME"
)
#: A path, a right or a call that is wrong. A file that is yet to come is a wait (``self.wait``), not a failure.
_ERRNO_PERMANENT = _numbers(
    "ENOENT ENOTDIR EISDIR EEXIST ENOTEMPTY EACCES EPERM ENAMETOOLONG ELOOP EINVAL EBADF EFBIG EXDEV ESPIPE ENOTTY "
    "EFAULT EDOM ERANGE E2BIG EAFNOSUPPORT EPROTONOSUPPORT EMLINK ECHILD ESRCH EOPNOTSUPP"
)


def os_error(exc: BaseException) -> Finding | None:
    """Judge by errno; a number of neither list says nothing."""
    number = look(exc, "errno")
    if not isinstance(number, int):
        return None
    why = f"errno {errno.errorcode.get(number, number)}"
    if number in _ERRNO_TRANSIENT:
        return Finding(TRANSIENT, why)
    return Finding(PERMANENT, why) if number in _ERRNO_PERMANENT else None


def resolver(exc: BaseException) -> Finding:
    """Judge a name that was not resolved.

    "No such name" counts as transient too: a resolver that is down, a service that is not registered yet and a
    typing error look the same, and only the last one is made no better by waiting.
    """
    wrong = {getattr(socket, f"EAI_{name}", None) for name in ("BADFLAGS", "FAMILY", "SOCKTYPE", "SERVICE")}
    number = look(exc, "errno")
    if number in wrong - {None} and type(exc).__name__ == "gaierror":
        return Finding(PERMANENT, "the resolver was asked for something that does not exist")
    return Finding(TRANSIENT, "a host name was not resolved")


#: What OpenSSL says where the two sides will never agree. The rest (cut off, garbled) is the network's.
_TLS_PERMANENT = re.compile(
    r"CERTIFICATE|UNKNOWN_CA|WRONG_VERSION_NUMBER|UNSUPPORTED_PROTOCOL|UNKNOWN_PROTOCOL|NO_PROTOCOLS_AVAILABLE"
    r"|PROTOCOL_VERSION|VERSION_TOO_LOW|NO_SHARED_CIPHER|HANDSHAKE_FAILURE|HTTP_REQUEST|UNRECOGNIZED_NAME"
    r"|PACKET_LENGTH_TOO_LONG|NO_APPLICATION_PROTOCOL"
)


def tls(exc: BaseException) -> Finding:
    """Judge a TLS error by OpenSSL's reason; its ``errno`` is no errno."""
    reason = look(exc, "reason")
    reason = reason if isinstance(reason, str) else ""
    kind = PERMANENT if _TLS_PERMANENT.search(reason) else TRANSIENT
    return Finding(kind, f"TLS: {reason or 'the connection broke'}")


def smtp(exc: BaseException) -> Finding | None:
    """Judge a reply of a mail server: 4yz is temporary, 5yz is not; of many recipients the worst decides."""
    recipients = look(exc, "recipients")
    if isinstance(recipients, dict):
        codes = [first(reply) for reply in recipients.values()]
    else:
        codes = [look(exc, "smtp_code")]
    return _by_reply("SMTP", (code for code in codes if isinstance(code, int)))


def ftp(exc: BaseException) -> Finding | None:
    """Judge a reply of an FTP server by its number."""
    word = text(exc)[:3]
    return _by_reply("FTP", [int(word)] if word.isdigit() else [])


def _by_reply(protocol: str, codes: Iterable[int]) -> Finding | None:
    worst = max(codes, default=0)
    if not 400 <= worst <= 599:  # noqa: PLR2004 - the protocol's own numbers
        return None
    return Finding(TRANSIENT if worst < 500 else PERMANENT, f"{protocol} {worst}")  # noqa: PLR2004


_TEMPFAIL = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to try again later"


def exit_code(exc: BaseException) -> Finding | None:
    """Judge a command that failed: only EX_TEMPFAIL says something."""
    return Finding(TRANSIENT, "the command ended with EX_TEMPFAIL") if look(exc, "returncode") == _TEMPFAIL else None
