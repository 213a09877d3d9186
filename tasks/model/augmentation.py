"""Augmentation: every epoch fits each image shifted, turned and scaled a little in another way, and never mirrored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.datasets.training import TrainingConfig
from tasks.model import network
from tasks.model.scaling import Statistics


@dataclass(frozen=True)
class Augmentation:
    """How far images are moved at random, and what fills the pixels that nothing is moved to."""

    shape: tuple[int, int]
    """Height and width of the images."""
    shift: float
    """Pixels, at most, in either direction."""
    rotate: float
    """Degrees, at most, either way."""
    zoom: float
    """By which share an image grows or shrinks at most."""
    seed: int
    background: int
    """0-255."""

    def transforms(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Draw a transform for each row that an epoch takes as number `start` up to, not including, `stop`.

        They depend on nothing but the seed, the epoch and the number, so a training that is resumed draws the same.

        Returns:
            float32 of shape (stop - start, 8), as TensorFlow's `ImageProjectiveTransformV3` has them: the pixel at
            (x, y) is taken from (t0·x + t1·y + t2, t3·x + t4·y + t5), in pixels of the image, bilinearly.
        """
        # Philox counts: it makes four numbers from each count, and a row needs four.
        random = np.random.Philox(key=np.array([self.seed, epoch], np.uint64)).advance(start)
        drawn = 2 * np.random.Generator(random).random((stop - start, 4)) - 1
        down, right = self.shift * drawn[:, 0], self.shift * drawn[:, 1]
        angle, size = np.radians(self.rotate * drawn[:, 2]), 1 + self.zoom * drawn[:, 3]
        # Turned and scaled around its centre, then shifted; an image is computed from its pixels backwards.
        middle_y, middle_x = ((side - 1) / 2 for side in self.shape)
        cosine, sine = np.cos(angle) / size, np.sin(angle) / size
        x, y, zero = middle_x + right, middle_y + down, np.zeros(stop - start)
        rows = (
            (cosine, sine, middle_x - cosine * x - sine * y),
            (-sine, cosine, middle_y + sine * x - cosine * y),
            (zero, zero),
        )
        return np.stack([values for row in rows for values in row], axis=1).astype(np.float32)

    def apply(self, images: Any, transforms: Any) -> Any:
        """Return images, a tensor of uint8 of shape (n, pixels), transformed: float32 of the same shape, 0-255."""
        tf, shape = network.tensorflow(), self.shape
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(tf.reshape(images, [-1, *shape, 1]), tf.float32),
            transforms=transforms,
            output_shape=shape,
            fill_value=float(self.background),
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        )
        return tf.reshape(moved, [-1, shape[0] * shape[1]])


def chosen(
    config: TrainingConfig, shape: tuple[int, int], statistics: Statistics, pixel_range: tuple[int, int] | None
) -> Augmentation | None:
    """Return the augmentation that `config` asks for, or None.

    Args:
        shape: height and width of the images.
        statistics: of their pixels.
        pixel_range: their darkest and brightest pixel; None if not measured.
    """
    if not (config.shift or config.rotate or config.zoom):
        return None
    background = _background(statistics, shape, pixel_range or (0, 255))
    return Augmentation(shape, config.shift, config.rotate, config.zoom, config.seed, background)


def _background(statistics: Statistics, shape: tuple[int, int], pixel_range: tuple[int, int]) -> int:
    """Return the darkest or the brightest value of pixels, whichever is nearer to the mean along the edge of images."""
    edge = np.ones(shape, bool)
    edge[1:-1, 1:-1] = False
    mean = float(((statistics.mean.reshape(shape) + 1) * 127.5)[edge].mean())
    return min(pixel_range, key=lambda value: abs(value - mean))
