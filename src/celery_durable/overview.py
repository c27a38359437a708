"""What a look at a whole ledger tells: counts, how its database is set up, what is late. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Count:
    """A number of rows; ``more`` when it is a limit at which counting ended, ``about`` when it is an estimate."""

    number: int
    more: bool = False
    about: bool = False

    def __str__(self) -> str:
        """``37``, ``10,000+``, ``about 1,000,000``."""
        return f"{'about ' if self.about else ''}{self.number:,}{'+' if self.more else ''}"


@dataclass(frozen=True, slots=True)
class Setup:
    """A database as it says it is. ``ahead``: seconds by which its clock is ahead of this process's.

    ``not_transactional`` names tables without transactions (MySQL).
    """

    product: str
    version: tuple[int, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    not_transactional: Sequence[str] = ()
    ahead: float = 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Work that is due: how much, for how many seconds; what is queued where, and what no worker knows."""

    due: Count
    late: float
    queues: Sequence[tuple[str, int]]
    unregistered: Count


__all__ = ["Count", "Setup", "Standing"]
