"""What every reader of a source yields, and what it is asked for."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from storage.datasets.catalog import one_line
from storage.errors import FormatError
from storage.records import SplitName
from storage.words import counted, times
from tasks.adding.placing import Fit

BATCH_ROWS = 1024
"""The most images in memory at a time."""
_BATCH_BYTES = 1 << 26
"""The most bytes of images in memory at a time, unless one has more."""
_SPLITS: Mapping[str, SplitName] = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_VALIDATION = frozenset({"valid", "val", "validation", "dev"})
_VALIDATING = "validation"
_NAMES_SHOWN = 8
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
        self._say, self._kinds = say, set[str]()
        self.lines: list[str] = []
        self.skipped: list[str] = []
        """A sentence for each picture that cannot be read."""

    def add(self, line: str, kind: str = "") -> None:
        """Note a remark, once; of remarks of a kind, the first one."""
        if (kind or line) not in self._kinds:
            self._kinds.add(kind or line)
            self.lines.append(line)
            self._say(line)

    def add_skipped(self) -> None:
        """Note how many pictures were left out, if any."""
        if self.skipped:
            self.add(f"{counted(len(self.skipped), 'picture')} that cannot be read left out")


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
    uses: frozenset[str] = frozenset()
    """The fields of `Reading`, of those that only some kinds of sources use, that change what is read."""


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


def rows_at_once(row_bytes: int) -> int:
    """Return how many images of so many bytes to have in memory at a time, at least one."""
    return max(1, min(BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))


def is_full(error: BaseException) -> bool:
    """Return whether an error is that of a disk where nothing more can be written."""
    return isinstance(error, OSError) and error.errno in _FULL


def raise_if_full(error: BaseException) -> None:
    """Raise an error again if it is that of a full disk: it says nothing about the source that is unpacked to it."""
    if is_full(error):
        raise error


def check_room(folder: Path, size: int) -> None:
    """Check that a disk has room for a file.

    Raises:
        OSError: it has not.
    """
    if size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def refused(where: object, expected: str, actual: str, remedy: str) -> FormatError:
    """Return the error for a source that cannot be used."""
    return FormatError(f"{where}: expected {expected}; found {one_line(actual)}; {remedy}")


def shown_of(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return one_line(", ".join(names[:_NAMES_SHOWN])) + more


def present(where: object, texts: list[str]) -> list[str]:
    """Return texts of labels or groups, none of which is empty.

    Raises:
        FormatError: one is.
    """
    if missing := texts.count(""):
        raise refused(
            where, "a label or group in each row", f"{counted(missing, 'row')} without one", "complete the rows"
        )
    return texts


def splits_of(paths: Sequence[PurePath], remarks: Remarks) -> list[SplitName | None]:
    """Return the split that each file or folder is of, by its name or by those of the folders around it.

    None if no name says. The paths are relative to the source; what is nearest to the file counts.
    A validation split is the test split if there is no other; otherwise it is part of the training split, of which a
    run holds out rows itself.
    """
    said = [next(filter(None, map(_said, reversed(path.parts))), None) for path in paths]
    instead: SplitName = "train" if "test" in said else "test"
    splits: list[SplitName | None] = []
    for path, kind in zip(paths, said, strict=True):
        if kind == _VALIDATING:
            remarks.add(f"{path} is part of the {instead} split")
            splits.append(instead)
        else:
            splits.append(_SPLITS[kind] if kind else None)
    return splits


def _said(name: str) -> str | None:
    """Return the split that a name says."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    split = next((split for word, split in _SPLITS.items() if word in words), None)
    return split or (_VALIDATING if words & _VALIDATION else None)


def column(where: object, names: list[str], wanted: str) -> int:
    """Return the place of a column that the user named, or numbered from 0.

    Raises:
        FormatError: there is no such column.
    """
    if wanted in names:
        return names.index(wanted)
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    shown = f"{len(names):,}: {shown_of(names)}"
    raise refused(where, f"a column {wanted!r}", shown, "give the name of one of these, or its number from 0")


def as_pixels(where: object, values: np.ndarray, reading: Reading, first: int) -> np.ndarray:
    """Return pixel values as uint8 of the same shape.

    Args:
        first: number of the first of these images in the source, for messages.

    Raises:
        FormatError: a value is not a pixel.
    """
    if values.dtype == np.uint8 and reading.white == 255:
        return values
    if values.dtype.kind not in "uifb":
        raise refused(where, "numbers as pixels", values.dtype.name, "give another column, or another file")
    if values.dtype.kind == "b" and reading.white != 1:
        raise refused(where, "numbers as pixels", "true and false", "say that true is white: --white 1")
    scaled = values.astype(np.float64) * (255 / reading.white)
    bad = ~((scaled >= 0) & (scaled <= 255))
    if reading.white == 255:
        bad |= scaled != np.rint(scaled)
    if bad.any():
        value, row = values[bad].flat[0], first + int(np.argwhere(bad)[0][0])
        remedy = "say which value is white, such as --white 1" if 0 <= value < 1 else "correct it"
        expected = f"pixels as {'whole numbers' if reading.white == 255 else 'numbers'} from 0 to {reading.white:g}"
        raise refused(where, expected, f"{value:g} in image {row:,} (counted from 0)", remedy)
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
