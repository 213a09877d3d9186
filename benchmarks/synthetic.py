"""Make synthetic IDX archives of any size: real handwritten digits, enlarged and deformed, the same for the same seed.

python -m benchmarks.synthetic FOLDER --train 60000 --test 10000

writes four gzip archives under their usual names, and the manifest `synthetic.toml` beside them, as `idxflow manifest`
writes it: `idxflow run --dataset-file FOLDER/synthetic.toml`.

Each image is one of the 1,797 digits of 8×8 pixels that scikit-learn carries (E. Alpaydin, C. Kaynak: *Optical
Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49), turned,
scaled, sheared, shifted, and changed in contrast and ink. Test images are made from other digits than training images.

Images are made in units of about a million pixels. A unit depends on nothing but the seed, the split and its own
number, so memory stays the same for any number of images, and the bytes do for any number of units at a time. An
enlargement is a matrix from 64 pixels to all, with whole numbers as entries: float32 adds them up exactly in any order.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.datasets.catalog import DEFAULT_FILES, MAX_SIDE
from storage.datasets.own_files import manifest_of
from storage.formats.idx import Header

NAME = "synthetic"
CLASSES = 10
SOURCE_SIDE = 8
"""Pixels on a side of the digits that scikit-learn carries."""
TEST_EACH = 5
"""Of so many digits, one is for test images, and the others for training images."""

_UNIT_PIXELS = 1 << 20
_SHAPES = 16
"""Random deformations in a unit."""
_STEPS = 32
"""Into how many parts the way from one pixel to the next is divided."""
_INK = 1 << 16
"""Random factors that the ink of all images is taken from."""
_PEAK = 16 * _STEPS**2
"""What the enlargement makes of the brightest pixel."""


@dataclass(frozen=True)
class Digits:
    """The digits that a split is made from."""

    images: np.ndarray
    """float32, shape (digits, 64), whole numbers from 0 to 16."""
    by_class: tuple[np.ndarray, ...]
    """Which of them belong to each class."""


def write(folder: Path, rows: dict[str, int], side: int = 28, seed: int = 1, units: int = 1) -> Path:
    """Write the archives and the manifest, and return the path of the manifest.

    Args:
        folder: made where it is missing.
        rows: how many images, by split: `train` and `test`, each at least 1.
        side: height and width of an image in pixels, 8 to 4,096.
        seed: other images for another one.
        units: how many units to make and compress at a time; the bytes are the same.
    """
    from threadpoolctl import threadpool_limits

    folder.mkdir(parents=True, exist_ok=True)
    # The products are small: where other programs use the processors too, threads wait for each other most of the time.
    with threadpool_limits(1, "blas"):
        for split, count in rows.items():
            _write_split(folder, split, units_of(split, count, side, seed), (count, side, side), units)
    manifest = folder / f"{NAME}.toml"
    manifest.write_text(manifest_of(folder, NAME), encoding="utf-8")
    return manifest


def units_of(split: str, rows: int, side: int = 28, seed: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images (uint8, shape (n, side, side)) and labels (uint8, shape (n,)) until there are `rows` of them."""
    digits = _digits(split)
    ink = np.random.default_rng([seed, 2]).uniform(0.8, 1.2, _INK + side**2).astype(np.float32)
    at_once = max(_SHAPES, _UNIT_PIXELS // side**2)
    for number, start in enumerate(range(0, rows, at_once)):
        random = np.random.default_rng([seed, split == "test", number])
        images, labels = _unit(random, digits, ink, (at_once, side))
        yield images[: rows - start], labels[: rows - start]


def _digits(split: str) -> Digits:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    mine = (np.arange(len(labels)) % TEST_EACH == 0) == (split == "test")
    of_split = labels[mine]
    return Digits(images[mine].astype(np.float32), tuple(np.flatnonzero(of_split == n) for n in range(CLASSES)))


def _unit(
    random: np.random.Generator, digits: Digits, ink: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    rows, side = size
    labels = random.permutation(np.arange(rows) + random.integers(CLASSES)) % CLASSES
    which = np.array([len(members) for members in digits.by_class])[labels]
    chosen = (random.random(rows) * which).astype(np.int64)
    sources = digits.images[[digits.by_class[label][n] for label, n in zip(labels, chosen, strict=True)]]
    gain = random.uniform(1.3, 2.1, (rows, 1)).astype(np.float32) * np.float32(255 / _PEAK)
    starts = random.integers(_INK, size=rows)
    pixels = np.empty((rows, side**2), np.float32)
    for number, matrix in enumerate(_enlargements(random, side)):
        pixels[number::_SHAPES] = sources[number::_SHAPES] @ matrix
    # Without the faint rim that the enlargement leaves: most pixels are 0, as in scans of handwriting.
    np.maximum(pixels - np.float32(0.25 * _PEAK), 0, out=pixels)
    pixels *= gain
    pixels *= np.lib.stride_tricks.sliding_window_view(ink, side**2)[starts]
    np.minimum(pixels, 255, out=pixels)
    return pixels.astype(np.uint8).reshape(rows, side, side), labels.astype(np.uint8)


def _enlargements(random: np.random.Generator, side: int) -> Iterator[np.ndarray]:
    """Yield random affine maps with bilinear interpolation, float32 of shape (64, side²), whole numbers."""
    middle = (np.arange(side) + 0.5) / side - 0.5
    down, right = (axis.ravel() for axis in np.meshgrid(middle, middle, indexing="ij"))
    target = np.arange(side**2)
    for _ in range(_SHAPES):
        angle, shear = random.uniform(-0.2, 0.2, 2)
        height, width = random.uniform(0.65, 0.8, 2)
        shift = random.uniform(-0.05, 0.05, 2)
        y, x = down - shift[0], right - shift[1]
        turned = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
        found = turned[0] / height, (turned[1] + shear * turned[0]) / width
        steps = [np.floor((at * SOURCE_SIDE + (SOURCE_SIDE - 1) / 2) * _STEPS).astype(np.int64) for at in found]
        matrix = np.zeros((SOURCE_SIDE**2, side**2), np.float32)
        for dy in (0, 1):
            for dx in (0, 1):
                row, column = steps[0] // _STEPS + dy, steps[1] // _STEPS + dx
                inside = (row >= 0) & (row < SOURCE_SIDE) & (column >= 0) & (column < SOURCE_SIDE)
                weight = _near(steps[0], dy) * _near(steps[1], dx)
                matrix[(row * SOURCE_SIDE + column)[inside], target[inside]] = weight[inside]
        yield matrix


def _near(steps: np.ndarray, neighbour: int) -> np.ndarray:
    """Return how much the pixel before (0) or after (1) a place counts, from 0 to `_STEPS`."""
    after = steps % _STEPS
    return after if neighbour else _STEPS - after


def _write_split(
    folder: Path, split: str, made: Iterator[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int, int], units: int
) -> None:
    with ExitStack() as stack:
        images = stack.enter_context(_Archive(folder / DEFAULT_FILES[f"{split}-images"], shape))
        labels = stack.enter_context(_Archive(folder / DEFAULT_FILES[f"{split}-labels"], shape[:1]))
        while block := [one for _, one in zip(range(units), made, strict=False)]:
            images.write(np.concatenate([pixels for pixels, _ in block]))
            labels.write(np.concatenate([classes for _, classes in block]))


class _Archive:
    """A gzip IDX file of uint8, written block by block, without a time in it."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._stream = path.open("wb")
        self._deflate = zlib.compressobj(1, wbits=31)
        self._stream.write(self._deflate.compress(Header(np.dtype(">u1"), shape).encode()))

    def write(self, block: np.ndarray) -> None:
        self._stream.write(self._deflate.compress(np.ascontiguousarray(block)))

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.write(self._deflate.flush())
        self._stream.close()


def main() -> None:
    """Write the archives and say where the manifest is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=60_000, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--side", type=int, default=28, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if min(asked.train, asked.test) < 1 or not SOURCE_SIDE <= asked.side <= MAX_SIDE:
        parser.error(f"expected at least 1 image in each split, of {SOURCE_SIDE} to {MAX_SIDE:,} pixels a side")
    print(write(asked.folder, {"train": asked.train, "test": asked.test}, asked.side, asked.seed))


if __name__ == "__main__":
    main()
