"""Images in an entry of `probe`: examples of changed images, and named images that a model gets wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from storage.formats import arrays
from storage.records import Behaviour

MOST_WRONG = 12
"""The most named images with a picture."""


@dataclass(frozen=True)
class Images:
    """Images, uint8 of shape (n, height, width)."""

    before: np.ndarray
    """Test images, one for each example of each test, in order."""
    after: np.ndarray
    """The same, changed."""
    named: np.ndarray
    """The first named images that are wrong, in order."""


def write(record: Behaviour, images: Images) -> None:
    """Write the images into the entry of a record in the making."""
    record.file.unlink(missing_ok=True)
    arrays.write(record.file, vars(images))


def read(record: Behaviour) -> Images:
    """Return the images of a record.

    Raises:
        DamagedEntry: the file does not hold them.
    """
    examples = sum(len(test.examples) for test in record.tests)
    counts = {"before": examples, "after": examples, "named": min(MOST_WRONG, len(record.wrong))}
    shapes = {name: (np.uint8, (count, *record.image_shape)) for name, count in counts.items()}
    return Images(**arrays.read(record.file, shapes))
