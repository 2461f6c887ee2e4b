"""ISO-8601 text to microseconds since 1970 in UTC, and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MIN_MICROS = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z
MAX_MICROS = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z


def to_micros(text: str) -> int:
    """Microseconds since 1970-01-01 UTC of an ISO-8601 date or time; text without an offset is read as UTC.

    Raises ValueError for anything else, and for instants outside the years 1 to 9999 in UTC.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - EPOCH
    micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if not MIN_MICROS <= micros <= MAX_MICROS:
        raise ValueError("an instant outside the years 1 to 9999")
    return micros


def to_text(micros: int) -> str:
    """The instant as ISO-8601 text in UTC, ending in ``+00:00``: such texts sort as the instants do.

    (With a ``Z`` they would not: ``.`` sorts before it, so half a second past would come before the second.)
    """
    return (EPOCH + timedelta(microseconds=micros)).isoformat()
