"""Make an image like those of a training split of a drawing or a photograph of one: size, place and colours of its ink.

MNIST's digits were scaled into a box of 20 x 20 pixels, keeping their proportions, and put into 28 x 28 pixels with the
centre of mass of their ink in the middle (Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST database"). Box and
centre are measured here, so it works for other drawings, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from storage.errors import FormatError

MEASURED = 2000
"""Images that are measured, at most."""
_INK = 0.2
"""Share of the darkest ink that counts as ink; below are noise and the edges of strokes."""
_PAPER = 0.1
"""How far paper may be from its usual value, as a share of the pixel range."""
_LEAST_CONTRAST = 24
"""Pixel values between paper and ink below which a picture is empty."""


@dataclass(frozen=True)
class Usual:
    """What drawings of a training split look like."""

    image_shape: tuple[int, int]
    """Height and width in pixels."""
    paper: float
    """Pixel value of what is not drawn."""
    ink: float
    """Pixel value of the strongest strokes."""
    box: int
    """The longer side of what is drawn, in pixels."""
    centre: tuple[float, float]
    """Row and column of the centre of mass of the ink, from 0, between pixels."""


@dataclass(frozen=True)
class Fitted:
    """A drawing as an image of the training split."""

    image: np.ndarray
    """uint8 of shape (height, width)."""
    inverted: bool
    """Whether its paper was bright where that of the training images is dark, or the other way round."""


def usual(images: np.ndarray, pixel_range: tuple[int, int]) -> Usual | None:
    """Measure drawings; None if the images are not ink on even paper, or too few.

    Args:
        images: uint8 of shape (n, height, width); only the first `MEASURED` are used.
        pixel_range: the values of black and white in them.
    """
    images = images[:MEASURED].astype(np.float64)
    if not len(images) or min(images.shape[1:]) < 3:
        return None
    low, high = pixel_range
    edges = np.concatenate([_edge(image) for image in images])
    paper = float(np.median(edges))
    if (np.abs(edges - paper) <= _PAPER * (high - low)).mean() < 0.5:
        return None
    ink = float(high if paper < (low + high) / 2 else low)
    shares = np.clip((images - paper) / (ink - paper), 0, 1)
    measured = [(_box(share), _centre(share)) for share in shares if (share > _INK).any()]
    if not measured:
        return None
    sides = [max(bottom - top, right - left) for (top, bottom, left, right), _ in measured]
    row, column = np.mean([centre for _, centre in measured], axis=0)
    return Usual(images.shape[1:], paper, ink, round(float(np.median(sides))), (float(row), float(column)))


def fitted(picture: np.ndarray, like: Usual) -> Fitted:
    """Cut out what is drawn, scale it and place it as in the training images, with their paper and ink.

    Args:
        picture: uint8 of shape (height, width), ink on paper or the other way round.

    Raises:
        FormatError: nothing is drawn on it.
    """
    share, dark_ink = _shares(picture)
    top, bottom, left, right = _box(share)
    scaled = _scaled(share[top:bottom, left:right], like)
    placed = _placed(scaled, like)
    image = np.rint(like.paper + placed * (like.ink - like.paper)).astype(np.uint8)
    return Fitted(image, dark_ink != (like.ink < like.paper))


def _shares(picture: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return how much ink each pixel has, 0-1, and whether the ink is darker than the paper."""
    pixels = picture.astype(np.float64)
    paper = float(np.median(_edge(pixels)))
    below, above = paper - pixels.min(), pixels.max() - paper
    if max(below, above) < _LEAST_CONTRAST:
        raise FormatError(
            f"expected something drawn; found a picture of nearly one grey, {pixels.min():.0f} to {pixels.max():.0f} "
            "of 255; draw with more contrast"
        )
    share = (paper - pixels) / below if below >= above else (pixels - paper) / above
    return np.clip(share, 0, 1), bool(below >= above)


def _scaled(share: np.ndarray, like: Usual) -> np.ndarray:
    """Return what is drawn with its longer side as usual, but within the image."""
    from PIL import Image

    height, width = share.shape
    rows, columns = like.image_shape
    factor = min(like.box / max(height, width), rows / height, columns / width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    drawn = Image.fromarray(share.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    scaled = np.clip(np.asarray(drawn, np.float64), 0, 1)
    # Thin strokes turn grey as they shrink; those of the training images have full ink.
    strong: np.ndarray = scaled / scaled.max()
    return strong


def _placed(scaled: np.ndarray, like: Usual) -> np.ndarray:
    """Return the image with the centre of mass where it usually is, to a pixel, as far as nothing is cut off."""
    image = np.zeros(like.image_shape)
    offsets = [
        int(np.clip(round(usual_place - place), 0, room - side))
        for usual_place, place, room, side in zip(
            like.centre, _centre(scaled), like.image_shape, scaled.shape, strict=True
        )
    ]
    top, left = offsets
    image[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return image


def _edge(image: np.ndarray) -> np.ndarray:
    """Return the outermost pixels."""
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


def _box(share: np.ndarray) -> tuple[int, int, int, int]:
    """Return the rows and columns that have ink: first and one past the last of each."""
    rows, columns = (np.flatnonzero((share > _INK).any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _centre(share: np.ndarray) -> tuple[float, float]:
    """Return row and column of the centre of mass, where the first pixel's middle is 0.5."""
    mass = share.sum()
    height, width = share.shape
    return (
        float(share.sum(axis=1) @ (np.arange(height) + 0.5) / mass),
        float(share.sum(axis=0) @ (np.arange(width) + 0.5) / mass),
    )
