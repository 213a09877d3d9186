"""Give all images of a source one size, upright."""

from __future__ import annotations

import numpy as np

from storage.words import times
from tasks.adding.batches import Reading, refused
from tasks.adding.placing import placed

_SIDE = 64
"""The largest side that is proposed."""


class Sized:
    """Brings images to the size that was asked for; without one, all have to have the size of the first."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._first: tuple[tuple[int, ...], object] | None = None

    def image(self, where: object, pixels: np.ndarray) -> np.ndarray:
        """Return an image (uint8, shape (height, width)) in that size.

        Raises:
            FormatError: no size was asked for, and it has another than the first.
        """
        image: np.ndarray = self.images(where, pixels[np.newaxis])[0]
        return image

    def images(self, where: object, images: np.ndarray) -> np.ndarray:
        """Return images (uint8, shape (n, height, width)) in that size; see `image`."""
        if self._reading.transpose:
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        size, fit = self._reading.size, self._reading.fit
        if size:
            as_they_are = images.shape[1:] == size and fit != "mass"
            return images if as_they_are else np.stack([placed(image, size, fit) for image in images])
        self._first = self._first or (images.shape[1:], where)
        shape, first = self._first
        if images.shape[1:] != shape:
            raise refused(
                where,
                f"images of one size, {times(shape)} as in {first}",
                times(images.shape[1:]),
                f"choose a size for all: --size {min(shape[0], _SIDE)}x{min(shape[1], _SIDE)}",
            )
        return images
