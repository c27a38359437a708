"""Keep standard output for answers: what the user's modules print while they are imported goes to stderr.

Celery imports the app that ``-A`` names before any command of ours is reached, but after it has loaded
this plugin. So the plugin looks at the command line once: only when it calls ``durable`` is stdout held,
until the group of commands is entered.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Celery's global options that take a value in the next word.
_VALUED = frozenset({"-A", "--app", "-b", "--broker", "--result-backend", "--loader", "--config", "--workdir"})
_ANSWERED_AT_ONCE = frozenset({"--help", "--version"})

_held = ExitStack()


def hold(argv: Sequence[str]) -> None:
    """Send stdout to stderr if this command line calls ``durable``."""
    if _calls_durable(argv):
        _held.enter_context(redirect_stdout(sys.stderr))


def release() -> None:
    """Let stdout go where it went before ``hold``; harmless without one."""
    _held.close()


def _calls_durable(argv: Sequence[str]) -> bool:
    words = iter(argv[1:])
    for word in words:
        if word in _ANSWERED_AT_ONCE:
            return False
        if word in _VALUED:
            next(words, None)
        elif not word.startswith("-"):
            return word == "durable"
    return False
