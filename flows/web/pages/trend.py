"""The picture of the last runs, drawn as in the report, without the styles in it that the site's policy forbids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tasks.report import figures
from tasks.report.figures import Chart, Line
from tasks.report.rendering import percent


def picture(dataset: str, runs: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the test accuracy of runs as SVG; empty if fewer than two have tested a model.

    Args:
        runs: as `tasks.report.trend.past_run` returns them, oldest first.
    """
    accuracy = [run["accuracy"] for run in runs]
    known = [value for value in accuracy if value is not None]
    if len(known) < 2:
        return Markup()
    lines = [
        Line(
            "test accuracy",
            accuracy,
            intervals=[None if run["low"] is None else (run["low"], run["high"]) for run in runs],
        )
    ]
    promoted = [run["accuracy"] if run["outcome"] == "promoted" else None for run in runs]
    if any(value is not None for value in promoted):
        lines.append(Line("promoted", promoted, held_out=True, joined=False))
    description = (
        f"Test accuracy of the last {len(runs)} runs with its interval; the newest known is {percent(known[-1])}"
    )
    chart = Chart(f"trend-{dataset}", range(1, len(runs) + 1), "run, newest last", lines, description, percent=True)
    return Markup(without_styles(figures.chart(chart)))


def without_styles(svg: str) -> str:
    """Replace each `style` of an SVG by the attributes that mean the same (SVG 2, 6.6: presentation attributes)."""
    return re.sub(r'style="([^"]*)"', lambda found: _attributes(found[1]), svg)


def _attributes(style: str) -> str:
    pairs = (declaration.partition(":") for declaration in style.split(";") if declaration.strip())
    return " ".join(f'{name.strip()}="{value.strip()}"' for name, _, value in pairs)
