"""Format values for a terminal: times, sizes, percentages, and text without control characters."""

from __future__ import annotations

from datetime import UTC, datetime

from storage.words import counted


def printable(text: str) -> str:
    """Replace characters that a terminal would act on: control characters and direction marks.

    Lone surrogates, for bytes of a file name that are not UTF-8, remain: the stream escapes them.
    """
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else "\ufffd" for c in text)


def is_utf8(path: str) -> bool:
    """Return whether a path is UTF-8, as Linux does not require of file names."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def clock(moment: datetime | str | None) -> str:
    """Return a time, or a text in ISO 8601, as `2026-05-01 09:30:00` in UTC; `unknown` if the text is not a time."""
    try:
        time = moment if isinstance(moment, datetime) else datetime.fromisoformat(str(moment))
    except ValueError:
        return f"{'unknown':19}"
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def minute(moment: datetime) -> str:
    """Return a time as `2026-05-01 09:30 UTC`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def size(count: int) -> str:
    """Return a number of bytes in units of 1,000: `1 byte`, `512 bytes`, `1.5 MB`."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return counted(count, "byte") if units[0] == "bytes" else f"{value:,.1f} {units[0]}"


def percent(share: float | None) -> str:
    """Return a fraction as a percentage, `97.50%`; `unknown` for None."""
    return "unknown" if share is None else f"{share:.2%}"
