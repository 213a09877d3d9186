"""Ask a model about changed test images and about named images, and count its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from storage.formats import split_rows
from storage.formats.behaviour_images import MOST_WRONG
from storage.records import BehaviourTest, ChangedAnswer, ChangedClass, NamedImage, Split, TestName, Variant
from tasks.gate import wilson
from tasks.model.classifier import Classifier, softmax
from tasks.probing.changes import Way
from tasks.probing.named_images import Image
from tasks.ui.progress import Progress, advance

if TYPE_CHECKING:
    from storage.datasets.manifest import Behaviour

MOST_CLASSES = 3
MOST_EXAMPLES = 4
"""Per test."""
_AT_ONCE = 256
_PIXELS_AT_ONCE = 1 << 22
"""Bounds the memory for images that are turned, of which there are several copies as float64."""
_AMOUNTS = {"shift": "pixels", "rotate": "degrees", "noise": "deviation", "brightness": "percent"}
"""The setting of each test that says how much images are changed."""


@dataclass(frozen=True)
class Tested:
    """The results of all tests with changed images, and pictures of their examples in order."""

    images: int
    tests: tuple[BehaviourTest, ...]
    before: np.ndarray
    """uint8 of shape (examples, height, width)."""
    after: np.ndarray
    """The same images, changed."""


@dataclass(frozen=True)
class Answers:
    """The classes that a model answers, uint8."""

    rows: list[int]
    """Numbers of the images in the split."""
    before: np.ndarray
    """Of the images as they are; of shape (rows,)."""
    after: np.ndarray
    """Of those changed in each way; of shape (ways, rows)."""


def tested(classifier: Classifier, settings: Behaviour, ways: Sequence[Way], test: Split) -> Tested:
    """Ask a model about changed test images, in blocks.

    Raises:
        DamagedEntry: the split cannot be read.
    """
    none = np.empty((0, *test.image_shape), np.uint8)
    if not ways:
        return Tested(0, (), none, none)
    answers = _answered(classifier, ways, test, spaced(test.rows, settings.images))
    tests, before, after = list[BehaviourTest](), [none], [none]
    for name, limited in settings.tests.items():
        places = [place for place, way in enumerate(ways) if way.test == name]
        amount = float(getattr(limited, _AMOUNTS[name]))
        result, worst = _result(name, amount, limited.changed, ways, answers, places)
        tests.append(result)
        if rows := [example.row for example in result.examples]:
            images = split_rows.images(test, rows)
            before.append(images)
            after.append(worst.change(images, rows))
    return Tested(len(answers.rows), tuple(tests), np.concatenate(before), np.concatenate(after))


def spaced(rows: int, most: int) -> list[int]:
    """Return the numbers of at most `most` of `rows` rows, evenly spaced from the first to the last."""
    numbers: list[int] = np.unique(np.linspace(0, rows - 1, min(most, rows)).astype(np.int64)).tolist()
    return numbers


def _answered(classifier: Classifier, ways: Sequence[Way], test: Split, rows: list[int]) -> Answers:
    before, after = np.empty(len(rows), np.uint8), np.empty((len(ways), len(rows)), np.uint8)
    at_once = _at_once(test.image_shape)
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        here, images = slice(start, start + len(some)), split_rows.images(test, some)
        # In one block of the same size as the changed ones: rounding can depend on it.
        before[here] = classifier.logits(images).argmax(axis=1)
        for place, way in enumerate(ways):
            after[place, here] = classifier.logits(way.change(images, some)).argmax(axis=1)
        advance(Progress("probe", here.stop, len(rows), "images"))
    return Answers(rows, before, after)


def _at_once(image_shape: tuple[int, int]) -> int:
    return max(1, min(_AT_ONCE, _PIXELS_AT_ONCE // (image_shape[0] * image_shape[1])))


def _result(
    name: TestName, amount: float, limit: float, ways: Sequence[Way], answers: Answers, places: list[int]
) -> tuple[BehaviourTest, Way]:
    """Return the result of a test, and the way of changing images that its examples are of.

    Args:
        places: of its variants among `ways`.
    """
    differs = answers.after[places] != answers.before
    variants = tuple(_variant(ways[place].variant, changed) for place, changed in zip(places, differs, strict=True))
    worst = int(differs.sum(axis=1).argmax())
    changed = np.flatnonzero(differs[worst])
    chosen = changed[spaced(len(changed), MOST_EXAMPLES)] if len(changed) else changed
    examples = tuple(
        ChangedAnswer(
            answers.rows[n], variants[worst].name, int(answers.before[n]), int(answers.after[places[worst], n])
        )
        for n in chosen
    )
    classes = _classes(answers.before, differs)
    return BehaviourTest(name, amount, limit, variants, classes, examples), ways[places[worst]]


def _variant(name: str, changed: np.ndarray) -> Variant:
    count, images = int(changed.sum()), len(changed)
    return Variant(name, count, count / images, *wilson.interval(count, images))


def _classes(before: np.ndarray, differs: np.ndarray) -> tuple[ChangedClass, ...]:
    """Return the classes whose answers change most often, most first."""
    answers = np.bincount(before, minlength=256) * len(differs)
    changed = np.bincount(before, weights=differs.sum(axis=0), minlength=256).astype(np.int64)
    found = np.flatnonzero(changed)
    most = sorted(found.tolist(), key=lambda label: (-changed[label] / answers[label], label))[:MOST_CLASSES]
    return tuple(ChangedClass(label, int(answers[label]), int(changed[label])) for label in most)


def named(
    classifier: Classifier, images: Iterable[Image], image_shape: tuple[int, int]
) -> tuple[tuple[NamedImage, ...], np.ndarray]:
    """Ask a model about named images, in blocks; return its answers, and pictures of the first that are wrong.

    Returns:
        The answers in order; uint8 of shape (n, height, width), at most `MOST_WRONG`.
    """
    answers, wrong = list[NamedImage](), list[np.ndarray]()
    for block in _blocks(images, _at_once(image_shape)):
        logits = classifier.logits(np.stack([image.pixels for image in block]))
        predicted, probability = logits.argmax(axis=1).tolist(), softmax(logits).max(axis=1).tolist()
        for image, label, sure in zip(block, predicted, probability, strict=True):
            answers.append(NamedImage(image.file, image.label, label, sure))
            if label != image.label and len(wrong) < MOST_WRONG:
                wrong.append(image.pixels)
    return tuple(answers), np.stack(wrong) if wrong else np.empty((0, *image_shape), np.uint8)


def _blocks(images: Iterable[Image], size: int) -> Iterator[list[Image]]:
    rest = iter(images)
    while block := list(islice(rest, size)):
        yield block
