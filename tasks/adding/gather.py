"""Gather all images of a source in a file, and what is known of each in memory: some 30 bytes an image."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.datasets.catalog import MAX_CLASSES, MAX_SIDE
from storage.words import counted, times
from tasks.adding.batches import Batch, Reading, Remarks, Source, refused

_DIGEST_BYTES = 16
_BYTES_AT_ONCE = 1 << 22
_DIGITS = 20
"""Longer labels are no numbers of classes."""


@dataclass(frozen=True)
class Gathered:
    """The images of a source, in its order."""

    pixels: Path
    """The bytes of all images."""
    shape: tuple[int, int]
    labels: np.ndarray
    """int32, shape (n,): places in `classes`."""
    classes: tuple[str, ...]
    """The labels of the source, sorted."""
    is_test: np.ndarray
    """Whether the source has it in its test split, bool of shape (n,)."""
    digests: np.ndarray
    """Shape (n,): equal for equal images."""
    groups: np.ndarray | None
    """int32, shape (n,): equal for images of one group."""
    darkest: int
    brightest: int
    ground: float
    """Mean of all border pixels."""

    @property
    def rows(self) -> int:
        return len(self.labels)

    @property
    def ties(self) -> list[np.ndarray]:
        """What keeps images on one side of the split: those with an equal value in one of these, shape (n,)."""
        return [self.digests, *([self.groups] if self.groups is not None else [])]

    def images(self, rows: np.ndarray) -> Iterable[np.ndarray]:
        """Yield the images of these rows, uint8 of shape (n, height, width), some at a time."""
        step = max(1, _BYTES_AT_ONCE // math.prod(self.shape))
        for start in range(0, len(rows), step):
            # Mapped anew, so that no more pages stay in memory than are needed.
            everything = np.memmap(self.pixels, np.uint8, "r", shape=(self.rows, *self.shape))
            yield np.asarray(everything[rows[start : start + step]])


def gathered(path: Path, source: Source, reading: Reading, file: Path, remarks: Remarks) -> Gathered:
    """Read a source, once, and write its pixels into `file`.

    Args:
        path: where the source is, for messages.

    Raises:
        FormatError: it has too many classes, images too large, or nothing at all.
    """
    gathering = _Gathering(path, source.has_names)
    with file.open("xb") as stream:
        for batch in source.batches:
            images = np.ascontiguousarray(255 - batch.images if reading.invert else batch.images)
            gathering.add(images, batch)
            stream.write(images.data)
    if remarks.skipped and not gathering.rows:
        left_out = f"{counted(len(remarks.skipped), 'picture')}, none of which can be read: {remarks.skipped[0]}"
        raise refused(path, "at least one image", left_out, "give a source with images")
    return gathering.result(file)


def digest_of(image: np.ndarray) -> bytes:
    """Return the digest of an image, uint8 and contiguous, as `Gathered.digests` has it."""
    return hashlib.blake2b(image.data, digest_size=_DIGEST_BYTES).digest()


class _Gathering:
    """What is known so far."""

    def __init__(self, path: Path, has_names: bool) -> None:
        self._path, self._has_names = path, has_names
        self._shape: tuple[int, ...] | None = None
        self._codes: dict[str, int] = {}
        self._group_codes: dict[str, int] = {}
        self._labels: list[np.ndarray] = []
        self._tests: list[np.ndarray] = []
        self._digests: list[bytes] = []
        self._groups: list[np.ndarray] = []
        self._darkest, self._brightest, self._border_sum, self._border_count = 255, 0, 0, 0

    @property
    def rows(self) -> int:
        return len(self._digests)

    def add(self, images: np.ndarray, batch: Batch) -> None:
        """Note some images."""
        self._shape = self._shape or images.shape[1:]
        if max(images.shape[1:]) > MAX_SIDE or 0 in images.shape:
            raise refused(
                self._path,
                f"images of 1 to {MAX_SIDE:,} pixels a side",
                times(images.shape[1:]),
                "scale them, such as with --size 28x28",
            )
        self._labels.append(np.array([self._code(label) for label in batch.labels], np.int32))
        self._tests.append(np.full(len(images), batch.split == "test"))
        self._digests += map(digest_of, images)
        if batch.groups is not None:
            codes = [self._group_codes.setdefault(group, len(self._group_codes)) for group in batch.groups]
            self._groups.append(np.array(codes, np.int32))
        self._darkest, self._brightest = min(self._darkest, int(images.min())), max(self._brightest, int(images.max()))
        border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
        self._border_sum, self._border_count = self._border_sum + int(border.sum()), self._border_count + border.size

    def _code(self, label: str) -> int:
        code = self._codes.setdefault(label, len(self._codes))
        if code == MAX_CLASSES:
            raise refused(
                self._path,
                f"at most {MAX_CLASSES} classes",
                f"more labels, such as {', '.join(map(repr, list(self._codes)[-3:]))}",
                "give images of fewer classes"
                if self._has_names
                else "give labels that are classes, or the column that has them: --label-column",
            )
        return code

    def result(self, file: Path) -> Gathered:
        """Return everything together."""
        if not self._shape:
            raise refused(self._path, "at least one image", "none", "give a source with images")
        classes, code = self._sorted()
        height, width = self._shape
        return Gathered(
            file,
            (height, width),
            code[np.concatenate(self._labels)],
            classes,
            np.concatenate(self._tests),
            np.frombuffer(b"".join(self._digests), f"V{_DIGEST_BYTES}"),
            np.concatenate(self._groups) if self._groups else None,
            self._darkest,
            self._brightest,
            self._border_sum / self._border_count,
        )

    def _sorted(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the labels in order, numbers by their value, and the place of each code."""
        labels = list(self._codes)
        numbers = [label for label in labels if is_number(label)]
        if numbers and len(numbers) < len(labels) and not self._has_names:
            text = next(label for label in labels if label not in numbers)
            raise refused(
                self._path,
                "labels that are all numbers or all texts",
                f"{numbers[0]!r} and {text!r}",
                "correct the labels, or give the column that has them: --label-column",
            )
        ordered = sorted(labels, key=lambda label: (0, int(label), "") if is_number(label) else (1, 0, label))
        places = np.empty(len(labels), np.int32)
        places[[self._codes[label] for label in ordered]] = np.arange(len(labels))
        return tuple(ordered), places


def is_number(label: str) -> bool:
    """Return whether a label is a whole number, rather than a name."""
    return label.removeprefix("-").isdecimal() and label.isascii() and len(label) <= _DIGITS
