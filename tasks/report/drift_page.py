"""One look at new images: a page that loads nothing, in the style of the report, and Markdown for the Prefect UI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.report import figures, rendering, sanitize
from tasks.report.rendering import number
from tasks.ui.markdown import escaped

USUAL = 20
"""How many training images are shown beside the new ones."""

_COLUMNS, _SMALL_SIDE = 10, 32


@dataclass(frozen=True)
class DriftPictures:
    """The images of a look; each uint8 of shape (n, height, width)."""

    most: np.ndarray
    """The new images that differ most, in the order of `most` of the values."""
    usual: np.ndarray
    """Some training images."""
    means: np.ndarray
    """The mean training image, and the mean new image."""


def page(values: Mapping[str, Any], pictures: DriftPictures) -> str:
    """Return the page as HTML.

    Args:
        values: of `flows.drift.Look.values`.
        pictures: its images.
    """
    shown = {name: figures.sheet(getattr(pictures, name)) for name in ("most", "usual", "means")}
    return rendering.drift(sanitize.shareable_values(dict(values), {}), shown)


def markdown(values: Mapping[str, Any]) -> str:
    """Return the sentence and the tests as Markdown."""
    rows = [
        f"| {escaped(test['name'])} | {escaped(test['measure'])} | {number(test['effect'])} | {number(test['limit'])} "
        f"| {number(test['corrected_p'])} | {'**beyond**' if test['beyond'] else 'within'} |"
        for test in values["tests"]
    ]
    head = ["| Compared | Measure | Size | Limit | p, corrected | |", "|:--|:--|--:|--:|--:|:--|"]
    sentence = escaped(sanitize.presentable(str(values["sentence"])))
    return "\n".join([f"**{sentence}**", "", *head, *rows]) + "\n"


def artifact(values: Mapping[str, Any], pictures: DriftPictures) -> str:
    """Return the sentence, the tests and the images that differ most as Markdown for the Prefect UI."""
    captions = [
        [f"{sanitize.presentable(one['predicted'])} ({one['probability']:.0%})", f"row {one['row']:,}"]
        for one in values["most"]
    ]
    svg = figures.captioned(figures.sheet(pictures.most, max_side=_SMALL_SIDE), captions, _COLUMNS)
    caption = "The new images that differ most, with the champion's answers"
    return f"{markdown(values)}\n{caption}:\n\n![{caption}]({figures.data_uri(svg)})\n"


def pictures_of(most: np.ndarray, old: np.ndarray, new: np.ndarray) -> DriftPictures:
    """Return the images of a look.

    Args:
        most: the new images that differ most.
        old: all training images that were compared.
        new: all new images that were compared.
    """
    places = np.linspace(0, len(old) - 1, min(USUAL, len(old))).round().astype(int)
    return DriftPictures(most, old[places], _means((old, new)))


def _means(groups: Sequence[np.ndarray]) -> np.ndarray:
    means = [images.mean(axis=0, dtype=np.float64) for images in groups]
    rounded: np.ndarray = np.rint(np.stack(means)).astype(np.uint8)
    return rounded
