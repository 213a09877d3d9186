"""What every reader of a source yields, and what it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from storage.errors import FormatError
from storage.records import SplitName
from storage.words import times
from tasks.adding.placing import Fit

BATCH_ROWS = 1024
"""Images in memory at a time."""
_SPLITS: Mapping[str, SplitName] = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_VALIDATION = frozenset({"valid", "val", "validation", "dev"})
LABELS = ("label", "labels", "class", "target", "category", "y", "digit", "letter", "fine_label")
"""The names that columns of classes have, best first."""
IMAGES = ("image", "images", "img", "pixels", "x")


@dataclass(frozen=True)
class Batch:
    """Some images of a source, with what is known of each."""

    images: np.ndarray
    """uint8 of shape (n, height, width)."""
    labels: list[str]
    """The class of each, as the source writes it."""
    split: SplitName | None
    """None if the source does not say."""
    groups: list[str] | None = None
    """What must stay in one split, such as the writer of a digit."""


@dataclass(frozen=True)
class Reading:
    """How a source is to be read, as the user asked for it."""

    size: tuple[int, int] | None = None
    """Height and width of the images; None: as they are."""
    fit: Fit = "pad"
    label_column: str | None = None
    """Name of a column, or its number from 0; None: by its name or place."""
    group_by: str | None = None
    """Column of groups; for pictures, a regular expression that finds the group in the path."""
    white: float = 255
    """The value of the brightest pixel possible."""
    transpose: bool | None = None
    """Whether rows and columns of the images are swapped; None: only where that is known of the source."""
    match: str = ""
    """Only files with this text in their names."""
    invert: bool = False
    skip_bad: bool = False


class Remarks:
    """What the user should know of how a source was understood, and of what was left out."""

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self.lines: list[str] = []
        self.skipped: list[str] = []
        """A sentence for each picture that cannot be read."""

    def add(self, line: str) -> None:
        """Note a remark, once."""
        if line not in self.lines:
            self.lines.append(line)
            self._say(line)


@dataclass(frozen=True)
class Source:
    """A source that was recognized."""

    kind: str
    """What it is, in a few words."""
    batches: Iterator[Batch]
    names: Mapping[str, str] = field(default_factory=dict)
    """The names of classes whose labels in the source are others."""
    has_names: bool = False
    """Whether labels are names, of which some may be numbers."""


def refused(where: object, expected: str, actual: str, remedy: str) -> FormatError:
    """Return the error for a source that cannot be used."""
    return FormatError(f"{where}: expected {expected}; found {actual}; {remedy}")


def splits_of(paths: Sequence[Path], remarks: Remarks) -> list[SplitName | None]:
    """Return the split that each file or folder is of, by its name; None if its name does not say.

    A validation split is the test split if there is no other; otherwise it is part of the training split, of which a
    run holds out rows itself.
    """
    words = [set(re.split(r"[^a-z0-9]+", path.name.lower())) for path in paths]
    splits = [next((split for word, split in _SPLITS.items() if word in found), None) for found in words]
    instead: SplitName = "train" if "test" in splits else "test"
    for place, found in enumerate(words):
        if not splits[place] and found & _VALIDATION:
            splits[place] = instead
            remarks.add(f"{paths[place].name} is part of the {instead} split")
    return splits


def column(where: object, names: list[str], wanted: str) -> int:
    """Return the place of a column that the user named, or numbered from 0.

    Raises:
        FormatError: there is no such column.
    """
    if wanted in names:
        return names.index(wanted)
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
    raise refused(where, f"a column {wanted!r}", f"{len(names):,}: {shown}", "give the name of one of these")


def as_pixels(where: object, values: np.ndarray, reading: Reading) -> np.ndarray:
    """Return pixel values as uint8 of the same shape.

    Raises:
        FormatError: a value is not a pixel.
    """
    if values.dtype == np.uint8 and reading.white == 255:
        return values
    if values.dtype.kind not in "uifb":
        raise refused(where, "numbers as pixels", values.dtype.name, "give another column, or another file")
    scaled = values.astype(np.float64) * (255 / reading.white)
    bad = ~((scaled >= 0) & (scaled <= 255))
    if reading.white == 255:
        bad |= scaled != np.rint(scaled)
    if bad.any():
        first = values[bad].flat[0]
        remedy = "say which value is white, such as --white 1" if 0 <= first < 1 else "correct it"
        kind = "whole numbers" if reading.white == 255 else "numbers"
        raise refused(where, f"pixels as {kind} from 0 to {reading.white:g}", f"{first:g}", remedy)
    return np.rint(scaled).astype(np.uint8)


def as_images(where: object, flat: np.ndarray, reading: Reading) -> np.ndarray:
    """Return rows of pixels, shape (n, pixels), as images: of the size asked for if it fits, otherwise square.

    Raises:
        FormatError: they are neither.
    """
    pixels = flat.shape[1]
    if reading.size and reading.size[0] * reading.size[1] == pixels:
        return flat.reshape(-1, *reading.size)
    side = round(pixels**0.5)
    if side * side != pixels or not pixels:
        expected = f"as many pixels as {times(reading.size)} images have" if reading.size else "the pixels of a square"
        remedy = "give height and width, such as --size 28x28, and no columns but the label and the pixels"
        raise refused(where, expected, f"{pixels:,} columns of pixels", remedy)
    return flat.reshape(-1, side, side)
