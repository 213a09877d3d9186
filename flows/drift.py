"""Compare new images with what a champion was trained on: what `idxflow drift` and the flow `monitor` do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows import datasets
from flows.dataset_in_store import DatasetInStore
from storage import prediction_log
from storage.datasets import catalog
from storage.errors import ConfigError
from storage.records import Evaluation
from storage.registry import Version
from tasks.drifting import champion, reading
from tasks.drifting.compare import Answers, Comparison, Reference, compare
from tasks.drifting.reading import Naming
from tasks.drifting.sample import Sample, draw
from tasks.report.drift_page import DriftPictures, pictures_of
from tasks.report.sanitize import presentable
from tasks.serving.image_files import ImageOptions
from tasks.serving.predict import Model

if TYPE_CHECKING:
    from storage.datasets.manifest import Drift


LOG = Path("log")
"""The source that stands for the images that `idxflow serve --log-images` has kept."""


@dataclass(frozen=True)
class Asked:
    """Which images to compare, and how to read them."""

    source: Path
    """A file, a folder, or `LOG`."""
    labels: Path | None = None
    """A file of their labels, in IDX."""
    dataset_file: Path | None = None
    """The manifest with the limits; None: that of the data set."""
    resize: bool = False
    scale: bool = False
    invert: bool = False


@dataclass(frozen=True)
class Look:
    """One look at new images."""

    version: Version
    """The champion."""
    source: Path
    comparison: Comparison
    sample: Sample
    answers: Answers
    old: Reference
    files: tuple[str, ...]
    """The name of each image's file, if each has its own and no folder for its class."""

    @cached_property
    def sentence(self) -> str:
        """The answer."""
        return self.comparison.sentence(f"v{self.version.number} of {self.version.dataset}")

    def values(self) -> dict[str, Any]:
        """Return the look as JSON values."""
        return {
            "dataset": self.version.dataset,
            "version": self.version.number,
            # Names of files can be any bytes; the ledger and Prefect take UTF-8.
            "from": presentable(str(self.source if self.source == LOG else self.source.absolute())),
            "sentence": self.sentence,
            **self.comparison.values(),
            "most": [self.shown(place, newness) for place, newness in self.comparison.most],
        }

    def pictures(self) -> DriftPictures:
        """Return the images of the page."""
        places = [place for place, _ in self.comparison.most]
        return pictures_of(self.sample.images[places], self.old.sample.images, self.sample.images)

    def shown(self, place: int, newness: float) -> dict[str, Any]:
        """Return what is known of one image of the sample: JSON values."""
        row = int(self.sample.rows[place])
        return {
            "row": row,
            "file": presentable(self.files[row]) if row < len(self.files) else None,
            "newness": newness,
            "predicted": self.version.classes[int(self.answers.predicted[place])],
            "probability": float(self.answers.confidence[place]),
        }


def look(data: DatasetInStore, asked: Asked, say: Callable[[str], None]) -> Look:
    """Compare images with those that the champion of a data set was trained on.

    Args:
        say: called with each remark on how the images were read.

    Raises:
        ConfigError: there is no champion, its training data is gone, or there are no images.
        FormatError: the images cannot be used, or are too few.
        DamagedEntry: a file of the champion is damaged.
    """
    version = data.champion()
    limits = limits_of(data, asked.dataset_file)
    record, train = champion.trained_on(data.registry, version)
    model = Model(data.store, version)
    options = ImageOptions(model.image_shape, model.pixel_range, asked.resize, asked.scale, asked.invert)
    naming = Naming(version.classes, record.facts.labels if record.facts else ())
    if asked.source == LOG and not asked.labels:
        new = reading.NewImages(_logged(data, model.image_shape))
        where = "the log of predictions, of which `idxflow serve --log-images` keeps the images"
    else:
        new, where = reading.new_images(asked.source, asked.labels, options, naming, say), str(asked.source)
    sample = draw(new.blocks)
    reading.check_enough(sample.total, limits.min_images, where)
    evaluation = data.store.get(data.name, "evaluate", version.evaluation, Evaluation)
    old = champion.reference_of(version, train, evaluation)
    answers = answers_of(model, sample.images)
    return Look(version, asked.source, compare(old, sample, answers, limits), sample, answers, old, tuple(new.files))


def _logged(data: DatasetInStore, shape: tuple[int, int]) -> Iterator[tuple[np.ndarray, None]]:
    """Yield the images of the log that have the size of the champion's, day by day."""
    for day in prediction_log.days(data.store, data.name):
        columns = (*prediction_log.COLUMNS, *prediction_log.IMAGE_COLUMNS)
        images = prediction_log.images(prediction_log.read(data.store, data.name, columns, day, day), shape)
        if len(images):
            yield images, None


def answers_of(model: Model, images: np.ndarray) -> Answers:
    """Return the answers of a model for images, uint8 of shape (n, height, width)."""
    found = model.predict(images)
    return Answers(found.label.astype(np.int64), found.probability)


def limits_of(data: DatasetInStore, file: Path | None) -> Drift:
    """Return the limits that the manifest of a data set has, from a file, the catalog, or where `dataset add` puts it.

    Raises:
        ConfigError: the manifest is that of another data set, or it is not known where it is.
    """
    if file:
        dataset = catalog.read(file)
        if dataset.name != data.name:
            raise ConfigError(
                f"{file}: expected the manifest of {data.name}; found that of {dataset.name}; give the other one"
            )
        return dataset.drift
    if data.name in catalog.names():
        return catalog.find(data.name).drift
    if found := datasets.manifest_of(data.store, data.name):
        return catalog.read(found).drift
    raise ConfigError(
        f"expected the manifest of {data.name}, which has its limits; found none where `idxflow dataset` puts or notes "
        "it; give it: --dataset-file FILE"
    )
