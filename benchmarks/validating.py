"""Checking both splits, all 70,000 images and labels: `python -m benchmarks.validating idxflow`.

Importing Great Expectations does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import decoding, subjects
from benchmarks.subjects import Measured

SPLITS = ("train", "test")
SAMPLE = 1_000


def ours() -> Measured:
    """Our step `validate`: a summary row per image, and every suite by Great Expectations."""
    from tasks.validate import judge

    dataset, folder = decoding.mnist(), subjects.new_folder("validation")
    train, test = (decoding.decoded(name) for name in SPLITS)
    found = judge(dataset, train, test, folder)
    if not found.passed:
        raise ValueError(f"the real data did not pass: {[check.name for check in found.failures]}")
    return Measured(
        {"idxflow": subjects.timed(lambda: judge(dataset, train, test, folder), 3)}, f"{len(found.checks)} checks"
    )


def by_hand() -> Measured:
    """The same facts with NumPy and asserts: ranges, blank and repeated images, classes, nearest class mean."""
    passed: list[int] = []

    def check() -> None:
        splits = [_read(name) for name in SPLITS]
        means = np.stack([splits[0][0][splits[0][1] == label].mean(axis=0) for label in range(10)]).astype(np.float32)
        passed[:] = [sum(len(_facts(images, labels, means)) for images, labels in splits)]

    return Measured({"numpy by hand": subjects.timed(check, 3)}, f"{passed[0]} checks")


def _facts(images: np.ndarray, labels: np.ndarray, means: np.ndarray) -> list[str]:
    """Return the names of the facts that hold; one that does not is an error."""
    lowest, highest = images.min(axis=1), images.max(axis=1)
    distances = (means**2).sum(axis=1) - 2 * images.astype(np.float32) @ means.T
    digests = {hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in images}
    average, ink = images.mean(axis=1), (images > 0).mean(axis=1)
    facts = {
        "one label per image": len(images) == len(labels),
        "labels are classes": labels.max() < 10,
        "every class occurs": np.bincount(labels, minlength=10).min() > len(labels) * 0.05,
        "pixels from dark to bright": lowest.min() == 0 and highest.max() == 255,
        "no blank image": (lowest < highest).all(),
        "hardly an image twice": len(digests) > 0.99 * len(images),
        "brightness": 10 < average.mean() < 100,
        "ink": 0.05 < ink.mean() < 0.5,
        "labels fit images": (distances.argmin(axis=1) == labels).mean() > 0.7,
    }
    failed = [name for name, holds in facts.items() if not holds]
    if failed:
        raise ValueError(f"the real data did not pass: {failed}")
    return list(facts)


def pixels_in_great_expectations() -> Measured:
    """Great Expectations on the pixels, a column for each, of 1,000 images: what the summary rows avoid."""
    import pandas as pd

    images, labels = (array[:SAMPLE] for array in _read("test"))
    frame = pd.DataFrame(images, columns=[f"pixel_{number}" for number in range(images.shape[1])])
    frame["label"] = labels
    validate = _suite(frame, [f"pixel_{number}" for number in range(images.shape[1])])
    name = "pixels in Great Expectations"
    return Measured({name: subjects.timed(validate, 1)}, f"{images.shape[1] + 1} checks on {SAMPLE:,} images")


def _suite(frame: Any, columns: list[str]) -> Callable[[], None]:
    import great_expectations as gx

    def validate() -> None:
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        batch = context.data_sources.add_pandas("pixels").add_dataframe_asset("images")
        between = gx.expectations.ExpectColumnValuesToBeBetween
        suite = gx.ExpectationSuite(
            "pixels", expectations=[between(column=column, min_value=0, max_value=255) for column in columns]
        )
        suite.add_expectation(between(column="label", min_value=0, max_value=9))
        definition = batch.add_batch_definition_whole_dataframe("all")
        found = definition.get_batch({"dataframe": frame}).validate(suite)
        if not found.success:
            raise ValueError("the real data did not pass")

    return validate


def _read(name: Any) -> tuple[np.ndarray, np.ndarray]:
    from storage.formats import parquet

    images, labels = parquet.read(decoding.decoded(name).file)
    return images.reshape(len(images), -1), labels


VARIANTS: subjects.Variants = {
    "idxflow": ours,
    "numpy by hand": by_hand,
    "pixels in Great Expectations": pixels_in_great_expectations,
}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
