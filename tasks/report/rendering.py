"""Render a report as a self-contained HTML page and as Markdown for the Prefect UI.

`tasks.report.document` provides the content. Every text is escaped for its format: by Jinja in HTML, by
`escaped_markdown` in Markdown. The folder `templates` holds the surrounding text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
import numpy as np
from markupsafe import Markup

from storage.words import shortened
from tasks.report import figures
from tasks.report.figures import Sheet
from tasks.report.phrases import duration
from tasks.ui.markdown import escaped

MAX_HTML_BYTES = 1_000_000
# Prefect: twice-kept.
MAX_MARKDOWN_BYTES = 300_000
"""Prefect keeps every artifact twice in its database and refuses events above 1.5 MB."""

TEMPLATES = Path(__file__).parent / "templates"
_SMALL_SIDE = 32
_LONG = 10_000
"""Maximum characters of a command."""
_LISTS = (
    "data",
    "audit",
    "quarantine",
    "checks",
    "drift",
    "training",
    "test",
    "mistakes",
    "behaviour",
    "decision",
    "trend",
    "timing",
)
"""The sections that may be missing, as in the report of an interrupted run."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """The pictures of a report. Images are uint8 of shape (n, height, width); None if there is nothing to show."""

    quarantine: np.ndarray | None = None
    """Images of `quarantine.shown`, in order."""
    examples: np.ndarray | None = None
    """Images of the `data.classes` that have an example, in order, at most 64."""
    means: np.ndarray | None = None
    """The mean image of the same classes."""
    suspects: np.ndarray | None = None
    """Images of `audit.shown`, in order."""
    near_test: np.ndarray | None = None
    near_train: np.ndarray | None = None
    """Images of `audit.pairs`, in order."""
    mistakes: np.ndarray | None = None
    """Images of `mistakes.shown`, in order."""
    disagreements: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Images of `shown` in `mistakes.lost`, `mistakes.gained` and `mistakes.otherwise_wrong`, by `lost` and so on."""
    behaviour_before: np.ndarray | None = None
    behaviour_after: np.ndarray | None = None
    """Images of the examples of all tests of `behaviour.tests`, in order: as they are, and changed."""
    named: np.ndarray | None = None
    """Images of `behaviour.wrong`, in order, at most 12."""
    drift: np.ndarray | None = None
    """Images of `drift.most`, in order."""
    checks: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Images of the offending rows, by position in `checks.checks`."""
    charts: Mapping[str, str] = field(default_factory=dict)
    """SVG by name: `loss`, `accuracy`, `gradients`, `rate`, `seconds`, `calibration`, `trend`, `duration`."""


@dataclass(frozen=True)
class Shown:
    """The pictures in the form that the templates use."""

    quarantine: Sheet | None
    examples: Sheet | None
    means: Sheet | None
    suspects: Sheet | None
    near_test: Sheet | None
    near_train: Sheet | None
    mistakes: Sheet | None
    disagreements: Mapping[str, Sheet]
    behaviour_before: Sheet | None
    behaviour_after: Sheet | None
    named: Sheet | None
    drift: Sheet | None
    checks: Mapping[int, Sheet]
    charts: Mapping[str, str]


def html(values: dict[str, Any], pictures: Pictures) -> str:
    """Return the page, below `MAX_HTML_BYTES`; pictures are left out if they would make it larger."""
    return _within(MAX_HTML_BYTES, "report.html.j2", values, pictures, figures.MAX_SIDE)


def markdown(values: dict[str, Any], pictures: Pictures, place: str = "") -> str:
    """Return the report as GitHub-flavoured Markdown below `MAX_MARKDOWN_BYTES`, pictures as `data:` addresses.

    Args:
        place: location of the HTML, for display.
    """
    return _within(MAX_MARKDOWN_BYTES, "report.md.j2", {**values, "place": place}, pictures, _SMALL_SIDE)


def study_html(values: Mapping[str, Any], charts: Mapping[str, str]) -> str:
    """Return the page of a study (`tasks.study.content`) with its pictures as SVG."""
    return _engine(False).get_template("study.html.j2").render(**values, pictures=Pictures(charts=charts))


def model_card(values: dict[str, Any]) -> str:
    """Return the text of a model card as GitHub-flavoured Markdown.

    Args:
        values: the content of a report, with the export as `model` and the registered version as `version`.
    """
    return _engine(True).get_template("model_card.md.j2").render(**values)


def learning_curve(values: dict[str, Any], charts: Mapping[str, str]) -> str:
    """Return the page of a learning curve.

    Args:
        values: `dataset`, `run`, `title`, `sentence`, `finding`, `points` (by share) and `seeds`.
        charts: SVG by name: `loss` and `accuracy`.
    """
    return _engine(False).get_template("learning_curve.html.j2").render(**values, pictures=Pictures(charts=charts))


def drift(values: dict[str, Any], pictures: Mapping[str, Sheet]) -> str:
    """Return the page of a look at new images.

    Args:
        values: of `flows.drift.Look.values`.
        pictures: sheets by name: `most`, `usual` and `means`.
    """
    return _engine(False).get_template("drift_page.html.j2").render(**values, pictures=pictures)


def metrics(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the scores per class as rows of strings and counts, worst recall first; empty without a test."""
    test = values["test"]
    return [
        {
            "class": score["name"],
            "rows": score["rows"],
            "recall": percent(score["recall"]),
            "95% interval": f"{percent(score['low'])} to {percent(score['high'])}",
            "precision": percent(score["precision"]),
            "f1": percent(score["f1"]),
        }
        for score in (test["per_class"] if test else [])
    ]


def percent(value: float | None) -> str:
    """Format a share as a percentage with two decimals."""
    return "–" if value is None else f"{value:.2%}"


def number(value: Any) -> str:
    """Format a setting or a measured number for display: four significant digits, no Python notation."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}").replace("e+", "e").replace("-", "−")
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def size(count: int | None) -> str:
    """Format a number of bytes for display."""
    if count is None:
        return "–"
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:,.1f} GiB"


def link(address: str) -> str:
    """Return `address` if it can be linked to, otherwise an empty string."""
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        return ""
    plain = address.isprintable() and not set(address) & set(" <>\"'`\\()[]")
    return address if plain and host and parts.scheme in ("http", "https") else ""


def escaped_markdown(value: Any) -> Markup:
    """Escape a value for Markdown, so that it contains no markup, HTML or links."""
    return value if isinstance(value, Markup) else Markup(escaped(str(value)))


def _moment(text: str | None) -> str:
    """Format an ISO 8601 time as `2026-05-02 09:00 UTC`."""
    try:
        return f"{datetime.fromisoformat(text or ''):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text or "–"


def _points(change: float | None) -> str:
    if change is None:
        return "–"
    return f"{change * 100:+.2f}".replace("-", "−") if abs(change) >= 0.00005 else "±0.00"


def _brief(value: Any) -> str:
    """Format one side of a difference: numbers for display, digests and other long texts cut."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_brief(inner)}" for name, inner in value.items()) or "none"
    text = value if isinstance(value, str) else number(value)
    return shortened(text, 80)


def _within(limit: int, template: str, values: dict[str, Any], pictures: Pictures, max_side: int) -> str:
    """Render below `limit` bytes: with smaller pictures if needed, then without pictures, finally the result alone."""
    name = template.removesuffix(".j2")
    for side in (max_side, max_side // 2, max_side // 4):
        text = _render(template, values, pictures, side)
        if len(text.encode()) < limit:
            return text
        _log.info("%s: %d bytes with pictures of %d pixels a side", name, len(text.encode()), side)
    _log.warning("%s: left out the pictures, it was %d bytes with them", name, len(text.encode()))
    text = _render(template, values, Pictures(), max_side)
    size_bytes = len(text.encode())
    if size_bytes < limit:
        return text
    _log.error(
        "%s: expected less than %s bytes; found %s without pictures; report.json has it all",
        name,
        f"{limit:,}",
        f"{size_bytes:,}",
    )
    return _render(template, _result_alone(values), Pictures(), max_side)


def _result_alone(values: dict[str, Any]) -> dict[str, Any]:
    """Return the content without its unbounded parts, which leaves a few thousand characters."""
    changes = {**values["changes"], "differences": []}
    command = values["lineage"]["command"]
    command = command if len(command) < _LONG else "(too long for this page, see report.json)"
    lineage = {**values["lineage"], "command": command, "packages": {}, "libraries": {}, "digests": {}, "code": {}}
    note = "The full content would make this page too large: report.json has it."
    verdict = {**values["verdict"], "not_reached": [], "advice": [*values["verdict"]["advice"], note]}
    return {**values, **dict.fromkeys(_LISTS), "changes": changes, "lineage": lineage, "verdict": verdict}


def _render(template: str, values: dict[str, Any], pictures: Pictures, max_side: int) -> str:
    def sheet(images: np.ndarray | None) -> Sheet | None:
        return None if images is None else figures.sheet(images, max_side=max_side)

    disagreements = {name: figures.sheet(images, max_side=max_side) for name, images in pictures.disagreements.items()}
    checks = {index: figures.sheet(images, max_side=max_side) for index, images in pictures.checks.items()}
    shown = Shown(
        sheet(pictures.quarantine),
        sheet(pictures.examples),
        sheet(pictures.means),
        sheet(pictures.suspects),
        sheet(pictures.near_test),
        sheet(pictures.near_train),
        sheet(pictures.mistakes),
        disagreements,
        sheet(pictures.behaviour_before),
        sheet(pictures.behaviour_after),
        sheet(pictures.named),
        sheet(pictures.drift),
        checks,
        pictures.charts,
    )
    return _engine(template.endswith(".md.j2")).get_template(template).render(**values, pictures=shown)


@cache
def _engine(for_markdown: bool) -> jinja2.Environment:
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=escaped_markdown if for_markdown else None,
    )
    engine.filters |= {
        "percent": percent,
        "number": number,
        "duration": duration,
        "size": size,
        "link": link,
        "moment": _moment,
        "points": _points,
        "signed": lambda value: f"{value:+,}".replace("-", "−"),
        "brief": _brief,
        "measure": lambda value, by: f"{value:.1f}{'°' if by == 'slant' else ''}".replace("-", "−"),
        "count": lambda value: "–" if value is None else f"{value:,}",
        "standalone": lambda svg: Markup(figures.data_uri(figures.standalone(svg))),
        "captioned": _captioned,
        "line": lambda text: Markup(" ".join(text.split())),
    }
    return engine


def _captioned(pictures: Sheet, captions: Sequence[Sequence[str]], columns: int = 10) -> Markup:
    return Markup(figures.data_uri(figures.captioned(pictures, captions, columns)))
