"""The ``durable_*`` settings: read once into one frozen, validated object."""

from __future__ import annotations

import difflib
import math
import os
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from celery_durable.classify import table_of
from celery_durable.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "durable_"
DEFAULT_LEDGER_URL = "sqlite:///celery-durable.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting with its default; the names in ``app.conf`` carry the prefix ``durable_``.

    Durations are seconds, sizes bytes.
    """

    ledger_url: str = DEFAULT_LEDGER_URL
    lease: float = 30.0
    sweep_interval: float = 1.0
    republish_after: float = 30.0
    max_losses: int = 3
    time_limit: float = 3600.0
    max_message_bytes: int = 1024 * 1024
    result_retention: float = 30 * 86_400.0
    key_retention: float = 0.0
    table_prefix: str = "durable_"
    fast_path_url: str = ""
    unclassified: str = "dead"
    code_version: str = ""
    observe: tuple[str, ...] = ()
    classify: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, conf: Mapping[str, Any]) -> Settings:
        """Collect and check the settings of an app.

        Raises:
            SettingsError: naming the setting, the value seen and the fix.
        """
        known = {PREFIX + f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for name in map(str, conf):
            if not name.lower().startswith(PREFIX):
                continue
            setting = known.get(name.lower())
            if setting is None:
                raise SettingsError(_unknown(name, list(known)))
            value = conf[name]
            if value is not None:
                read = _READERS.get(setting.name)
                values[setting.name] = read(value) if read else _typed(name, value, str(setting.type))
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        for name in (
            "lease",
            "sweep_interval",
            "republish_after",
            "time_limit",
            "max_losses",
            "max_message_bytes",
            "result_retention",
        ):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{PREFIX}{name} is {getattr(self, name)!r}: it must be greater than 0.")
        if self.unclassified not in {"dead", "retry"}:
            raise SettingsError(f'durable_unclassified is {self.unclassified!r}: it is "dead" or "retry".')
        if self.lease < 3 * self.sweep_interval:
            raise SettingsError(
                f"durable_lease is {self.lease:g} s, shorter than three sweeps of durable_sweep_interval "
                f"({self.sweep_interval:g} s): a worker could not renew it in time. "
                f"Set durable_lease to {3 * self.sweep_interval:g} or more, or sweep more often."
            )
        if self.fast_path_url and self.fast_path_url.partition("://")[0] not in {"redis", "rediss", "unix"}:
            raise SettingsError(
                f"durable_fast_path_url begins with {self.fast_path_url.partition(':')[0]!r}: "
                "it is the URL of a Redis, such as redis://localhost/1."
            )
        if self.key_retention < 0:
            raise SettingsError(f"durable_key_retention is {self.key_retention:g}: it is 0 (for ever) or more.")
        if self.key_retention and self.key_retention < self.result_retention:
            raise SettingsError(
                f"durable_key_retention is {self.key_retention:g} s, shorter than durable_result_retention "
                f"({self.result_retention:g} s): a key outlives its result. Make it at least as long, or 0, which is "
                "for ever."
            )
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,30}", self.table_prefix):
            raise SettingsError(
                f"durable_table_prefix is {self.table_prefix!r}: use up to 31 lower-case letters, digits "
                'and underscores, such as "durable_".'
            )

    def resolved_url(self) -> str:
        """Return the ledger's URL; the path of a SQLite file is made absolute."""
        scheme, sep, path = self.ledger_url.partition(":///")
        if sep and scheme.startswith("sqlite") and path and not path.startswith(("/", ":memory:", "file:")):
            return f"{scheme}:///{os.path.abspath(path)}"  # noqa: PTH100 - pathlib cannot do it without resolving links
        return self.ledger_url


def _typed(name: str, value: Any, kind: str) -> Any:
    """Coerce a raw value (environment variables arrive as strings) or say what was expected."""
    convert = {"float": float, "int": int, "str": str}[kind]
    try:
        fits = not isinstance(value, bool) and (kind != "str" or isinstance(value, str))
        fits = fits and (kind == "str" or math.isfinite(float(value)))
        fits = fits and (kind != "int" or int(value) == float(value))
        if fits:
            return convert(value)
    except (TypeError, ValueError):
        pass
    expected = {"float": "a number", "int": "a whole number", "str": "a string"}[kind]
    raise SettingsError(f"{name} is {value!r}: expected {expected}.")


def _observed(value: Any) -> tuple[str, ...]:
    """Take ``durable_observe``: whether stock tasks are observed, or globs that say which."""
    if isinstance(value, str):  # from the environment
        words = [word.strip() for word in value.split(",") if word.strip()]
        value = {"true": True, "false": False}.get(value.strip().lower(), words)
    if isinstance(value, bool):
        return ("*",) if value else ()
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(v, str) and v for v in value):
        return tuple(value)
    raise SettingsError(
        f"durable_observe is {value!r}: it is True, False, or a list of task names, which may hold wildcards, "
        'such as ["shop.*"].'
    )


#: Settings that are more than a number or a string.
_READERS: dict[str, Callable[[Any], Any]] = {"classify": table_of, "observe": _observed}


def _unknown(name: str, known: list[str]) -> str:
    # Compared without the prefix that they all share, or everything would be near.
    near = difflib.get_close_matches(name.lower().removeprefix(PREFIX), [k.removeprefix(PREFIX) for k in known], n=1)
    hint = f"did you mean {PREFIX}{near[0]}?" if near else f"known settings: {', '.join(known)}."
    return f"Unknown setting {name}: {hint}"
