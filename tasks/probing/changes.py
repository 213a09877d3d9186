"""Change test images a little: shift, rotate, noise, brightness. NumPy alone; the same input gives the same output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from storage.datasets.manifest import Behaviour

SEED = 0
"""Of the noise: every model is tested with the same."""

Change = Callable[[np.ndarray, Sequence[int]], np.ndarray]
"""Takes images, uint8 of shape (n, height, width), and their rows in the split; returns them changed, in this form."""


@dataclass(frozen=True)
class Way:
    """One way of changing images: a variant of a test."""

    test: str
    variant: str
    change: Change


def ways(settings: Behaviour, background: int) -> Iterator[Way]:
    """Yield the ways of changing images that a manifest asks for, in the order of its tests.

    Args:
        background: 0-255, for pixels that nothing is moved to.
    """
    if settings.shift:
        by = settings.shift.pixels
        steps = {"left": (0, -by), "right": (0, by), "up": (-by, 0), "down": (by, 0)}
        for name, (down, right) in steps.items():
            yield _way("shift", name, shifted, down=down, right=right, background=background)
    if settings.rotate:
        for name, sign in (("clockwise", 1), ("anticlockwise", -1)):
            yield _way("rotate", name, rotated, degrees=sign * settings.rotate.degrees, background=background)
    if settings.noise:
        yield Way("noise", "noise", partial(noisy, deviation=settings.noise.deviation))
    if settings.brightness:
        for name, sign in (("brighter", 1), ("darker", -1)):
            yield _way("brightness", name, multiplied, factor=1 + sign * settings.brightness.percent / 100)


def _way(test: str, variant: str, change: Callable[..., np.ndarray], **how: Any) -> Way:
    return Way(test, variant, lambda images, rows: change(images, **how))


def shifted(images: np.ndarray, down: int, right: int, background: int) -> np.ndarray:
    """Return images, uint8 of shape (n, height, width), moved by whole pixels."""
    moved = np.full_like(images, background)
    height, width = images.shape[1:]
    if abs(down) < height and abs(right) < width:
        to_rows, from_rows = _overlap(height, down)
        to_columns, from_columns = _overlap(width, right)
        moved[:, to_rows, to_columns] = images[:, from_rows, from_columns]
    return moved


def _overlap(side: int, by: int) -> tuple[slice, slice]:
    """Return where pixels of a side go to, and where they come from."""
    return slice(max(by, 0), side + min(by, 0)), slice(max(-by, 0), side - max(by, 0))


def rotated(images: np.ndarray, degrees: float, background: int) -> np.ndarray:
    """Return images, uint8 of shape (n, height, width), turned clockwise around their centre, bilinearly.

    As in augmentation, pixels beyond the image have the value of the background.
    """
    height, width = images.shape[1:]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    down, right = np.arange(height)[:, np.newaxis] - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    # An image is computed from its pixels backwards: each is taken from where it was.
    top, below = _between((height - 1) / 2 - sine * right + cosine * down, height)
    left, beside = _between((width - 1) / 2 + cosine * right + sine * down, width)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=background)

    def row(offset: int) -> np.ndarray:
        first, second = padded[:, top + offset, left], padded[:, top + offset, left + 1]
        between: np.ndarray = first * (1 - beside) + second * beside
        return between

    return _pixels(row(0) * (1 - below) + row(1) * below)


def _between(place: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel of a padded side before each place, and how far beyond it the place is, in [0, 1]."""
    inside = np.clip(place, -1, side)
    before = np.minimum(np.floor(inside), side - 1)
    return before.astype(np.intp) + 1, inside - before


def noisy(images: np.ndarray, rows: Sequence[int], deviation: float) -> np.ndarray:
    """Return images, uint8 of shape (n, height, width), with Gaussian noise that depends on their rows alone.

    Args:
        rows: of the images in the split.
        deviation: standard deviation, of pixels of 0-255.
    """
    keys = (np.array([SEED, row], np.uint64) for row in rows)
    noise = [np.random.Generator(np.random.Philox(key=key)).standard_normal(images.shape[1:]) for key in keys]
    return _pixels(images + deviation * np.stack(noise))


def multiplied(images: np.ndarray, factor: float) -> np.ndarray:
    """Return images, uint8, with each pixel times a factor of at least 0."""
    return _pixels(images * factor)


def _pixels(values: np.ndarray) -> np.ndarray:
    """Return values as pixels: whole numbers, 0-255."""
    pixels: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels
