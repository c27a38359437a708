"""What a message has to look like: looked at before Celery does, whose parent process some shapes would end.

Nothing here talks to anybody. What is found wrong is named without its value where that may be a secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_iso8601, maybe_make_aware, timezone

from celery_durable.capture import moment
from celery_durable.keys import MAX_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds: a time limit beyond it is no time limit.
LONGEST = 1e9
_MAX_INT = 2**31 - 1
_LISTS = ("callbacks", "errbacks")


class Flaw(Exception):
    """What is wrong with a message; ``group`` says it without values, so that like flaws group."""

    def __init__(self, group: str, detail: str = "", cause: Exception | None = None) -> None:
        """Name the flaw."""
        super().__init__(f"{group}: {detail}" if detail else group)
        self.group, self.cause = group, cause


@dataclass(frozen=True, slots=True)
class Seen:
    """A message that could be read. ``plain`` says that it is of protocol 2, body and headers as they came."""

    task: str
    id: str
    fields: Mapping[str, Any]
    body: tuple[Any, Any, Any]
    plain: bool

    @property
    def embed(self) -> Mapping[str, Any]:
        """Callbacks, errbacks, chain and chord."""
        found: Mapping[str, Any] = self.body[2] or {}
        return found


def read(message: Any, zone: Any) -> Seen:
    """Read a message of any protocol that Celery speaks; ``zone`` is the app's.

    Raises:
        Flaw: it is none; Celery would lose it, or end over it.
    """
    headers = message.headers
    if not isinstance(headers, Mapping):
        raise Flaw("the headers are no mapping", type(headers).__name__)
    for part in ("delivery_info", "properties"):
        if not isinstance(getattr(message, part) or {}, Mapping):
            raise Flaw(f"the {part} are no mapping")
    try:
        payload = message.decode()
    except Exception as exc:
        raise Flaw("the body cannot be decoded", f"{type(exc).__name__}: {str(exc)[:200]}", exc) from exc
    seen = _modern(headers, payload) if "task" in headers else _old(headers, payload)
    _check_body(seen.body)
    _check_fields(seen.fields, zone)
    return seen


def check_durable(seen: Seen) -> None:
    """Check what a row keeps, and what tells its outcome.

    Raises:
        Flaw: the message cannot become work of the ledger.
    """
    if seen.body[2] is None:
        raise Flaw("the body embeds no mapping", "NoneType")
    for name in ("id", "root_id", "parent_id", "group"):
        _storable(name, seen.fields.get(name))
    for name in ("origin", "reply_to"):
        value = seen.fields.get(name)
        if isinstance(value, str) and "\0" in value:
            raise Flaw(f"the header {name} holds a NUL")
    _tried("expires", lambda: moment(seen.fields.get("expires")))
    for name in _LISTS:
        value = seen.embed.get(name)
        if not _all_mappings([value] if isinstance(value, Mapping) else value):
            raise Flaw(f"{name} are no signatures")
    if not _all_mappings(seen.embed.get("chain")):
        raise Flaw("chain holds no signatures")
    if not isinstance(seen.embed.get("chord") or {}, Mapping):
        raise Flaw("chord is no signature")


def eta_of(seen: Seen, zone: Any) -> datetime | None:
    """Return when the task may run first."""
    value = seen.fields.get("eta")
    return None if value is None else maybe_make_aware(maybe_iso8601(value), zone)


def _modern(headers: Mapping[str, Any], payload: Any) -> Seen:
    """Protocol 2, and the hybrid one: its headers with the body of protocol 1."""
    if isinstance(payload, Mapping) and "args" in payload:
        return _from_mapping({**payload, **headers}, payload, named=headers)
    if not isinstance(payload, list | tuple) or len(payload) != 3:  # noqa: PLR2004 - args, kwargs, embed
        kind = type(payload).__name__
        raise Flaw("the body is not (args, kwargs, embed)", f"{kind} of {len(payload)}" if _sized(payload) else kind)
    args, kwargs, embed = payload
    return Seen(_name(headers.get("task")), _id(headers), headers, (args, kwargs, embed), plain=True)


def _old(headers: Mapping[str, Any], payload: Any) -> Seen:
    if not isinstance(payload, Mapping) or "task" not in payload:
        raise Flaw("it names no task", "neither in its headers nor in its body")
    fields = {**payload, **headers} if "args" in payload else payload
    return _from_mapping(fields, payload, named=payload)


def _from_mapping(fields: Mapping[str, Any], payload: Mapping[str, Any], *, named: Mapping[str, Any]) -> Seen:
    embed = {k: payload.get(k) for k in ("callbacks", "errbacks", "chord")} | {"chain": None}
    body = (payload.get("args", ()), payload.get("kwargs", {}), embed)
    return Seen(_name(named.get("task")), _id(fields), fields, body, plain=False)


def _name(task: Any) -> str:
    if not isinstance(task, str) or not task:
        raise Flaw("the task's name is no text", type(task).__name__)
    return task


def _id(fields: Mapping[str, Any]) -> str:
    if "id" not in fields:
        raise Flaw("the id is missing")
    if not isinstance(fields["id"], str) or not fields["id"]:
        raise Flaw("the id is no text", type(fields["id"]).__name__)
    return str(fields["id"])


def _check_body(body: tuple[Any, Any, Any]) -> None:
    args, kwargs, embed = body
    if not isinstance(args, list | tuple):
        raise Flaw("args is no list", type(args).__name__)
    if not isinstance(kwargs, Mapping):
        raise Flaw("kwargs is no mapping", type(kwargs).__name__)
    if embed is not None and not isinstance(embed, Mapping):
        raise Flaw("the body embeds no mapping", type(embed).__name__)


def _check_fields(fields: Mapping[str, Any], zone: Any) -> None:
    for name in ("eta", "expires"):
        _time(name, fields.get(name), zone)
    _check_limits(fields.get("timelimit"))
    retries = fields.get("retries")
    if retries is not None and not _whole(retries):
        raise Flaw("retries is no number", type(retries).__name__)
    for name in ("root_id", "parent_id", "group", "shadow"):
        if not isinstance(fields.get(name), str | None):
            raise Flaw(f"the header {name} is no text", type(fields[name]).__name__)
    stamped = fields.get("stamped_headers")
    if stamped and not (isinstance(stamped, list | tuple) and all(isinstance(s, str) for s in stamped)):
        raise Flaw("stamped_headers is no list of names")
    if not isinstance(fields.get("stamps") or {}, Mapping):
        raise Flaw("stamps is no mapping", type(fields["stamps"]).__name__)


def _check_limits(limits: Any) -> None:
    if not limits:
        return
    if not isinstance(limits, list | tuple) or len(limits) != 2:  # noqa: PLR2004 - hard, soft
        raise Flaw("timelimit is not (hard, soft)", type(limits).__name__)
    for limit in limits:
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if limit is not None and not (number and math.isfinite(limit) and 0 <= limit < LONGEST):
            raise Flaw("timelimit holds no number of seconds", type(limit).__name__)


def _time(name: str, value: Any, zone: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str | datetime):
        raise Flaw(f"{name} is no time", type(value).__name__)

    def readable() -> None:
        read = maybe_make_aware(maybe_iso8601(value), zone)
        if name == "eta":  # near the ends of the calendar a time is not one in every zone
            timezone.to_system(read).timestamp()

    _tried(name, readable)


def _tried(name: str, parse: Callable[[], object]) -> None:
    try:
        parse()
    except Exception as exc:
        raise Flaw(f"{name} is no time", f"{type(exc).__name__}: {str(exc)[:100]}", exc) from exc


def _storable(name: str, value: str | None) -> None:
    if value is not None and (len(value) > MAX_LENGTH or "\0" in value or _half(value)):
        raise Flaw(f"{name} cannot be stored", f"up to {MAX_LENGTH} characters, no NUL, no half surrogate pair")


def usable_id(value: Any) -> bool:
    """Whether this can be a task's id in the ledger."""
    return isinstance(value, str) and 0 < len(value) <= MAX_LENGTH and "\0" not in value and not _half(value)


def _half(value: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INT


def _sized(value: Any) -> bool:
    return isinstance(value, list | tuple | dict | str | bytes)


def _all_mappings(values: Any) -> bool:
    return not values or (isinstance(values, list | tuple) and all(isinstance(v, Mapping) for v in values))
