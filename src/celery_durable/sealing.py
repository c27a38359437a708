"""Bytes that hold secrets, stored so that no dump, log or screen shows them.

This is no encryption: the seal stands beside what it seals, so whoever has the row can undo it.
"""

from __future__ import annotations

import hashlib
import secrets

#: Stands between the content type of a sealed result and its seal.
_MARK = ";seal="


def new_seal() -> str:
    """Make a seal."""
    return secrets.token_hex(16)


def masked(content: bytes, seal: str) -> bytes:
    """Mask, or unmask, with a stream made of the seal."""
    stream = hashlib.shake_256(seal.encode()).digest(len(content))
    return (int.from_bytes(content, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(content), "big")


def sealed_result(content: bytes, content_type: str) -> tuple[bytes, str]:
    """Mask a result; its content type carries the seal."""
    seal = new_seal()
    return masked(content, seal), f"{content_type}{_MARK}{seal}"


def is_sealed(content_type: str) -> bool:
    """Say whether a result's content type carries a seal."""
    return _MARK in content_type


def opened_result(content: bytes, content_type: str) -> tuple[bytes, str]:
    """Return a stored result and its content type as they were before they were sealed, if they were."""
    content_type, mark, seal = content_type.partition(_MARK)
    return (masked(bytes(content), seal) if mark else content), content_type
