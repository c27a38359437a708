"""Idempotency keys: from a template and arguments to a key, and from a key to its digest."""

from __future__ import annotations

import hashlib
import string
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery_durable.errors import IdempotencyKeyError

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Mapping, Sequence

MAX_LENGTH = 255


def digest(task: str, key: str) -> bytes:
    """SHA-256 of task name, NUL, key: what uniqueness is judged by.

    Collations of MySQL fold case, accents and trailing blanks of the text itself (PROTOCOL 3).
    """
    return hashlib.sha256(f"{task}\0{key}".encode("utf-8", "surrogatepass")).digest()


def checked(task: str, key: object) -> str:
    """Return the key if it can be stored.

    Raises:
        IdempotencyKeyError: it is empty, too long, not text, or holds NUL or half a surrogate pair.
    """
    if not isinstance(key, str):
        raise IdempotencyKeyError(
            f"{task}: the idempotency key is {key!r}, a {type(key).__name__}: it must be a string."
        )
    if not key:
        raise IdempotencyKeyError(f"{task}: the idempotency key is empty; leave it out to use the task id.")
    if len(key) > MAX_LENGTH:
        raise IdempotencyKeyError(
            f"{task}: the idempotency key has {len(key)} characters, {MAX_LENGTH} are allowed; "
            f"hash its long part. It begins {key[:40]!r}."
        )
    if "\0" in key or any("\ud800" <= c <= "\udfff" for c in key):
        raise IdempotencyKeyError(
            f"{task}: the idempotency key {key[:40]!r} holds a NUL or half a surrogate pair; leave it out."
        )
    return key


@lru_cache(maxsize=1024)
def _fields(template: str) -> tuple[str, ...]:
    return tuple(
        name.partition(".")[0].partition("[")[0]
        for _, name, _, _ in string.Formatter().parse(template)
        if name is not None
    )


def check_template(task: str, template: str, signature: inspect.Signature) -> None:
    """Refuse a template that names an argument which the task does not have.

    Raises:
        IdempotencyKeyError: naming the field and the arguments there are.
    """
    try:
        names = _fields(template)
    except ValueError as exc:
        raise IdempotencyKeyError(f"{task}: idempotency_key {template!r} is no format string: {exc}.") from None
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in names:
        if name not in signature.parameters and not (takes_any and name.isidentifier()):
            have = ", ".join(signature.parameters) or "none"
            raise IdempotencyKeyError(
                f"{task}: idempotency_key {template!r} names {{{name}}}, but the task has no such argument; "
                f"its arguments are: {have}."
            )


def render(
    task: str,
    template: str | Callable[..., object],
    signature: inspect.Signature,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> str:
    """Make the key of one call from its arguments, as they look after serialisation.

    Raises:
        IdempotencyKeyError: the template or callable does not fit the arguments, or gave an unusable key.
    """
    if callable(template):
        try:
            key = template(*args, **kwargs)
        except Exception as exc:
            raise IdempotencyKeyError(
                f"{task}: idempotency_key({_call(args, kwargs)}) raised {type(exc).__name__}: {exc}."
            ) from exc
        return checked(task, key)
    if not isinstance(template, str):
        raise IdempotencyKeyError(
            f"{task}: idempotency_key is {template!r}: it must be a template string, a function or a method."
        )
    check_template(task, template, signature)
    try:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                values.update(values.pop(parameter.name, {}))
        key = template.format_map(values)
    except Exception as exc:
        raise IdempotencyKeyError(
            f"{task}: idempotency_key {template!r} cannot be formatted from ({_call(args, kwargs)}): "
            f"{type(exc).__name__}: {exc}."
        ) from exc
    return checked(task, key)


def _call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Name the arguments by type alone: values may be secrets."""
    shown = [type(a).__name__ for a in args] + [f"{k}={type(v).__name__}" for k, v in kwargs.items()]
    return ", ".join(shown)
