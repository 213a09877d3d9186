"""Classify images from files with a registered model, for `idxflow predict`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import ConfigError
from storage.files import check_local, kind_of
from storage.opening import open_store
from storage.registry import Version
from tasks.serving import image_files
from tasks.serving.predict import Model, Row, find_version, load_champion, write_parquet


@dataclass(frozen=True)
class PredictOptions:
    """The files to classify, the model, and how to transform the images first."""

    dataset: str
    files: tuple[Path, ...]
    version: str = "champion"
    out: Path | None = None
    """Parquet file to write, one row per image."""
    resize: bool = False
    scale: bool = False
    invert: bool = False
    store: str | None = None


@dataclass(frozen=True)
class Classified:
    """The predictions for all images, in the order of the files."""

    version: Version
    rows: Sequence[Row]
    remarks: Sequence[str]
    """Remarks on odd images, without repetition."""
    out: Path | None
    """The file that was written."""

    def values(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "dataset": self.version.dataset,
            "version": self.version.number,
            "rows": [
                {
                    "file": row.file,
                    "row": row.row,
                    "label": row.label,
                    "class": row.name,
                    "probability": row.probability,
                    "version": row.version,
                }
                for row in self.rows
            ],
            "remarks": list(self.remarks),
            "out": str(self.out.absolute()) if self.out else None,
            "error": None,
        }


class _Remarks:
    """Passes each remark on once, and collects them."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self.texts: list[str] = []

    def __call__(self, remark: str) -> None:
        remark = _utf8(remark)
        if remark not in self.texts:
            self.texts.append(remark)
            self._warn(remark)


def classify(options: PredictOptions, warn: Callable[[str], None]) -> Classified:
    """Classify the images of files, and write the predictions if `options.out` names a file.

    Args:
        warn: called immediately with each remark, such as that images look inverted.

    Raises:
        IdxflowError: there is no such version, a file cannot be used, or the predictions cannot be written.
    """
    remarks = _Remarks(warn)
    version = _checked_version(options)
    with open_store(options.store).in_use(options.dataset):
        rows = list(_rows(options, version, remarks))
    if options.out:
        write_parquet(options.out, rows)
    return Classified(version, rows, remarks.texts, options.out)


def _checked_version(options: PredictOptions) -> Version:
    """Run the checks that take only milliseconds, and return the version to predict with."""
    out = options.out
    for file in options.files:
        image_files.check_is_file(file)
    check_local("--out", out or "")
    if out and out.exists() and not out.is_file():
        raise ConfigError(f"expected --out to be a file; {out} is {kind_of(out)}; choose another name")
    if out and out.resolve() in [file.resolve() for file in options.files]:
        raise ConfigError(f"expected --out to differ from the files to read; found {out} in both; choose another")
    return find_version(open_store(options.store), options.dataset, options.version)


def _rows(options: PredictOptions, version: Version, remarks: _Remarks) -> Iterator[Row]:
    model = load_champion(options.dataset, options.store, version)
    image_options = image_files.ImageOptions(
        model.image_shape, model.pixel_range, options.resize, options.scale, options.invert
    )
    for file in options.files:
        start, inverted = 0, 0
        for images in image_files.read(file, image_options, remarks):
            inverted += int(model.looks_inverted(images).sum())
            yield from _answers(model, _utf8(str(file)), start, images)
            start += len(images)
        if remark := image_files.if_inverted(str(file), inverted, start, image_options):
            remarks(remark)


def _answers(model: Model, file: str, start: int, images: np.ndarray) -> Iterator[Row]:
    predictions = model.predict(images)
    answers = zip(predictions.label.tolist(), predictions.name, predictions.probability.tolist(), strict=True)
    for row, (label, name, probability) in enumerate(answers, start):
        yield Row(file, row, label, name, probability, predictions.version)


def _utf8(text: str) -> str:
    """Escape the bytes of a file name that are not UTF-8, because neither JSON nor Parquet can hold them."""
    return text.encode(errors="backslashreplace").decode()
