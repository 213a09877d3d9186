"""Use a registered model: `load_champion("mnist").predict(images)`.

The model is read from the store by its arrays, each file verified, and gives exactly the numbers by which it was
judged. The catalog is not needed: classes and image size are those of the registered version.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from storage.datasets import catalog
from storage.datasets.manifest import Limits
from storage.errors import ConfigError, DamagedEntry
from storage.files import write_bytes
from storage.opening import open_store
from storage.records import TrainedModel
from storage.registry import Registry, Version
from storage.store import Store
from storage.words import meant, versions_to_give
from tasks.model import scaling
from tasks.model.classifier import Classifier, softmax

INVERTED = -0.25
"""At or below this cosine, around mid-grey, an image is the inverse of the mean training image (`look_inverted`)."""
LEAST_CONTRAST = 0.1
"""Contrast of the mean training image around mid-grey, as a share of the pixel range, below which it tells nothing."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model for n images."""

    version: int
    """Number of the model in the registry."""
    label: np.ndarray
    """Class index, uint8 of shape (n,)."""
    name: tuple[str, ...]
    """Class name of each image."""
    probability: np.ndarray
    """Probability of the predicted class, float32 of shape (n,), in (0, 1]."""
    probabilities: np.ndarray
    """Probability of each class, float32 of shape (n, classes); each row sums to 1."""

    def __len__(self) -> int:
        return len(self.label)


class Model:
    """A verified version of the registry, ready to predict.

    Raises:
        DamagedEntry: a file of the model is not what its record says.
    """

    def __init__(self, store: Store, version: Version) -> None:
        self.store = store
        self.version = version
        try:
            self.record = store.get(version.dataset, "train", version.model, TrainedModel)
            self.classifier = Classifier(self.record)
        except DamagedEntry as error:
            raise DamagedEntry(f"v{version.number} of {version.dataset} is damaged: {error}; train it again") from error
        _check_version(version, self.record, self.classifier)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.version.classes

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.version.image_shape

    @cached_property
    def mean_image(self) -> np.ndarray:
        """The mean of the training images, float64 of shape (height, width), 0-255."""
        statistics = scaling.read(self.record.normalization, self.classifier.architecture.inputs)
        mean: np.ndarray = ((statistics.mean + 1) * 127.5).reshape(self.image_shape)
        return mean

    @property
    def pixel_range(self) -> tuple[int, int]:
        """The values of black and white in the training data, such as 0 and 255: `pixel_range`."""
        return pixel_range(self.record)

    def predict(self, images: np.ndarray) -> Predictions:
        """Classify raw images.

        Args:
            images: uint8, 0-255, of shape (n, height, width), or (height, width) for one.

        Raises:
            ConfigError: another type, or another size than the model was trained on.
        """
        images = np.asarray(images)
        rows = images[np.newaxis] if images.ndim == 2 else images
        if rows.dtype != np.uint8 or rows.ndim != 3 or rows.shape[1:] != self.image_shape:
            height, width = self.image_shape
            raise ConfigError(
                f"expected images as uint8 of shape (n, {height}, {width}), or ({height}, {width}) for one image, like "
                f"those that v{self.version.number} of {self.version.dataset} was trained on; "
                f"found {images.dtype} of shape {images.shape}; "
                "convert them, in NumPy with .astype(np.uint8) and .reshape"
            )
        logits = self.classifier.logits(rows)
        # From the logits, as when the model was judged: rounding may make two probabilities equal.
        label = logits.argmax(axis=1).astype(np.uint8)
        probabilities = softmax(logits)
        return Predictions(
            version=self.version.number,
            label=label,
            name=tuple(self.classes[index] for index in label),
            probability=probabilities[np.arange(len(label)), label],
            probabilities=probabilities,
        )

    def looks_inverted(self, images: np.ndarray) -> np.ndarray:
        """Tell which images are bright where the training images are dark: `look_inverted`."""
        return look_inverted(images, self.mean_image, self.pixel_range)


def pixel_range(record: TrainedModel | None) -> tuple[int, int]:
    """Return the values of black and white in the training data, such as 0 and 255.

    By the rule of the data checks (`storage.datasets.manifest.Limits`): if the training pixels come nowhere near 0 or
    255, their own minimum or maximum. Models of earlier versions have no record of it: 0 and 255.

    Args:
        record: None if it is no longer in the store.
    """
    darkest, brightest = (record and record.pixel_range) or (0, 255)
    usual = Limits()
    return 0 if darkest <= usual.max_pixel_min else darkest, 255 if brightest >= usual.min_pixel_max else brightest


def look_inverted(images: np.ndarray, mean_image: np.ndarray, pixel_range: tuple[int, int]) -> np.ndarray:
    """Tell which images are bright where the training images are dark.

    Uses the sign of the cosine between an image and the mean training image, both around mid-grey: inverting an image
    changes nothing but that sign.

    Args:
        images: uint8 of shape (n, height, width).
        mean_image: of the training images, shape (height, width), 0-255.
        pixel_range: the values of black and white in the training images.

    Returns:
        bool of shape (n,); False for images of one value, and for all images if the mean training image is mid-grey.
    """
    middle = sum(pixel_range) / 2
    usual = mean_image.reshape(-1) - middle
    if np.sqrt(np.square(usual).mean()) < LEAST_CONTRAST * np.ptp(pixel_range):
        return np.zeros(len(images), bool)
    pixels = images.reshape(len(images), -1) - middle
    lengths = np.linalg.norm(pixels, axis=1) * np.linalg.norm(usual)
    inverted: np.ndarray = (pixels @ usual <= INVERTED * lengths) & (np.ptp(pixels, axis=1) > 0)
    return inverted


@dataclass(frozen=True)
class Row:
    """One classified image: a row of `write_parquet`."""

    file: str
    row: int
    """Position within its file, from 0."""
    label: int
    name: str
    probability: float
    version: int


def load_champion(
    dataset: str, store: str | Path | Store | None = None, version: int | str | Version | None = None
) -> Model:
    """Load the champion of `dataset`, or the given version.

    Args:
        store: the store or its folder; default: `IDXFLOW_STORE`, otherwise `store` next to the source code.
        version: `champion`, a number such as 7 or "v7", or what `find_version` returned.

    Raises:
        ConfigError: `dataset` is not a valid name, or there is no champion yet, or no such version.
        StoreError: `gc` has removed the model of this version.
        DamagedEntry: a file of the model is not what its record says.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    record = version if isinstance(version, Version) else find_version(opened, dataset, version)
    return Model(opened, record)


def find_version(store: Store, dataset: str, version: int | str | None = None) -> Version:
    """Return the record of the champion or of a version, within milliseconds; arguments as for `load_champion`."""
    if not dataset or Path(dataset).name != dataset or not dataset.isprintable():
        raise ConfigError(
            f"expected the name of a data set, as in `idxflow run NAME`; found {dataset!r}; "
            f"`{store.command('status')}` lists the names"
        )
    registry = Registry(store, dataset)
    if version not in (None, "champion"):
        number, numbers = _number(version), registry.numbers()
        if number not in numbers:
            remedy = versions_to_give(numbers) if numbers else f"`{store.command('run')}` makes the first"
            raise ConfigError(f"expected a version of {dataset}; found v{number}; {remedy}")
        record = registry.version(number)
        registry.check_kept(record)
        return record
    champion = registry.champion()
    if champion is None:
        run = f"run {dataset}" if dataset in catalog.names() else "run --dataset-file FILE"
        raise ConfigError(
            f"expected a champion of {dataset} in {store.address}; found none yet{meant(dataset, store.datasets())}; "
            f"run `{store.command(run)}` first, or name another store"
        )
    return champion


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write `rows` atomically and durably, with the columns file, row, label, class, probability and version.

    Raises:
        ConfigError: `path` cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "file": pa.array([row.file for row in rows], pa.string()),
        "row": pa.array([row.row for row in rows], pa.int64()),
        "label": pa.array([row.label for row in rows], pa.uint8()),
        "class": pa.array([row.name for row in rows], pa.string()),
        "probability": pa.array([row.probability for row in rows], pa.float32()),
        "version": pa.array([row.version for row in rows], pa.int32()),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd", write_page_checksum=True)
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise ConfigError(f"expected a file that can be written at {path}; {error.strerror}; choose another") from error


def _number(version: int | str | None) -> int:
    text = str(version).removeprefix("v")
    if not text.isascii() or not text.isdigit():
        raise ConfigError(
            f"expected a version as `champion` or a number such as 7; found {version!r}; "
            "`idxflow registry history DATASET` lists them"
        )
    return int(text)


def _check_version(version: Version, record: TrainedModel, classifier: Classifier) -> None:
    height, width = version.image_shape
    expected = (version.weights_digest, height * width, len(version.classes))
    actual = (record.weights_digest, classifier.architecture.inputs, classifier.architecture.classes)
    if actual != expected:
        raise DamagedEntry(
            f"v{version.number} of {version.dataset}: expected weights {expected[0][:12]}… for {expected[1]:,} pixels "
            f"and {expected[2]} classes; found {actual[0][:12]}… for {actual[1]:,} and {actual[2]}; "
            "restore its record in the registry from a backup"
        )
