"""What beat asks for when it sends."""

from datetime import datetime, timezone


def today() -> str:
    """Return the day, in UTC: what the report of a night is known by."""
    return datetime.now(timezone.utc).date().isoformat()
