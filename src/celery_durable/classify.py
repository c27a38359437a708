"""From an exception to a verdict: what kind of failure it is, whether another try may help, and why we think so.

The order of judgement, the first that speaks decides:

1. the task's own ``classify(exc)``;
2. Celery's options. As in Celery, ``dont_autoretry_for`` goes before ``autoretry_for``, and that before ``throws``;
3. the app's ``durable_classify``: the most specific class of the exception's MRO;
4. of an exception group, the worst of its members, each judged by this same order;
5. the built-in table (``classify_table``);
6. ``unclassified``.

``transient`` is tried again and ``permanent`` is not. ``unclassified`` follows ``durable_unclassified``; so does
``timeout``, for a body that was cut off did not say whether the next run would be quicker.
"""

from __future__ import annotations

import builtins
import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from celery_durable import classify_table
from celery_durable.classify_readers import PERMANENT, TIMEOUT, TRANSIENT, UNCLASSIFIED, look, retry_after
from celery_durable.errors import SettingsError
from celery_durable.failures import qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a task or an app may call a failure, the worst last: the worst member of a group decides.
KINDS = (TRANSIENT, TIMEOUT, UNCLASSIFIED, PERMANENT)
#: How deep groups may be nested, and how many members of one are looked at.
MAX_DEPTH, MAX_MEMBERS = 8, 200

_GROUPS = frozenset({"BaseExceptionGroup", "exceptiongroup.BaseExceptionGroup"})  # the latter before Python 3.11
_SETTING = "durable_classify"


@dataclass(frozen=True)
class Rules:
    """What a task and its app say about failures; ``unclassified`` is ``"dead"`` or ``"retry"``."""

    own: Callable[[BaseException], Any] | None = None
    retried: tuple[type, ...] = ()
    unretried: tuple[type, ...] = ()
    expected: tuple[type, ...] = ()
    table: Mapping[str, str] = field(default_factory=dict)
    unclassified: str = "dead"


@dataclass(frozen=True)
class Verdict:
    """What became of the judgement; ``why`` is a sentence for people and quotes no message of the exception.

    ``retry_after`` is the number of seconds that the other side asked to wait, only where ``retryable``.
    """

    kind: str
    retryable: bool
    why: str
    retry_after: float | None = None


def judge(exc: BaseException, rules: Rules) -> Verdict:
    """Classify a failure; it raises nothing, however broken ``classify`` or the exception are."""
    try:
        return _judge(exc, rules, 0)
    except Exception as error:  # noqa: BLE001 - attributes that are not what they seem
        why = f"the exception could not be looked at: {type(error).__name__}"
        return _verdict(UNCLASSIFIED, why, rules)


def _judge(exc: BaseException, rules: Rules, depth: int) -> Verdict:
    kind, said = _own(exc, rules)
    if kind is not None:
        return _verdict(kind, said, rules, retry_after(exc))
    verdict = (
        _by_options(exc, rules) or _by_table(exc, rules) or _by_members(exc, rules, depth) or _built_in(exc, rules)
    )
    return replace(verdict, why=f"{said}; {verdict.why}") if said else verdict


def _verdict(kind: str, why: str, rules: Rules, wait: float | None = None) -> Verdict:
    retryable = kind == TRANSIENT or (kind in {UNCLASSIFIED, TIMEOUT} and rules.unclassified == "retry")
    return Verdict(kind, retryable, why, wait if retryable else None)


def _own(exc: BaseException, rules: Rules) -> tuple[str | None, str]:
    """Ask the task: the kind and the reason, or None and what was wrong with the answer."""
    if rules.own is None:
        return None, ""
    try:
        kind = rules.own(exc)
        known = kind is None or (isinstance(kind, str) and kind in KINDS)
        shown = "" if known else repr(kind)[:60]
    except Exception as error:  # noqa: BLE001 - a broken hook must not hide the failure it was asked about
        return None, f"classify() itself raised {type(error).__name__}"
    if not known:
        return None, f"classify() returned {shown}, which is none of {', '.join(KINDS)}"
    return (None, "") if kind is None else (str(kind), f"classify() says {kind}")


def _by_options(exc: BaseException, rules: Rules) -> Verdict | None:
    options: tuple[tuple[str, tuple[Any, ...], str], ...] = (
        ("dont_autoretry_for", rules.unretried, PERMANENT),
        ("autoretry_for", rules.retried, TRANSIENT),
        ("throws", rules.expected, PERMANENT),
    )
    for option, classes, kind in options:
        for cls in classes:
            if isinstance(cls, type) and isinstance(exc, cls):
                return _verdict(kind, f"{option} names {cls.__name__}", rules, retry_after(exc))
    return None


def _by_table(exc: BaseException, rules: Rules) -> Verdict | None:
    if not rules.table:
        return None
    table = {real: (name, kind) for name, kind in rules.table.items() for real in _real_names(name)}
    for cls in type(exc).__mro__:
        entry = table.get(qualified_name(cls))
        if entry is not None:
            return _verdict(entry[1], f"{_SETTING} names {entry[0]}", rules, retry_after(exc))
    return None


def _real_names(name: str) -> set[str]:
    """Return a name, and the one that its class gives itself: requests.ConnectionError lives elsewhere."""
    module, _, attribute = name.rpartition(".")
    cls = look(sys.modules.get(module), attribute) if module else None
    return {name, qualified_name(cls)} if isinstance(cls, type) else {name}


def _by_members(exc: BaseException, rules: Rules, depth: int) -> Verdict | None:
    """Let the worst member of an exception group decide; all have to be waited for."""
    if depth >= MAX_DEPTH or not any(qualified_name(cls) in _GROUPS for cls in type(exc).__mro__):
        return None
    members = look(exc, "exceptions")
    if not isinstance(members, tuple | list):
        return None
    seen = [_judge(e, rules, depth + 1) for e in islice(members, MAX_MEMBERS) if isinstance(e, BaseException)]
    if not seen:
        return None
    worst = max(seen, key=lambda verdict: KINDS.index(verdict.kind))
    waits = [verdict.retry_after for verdict in seen if verdict.retry_after is not None]
    why = f"the worst of {len(members)} in {type(exc).__name__}: {worst.why}"
    return _verdict(worst.kind, why, rules, max(waits, default=None))


def _built_in(exc: BaseException, rules: Rules) -> Verdict:
    found = classify_table.find(exc)
    if found is None:
        return _verdict(UNCLASSIFIED, f"nothing is known of {qualified_name(type(exc))}", rules)
    return _verdict(found.kind, found.why, rules, found.retry_after)


# The setting ------------------------------------------------------------------------------------------


def table_of(setting: Any) -> Mapping[str, str]:
    """Normalise ``durable_classify``: exception classes or dotted names -> kind, as dotted names -> kind.

    Raises:
        SettingsError: it is no mapping, a name could never match, or a kind is unknown.
    """
    if setting is None:
        return {}
    if not isinstance(setting, Mapping):
        raise SettingsError(
            f"{_SETTING} is {setting!r}: expected a mapping of exception classes or dotted names to kinds, "
            'such as {"stripe.error.RateLimitError": "transient"}.'
        )
    return {_name(key): _kind(key, kind) for key, kind in setting.items()}


def _name(key: Any) -> str:
    if isinstance(key, type) and issubclass(key, BaseException):
        return qualified_name(key)
    if not isinstance(key, str) or not re.fullmatch(r"[^\W\d]\w*(\.([^\W\d]\w*|<locals>))*", key):
        raise SettingsError(
            f"{_SETTING} has the key {key!r}: use an exception class, or its dotted name such as "
            '"stripe.error.RateLimitError".'
        )
    name = key.removeprefix("builtins.")
    if "." not in name and not isinstance(getattr(builtins, name, None), type):
        raise SettingsError(
            f"{_SETTING} has the key {key!r}, which is no exception of Python's own: write it with its module, such as "
            f'"myapp.errors.{name}".'
        )
    return name


def _kind(key: Any, kind: Any) -> str:
    if isinstance(kind, str) and kind in KINDS:
        return str(kind)
    near = difflib.get_close_matches(str(kind), KINDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(map(repr, KINDS))}."
    raise SettingsError(f"{_SETTING}[{key!r}] is {kind!r}: {hint}")
