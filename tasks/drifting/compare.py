"""Compare new images with those that a champion was trained on, by all tests, and judge by limits.

A test is beyond its limit if chance does not explain the difference, *and* the difference is larger than the manifest
allows: a million rows make the smallest difference significant, and a hundred rows make large ones by chance. The
p-values are corrected together, so `Drift.false_alarms` bounds the chance that any of the tests raises a false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from tasks.drifting import differing, telling
from tasks.drifting.differing import Spread, Tested
from tasks.drifting.measuring import MEASURES, Measured, class_means, coarse, measured
from tasks.drifting.sample import Sample
from tasks.drifting.telling import Told
from tasks.gate import holm

if TYPE_CHECKING:
    from storage.datasets.manifest import Drift

SHOWN = 20
"""The most images that are shown as those that differ most."""
_DECIMALS = (2, 3, 4)
_NAMED = 3
"""The most tests that a sentence names."""


@dataclass(frozen=True)
class Answers:
    """What a champion answers for some images."""

    predicted: np.ndarray
    """The classes, integers of shape (n,)."""
    confidence: np.ndarray
    """The probabilities of these classes, float of shape (n,), in (0, 1]."""


@dataclass(frozen=True)
class Reference:
    """The images that a champion was trained on, or a sample of them, and what it answers for images not among them."""

    sample: Sample
    """With labels."""
    measured: Measured
    means: np.ndarray
    """The mean images of the classes that occur, float32 of shape (classes, pixels)."""
    spread: Spread
    """Of the reduced images."""
    classes: int
    answers: Answers | None
    """For the test images; None if they are not to be compared.

    A model is surer of images that it was trained on, so its answers for these would make any other images look odd.
    """


@dataclass(frozen=True)
class Verdict:
    """The result of one test, and whether it is beyond its limit."""

    name: str
    """What is compared, such as `ink`."""
    measure: str
    """What the size of the difference is, such as `KS D`."""
    effect: float
    """The size of the difference."""
    limit: float
    """The largest size allowed."""
    p: float
    """The probability of at least this difference by chance, in [0, 1]."""
    corrected: float
    """The same, corrected for the number of tests (Holm)."""
    interval: tuple[float, float] | None
    """The 95% interval of the size, where it is known."""
    is_beyond: bool

    @property
    def words(self) -> str:
        """The result in a few words, with as many decimals as tell the size from its limit."""
        both = ((f"{self.effect:.{digits}f}", f"{self.limit:.{digits}f}") for digits in _DECIMALS)
        effect, limit = next((pair for pair in both if pair[0] != pair[1]), (str(self.effect), str(self.limit)))
        return f"{self.name} ({self.measure} {effect}, limit {limit})"


@dataclass(frozen=True)
class Comparison:
    """All tests of a sample of new images."""

    verdicts: tuple[Verdict, ...]
    """Those beyond their limits first, the furthest beyond it first."""
    rows: int
    """The number of new images that were compared."""
    total: int
    """The number of new images."""
    old_rows: int
    """The number of training images that were compared."""
    most: tuple[tuple[int, float], ...]
    """The new images that differ most, by their places in the sample, with how new they look, in [0, 1]."""

    @property
    def is_drifted(self) -> bool:
        return any(verdict.is_beyond for verdict in self.verdicts)

    def sentence(self, champion: str) -> str:
        """Return the answer; `champion` is whose training images these were compared with, such as `v3 of mnist`."""
        images = "1 image" if self.total == 1 else f"{self.total:,} images"
        beyond = [verdict for verdict in self.verdicts if verdict.is_beyond]
        count = len(self.verdicts)
        if not beyond:
            return (
                f"within the limits: {images} like those that {champion} was trained on, with none of {count} tests "
                "beyond its limit"
            )
        named = ", ".join(verdict.words for verdict in beyond[:_NAMED])
        more = f" and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
        limits = "its limit" if len(beyond) == 1 else "their limits"
        return (
            f"drifted: {images} unlike those that {champion} was trained on, with {len(beyond)} of {count} tests "
            f"beyond {limits}: {named}{more}"
        )

    def values(self) -> dict[str, Any]:
        """Return the comparison as JSON values; an infinite size is null."""
        return {
            "drifted": self.is_drifted,
            "images": self.total,
            "compared": self.rows,
            "training_images_compared": self.old_rows,
            "tests": [_values(verdict) for verdict in self.verdicts],
        }


def reference(sample: Sample, classes: int, answers: Answers | None) -> Reference:
    """Return a labelled sample of training images with everything that is compared.

    Args:
        classes: number of classes.
        answers: of the champion, for images that it was not trained on.
    """
    labels = sample.labels if sample.labels is not None else np.zeros(len(sample), np.int64)
    # With more threads, sums would be rounded in another way on another machine.
    with threadpool_limits(1, "blas"):
        means, own = class_means(sample.images, labels)
        found = measured(sample.images, means, own)
        return Reference(sample, found, means, differing.spread(found.reduced), classes, answers)


def compare(old: Reference, new: Sample, answers: Answers | None, limits: Drift) -> Comparison:
    """Compare new images with those of a champion.

    Args:
        old: of the champion.
        new: at least ten images of the same size.
        answers: of the champion for the new images; None: its answers are not compared.
        limits: of the manifest.
    """
    with threadpool_limits(1, "blas"):
        found = measured(new.images, old.means)
    told, chosen = _told(old, found)
    results = [*_of_classes(old, new, answers, limits), *_of_measures(old, found, limits)]
    results.append(("mean image", "distance in deviations", differing.mean_images(old.spread, found.reduced),
                    limits.mean_image, None))  # fmt: skip
    if answers and old.answers:
        result = differing.distributions(old.answers.confidence, answers.confidence)
        results.append(("confidence", "KS D", result, limits.confidence, None))
    results.append(("told apart", "AUC", Tested(told.p, told.auc), limits.told_apart, (told.low, told.high)))
    corrected = holm.corrected(np.array([result.p for _, _, result, _, _ in results]))
    verdicts = [
        Verdict(name, measure, result.effect, limit, result.p, p, interval,
                p <= limits.false_alarms and result.effect > limit)
        for (name, measure, result, limit, interval), p in zip(results, corrected.tolist(), strict=True)
    ]  # fmt: skip
    newest = np.argsort(-told.newness, kind="stable")[:SHOWN]
    return Comparison(
        tuple(sorted(verdicts, key=lambda v: (not v.is_beyond, -v.effect / v.limit if v.limit else -v.effect))),
        len(new),
        new.total,
        len(old.sample),
        tuple((int(chosen[place]), float(told.newness[place])) for place in newest),
    )


_Result = tuple[str, str, Tested, float, tuple[float, float] | None]
"""What is compared, what the size is, the result, the limit, and the interval of the size."""


def _of_classes(old: Reference, new: Sample, answers: Answers | None, limits: Drift) -> list[_Result]:
    pairs = []
    if new.labels is not None and old.sample.labels is not None:
        pairs.append(("labels", old.sample.labels, new.labels, limits.label_shares))
    if answers and old.answers:
        pairs.append(("predicted classes", old.answers.predicted, answers.predicted, limits.predicted_shares))
    return [
        (name, "Cohen's w", differing.shares(*(np.bincount(x, minlength=old.classes) for x in (a, b))), limit, None)
        for name, a, b, limit in pairs
    ]


def _of_measures(old: Reference, found: Measured, limits: Drift) -> list[_Result]:
    results: list[_Result] = []
    for name in MEASURES:
        pair = old.measured.values[name], found.values[name]
        results.append((name, "KS D", differing.distributions(*pair), limits.measure_distance, None))
        results.append((name, "PSI", differing.stability(*pair), limits.measure_stability, None))
    return results


def _told(old: Reference, found: Measured) -> tuple[Told, np.ndarray]:
    """Return how well new images are told from old ones, and the places of those new images that were used."""
    chosen = _some(len(found.reduced))
    middle = {name: float(np.nan_to_num(np.nanmean(values))) for name, values in _finite(old.measured).items()}
    before = _features(old.measured, _some(len(old.measured.reduced)), middle)
    return telling.tell(before, _features(found, chosen, middle)), chosen


def _finite(found: Measured) -> dict[str, np.ndarray]:
    """Return the measures, those that no image has as 0."""
    return {
        name: values if np.isfinite(values).any() else np.zeros(len(values)) for name, values in found.values.items()
    }


def _some(rows: int) -> np.ndarray:
    """Return the places of at most as many rows as the classifier uses, at equal distances."""
    return np.linspace(0, rows - 1, min(rows, telling.MOST)).round().astype(np.int64)


def _features(found: Measured, places: np.ndarray, middle: dict[str, float]) -> np.ndarray:
    """Return the features of some images, float32 of shape (n, pixels + measures).

    A measure that an image does not have is taken as the usual one.
    """
    columns = [np.nan_to_num(found.values[name][places], nan=middle[name]) for name in MEASURES]
    return np.column_stack([coarse(found.reduced[places]), *columns]).astype(np.float32)


def _values(verdict: Verdict) -> dict[str, Any]:
    finite = verdict.effect if np.isfinite(verdict.effect) else None
    return {
        "name": verdict.name,
        "measure": verdict.measure,
        "effect": finite,
        "limit": verdict.limit,
        "p": verdict.p,
        "corrected_p": verdict.corrected,
        "low": verdict.interval[0] if verdict.interval else None,
        "high": verdict.interval[1] if verdict.interval else None,
        "beyond": verdict.is_beyond,
    }
