"""Bring images to one size: padded, centred by mass as MNIST's are, or stretched."""

from __future__ import annotations

from typing import Literal

import numpy as np

Fit = Literal["pad", "mass", "stretch"]
BOX = 20 / 28
"""Share of the side that MNIST's digits fill (http://yann.lecun.com/exdb/mnist/): a box of 20 pixels of 28."""
_INK = 32
"""By how much ink differs from the ground, at least."""


def placed(image: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Return an image (uint8, shape (height, width)) in another size.

    `pad` scales it to fit and fills up with the ground, the median of its border. `mass` crops to the ink, scales that
    into a box of 20/28 of the size, and puts its centre of mass into the middle. `stretch` changes proportions.
    """
    if fit == "stretch":
        return resized(image, size)
    ground = int(np.median(_border(image)))
    if fit == "pad":
        return image if image.shape == size else _padded(image, size, ground)
    return _centred(image, size, ground)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image in another size, by Lanczos's filter over all source pixels of a target pixel (antialiasing)."""
    if image.shape == size:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _border(image: np.ndarray) -> np.ndarray:
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def _scaled(image: np.ndarray, box: tuple[float, float]) -> np.ndarray:
    """Return an image scaled to fit into a box, with its proportions."""
    share = min(box[0] / image.shape[0], box[1] / image.shape[1])
    return resized(image, (max(1, round(image.shape[0] * share)), max(1, round(image.shape[1] * share))))


def _padded(image: np.ndarray, size: tuple[int, int], ground: int) -> np.ndarray:
    small = _scaled(image, size)
    return _put(small, size, ((size[0] - small.shape[0]) // 2, (size[1] - small.shape[1]) // 2), ground)


def _centred(image: np.ndarray, size: tuple[int, int], ground: int) -> np.ndarray:
    ink = np.abs(image.astype(np.int16) - ground) >= _INK
    if not ink.any():
        return _padded(image, size, ground)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = _scaled(cut, (size[0] * BOX, size[1] * BOX))
    mass = np.abs(small.astype(np.float64) - ground)
    middle = [float((np.arange(n) * mass.sum(axis=1 - axis)).sum() / mass.sum()) for axis, n in enumerate(small.shape)]
    corner = [
        min(max(round((side - 1) / 2 - centre), 0), side - n)
        for side, centre, n in zip(size, middle, small.shape, strict=True)
    ]
    return _put(small, size, (corner[0], corner[1]), ground)


def _put(small: np.ndarray, size: tuple[int, int], corner: tuple[int, int], ground: int) -> np.ndarray:
    paper = np.full(size, ground, np.uint8)
    paper[corner[0] : corner[0] + small.shape[0], corner[1] : corner[1] + small.shape[1]] = small
    return paper
