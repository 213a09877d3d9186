"""Small pieces of text that several sections use."""

from __future__ import annotations

from storage.records import RunRecord
from storage.words import counted as counted


def duration(seconds: float | None) -> str:
    """Format a duration for display."""
    if seconds is None:
        return "–"
    if seconds < 0.005:
        return "under 0.01 s"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def sentence(text: str) -> str:
    """Return `text` with a capital letter and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")


def class_names(run: RunRecord) -> tuple[str, ...]:
    """Return the names of the classes of a run's data set; empty if unknown."""
    return run.facts.classes if run.facts else ()


def class_name(run: RunRecord, label: int) -> str:
    """Return the name of a class, or the label itself if there is no such class."""
    names = class_names(run)
    return names[label] if 0 <= label < len(names) else f"label {label}"
