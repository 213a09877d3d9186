"""How often `idxflow drift` raises a false alarm on MNIST, and how often it notices a change.

python -m benchmarks.drifting FOLDER [--rows 500]

FOLDER has the four archives of MNIST. Prints the table of docs/how-to/drift.md, with the default limits. The 70,000
images are shuffled: 40,000 train a network of 50 hidden units, the champion; its answers for 10,000 others are those
for its test split; samples are drawn from the other 20,000, without replacement, 1,000 as they are and 200 for each
change. Rows not marked "with labels" are compared without them: a change of the classes then shows in the predicted
ones alone.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.datasets.manifest import Drift
from storage.formats import idx
from tasks.drifting.compare import Answers, Comparison, Reference, compare, reference
from tasks.drifting.sample import Sample, draw
from tasks.gate import wilson

TRAINED, ANSWERED = 40_000, 10_000
"""How many images the champion is trained on, and for how many others its answers are known."""
CLASSES = 10
EQUAL, CHANGED = 1000, 200

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Takes images, uint8 of shape (n, 28, 28), and returns them changed."""


@dataclass(frozen=True)
class Stand:
    """The champion, and the images that samples are drawn from."""

    old: Reference
    answers: Callable[[np.ndarray], Answers]
    images: np.ndarray
    labels: np.ndarray
    limits: Drift

    def judged(self, images: np.ndarray, labels: np.ndarray | None = None) -> Comparison:
        """Return the comparison of a sample."""
        sample = Sample(images, labels, np.arange(len(images)), len(images))
        return compare(self.old, sample, self.answers(images), self.limits)


def shifted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Move images to the right by 2 pixels."""
    moved = np.zeros_like(images)
    moved[:, :, 2:] = images[:, :, :-2]
    return moved


def inverted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Make dark what is bright."""
    return 255 - images


def speckled(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Set 5% of the pixels to random values."""
    noise = random.integers(0, 256, images.shape, dtype=np.uint8)
    return np.where(random.random(images.shape) < 0.05, noise, images)


def noisy(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Add normal noise whose standard deviation is 5% of the range of pixels."""
    return np.clip(np.rint(images + random.normal(0, 0.05 * 255, images.shape)), 0, 255).astype(np.uint8)


def eroded(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Make strokes thinner: each pixel becomes the darkest of 2×2."""
    from scipy.ndimage import grey_erosion

    return np.asarray(grey_erosion(images, (1, 2, 2)))


def dilated(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Make strokes thicker: each pixel becomes the brightest of 2×2."""
    from scipy.ndimage import grey_dilation

    return np.asarray(grey_dilation(images, (1, 2, 2)))


CHANGES: Mapping[str, Change] = {
    "shifted by 2 pixels": shifted,
    "inverted": inverted,
    "5% of the pixels random": speckled,
    "normal noise of 5%": noisy,
    "thinner strokes (2×2 erosion)": eroded,
    "thicker strokes (2×2 dilation)": dilated,
}


def without(labels: np.ndarray, label: int) -> np.ndarray:
    """Return how likely each row is to be drawn if a class is missing, float64 of shape (n,), with the sum 1."""
    weights = (labels != label).astype(np.float64)
    return weights / weights.sum()


def doubled(labels: np.ndarray, label: int) -> np.ndarray:
    """Return the same if the share of a class is twice as large, at the cost of all others."""
    share = (labels == label).mean()
    weights = np.where(labels == label, 2.0, (1 - 2 * share) / (1 - share))
    return weights / weights.sum()


def other_digits() -> np.ndarray:
    """Return scikit-learn's digits, 8×8 pixels, as 28×28; uint8 of shape (1797, 28, 28)."""
    from PIL import Image
    from sklearn.datasets import load_digits

    small = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((28, 28))) for image in small])


def stand(folder: Path, seed: int) -> Stand:
    """Train the champion, and divide the images."""
    from sklearn.neural_network import MLPClassifier

    images, labels = (np.concatenate([_read(folder, f"{split}-{kind}") for split in ("train", "t10k")])
                      for kind in ("images-idx3", "labels-idx1"))  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = images[order], labels[order].astype(np.int64)
    network = MLPClassifier((50,), max_iter=5, random_state=seed)

    with warnings.catch_warnings():
        # Five epochs are enough.
        warnings.simplefilter("ignore")
        network.fit(images[:TRAINED].reshape(TRAINED, -1) / 255, labels[:TRAINED])

    def answers(rows: np.ndarray) -> Answers:
        probabilities = network.predict_proba(rows.reshape(len(rows), -1) / 255)
        return Answers(probabilities.argmax(axis=1), probabilities.max(axis=1))

    known = slice(TRAINED, TRAINED + ANSWERED)
    found = answers(images[known])
    print(f"accuracy of the champion on {ANSWERED:,} others: {(found.predicted == labels[known]).mean():.2%}")
    old = reference(draw([(images[:TRAINED], labels[:TRAINED])]), CLASSES, found)
    return Stand(old, answers, images[known.stop :], labels[known.stop :], Drift())


def _read(folder: Path, name: str) -> np.ndarray:
    file = folder / f"{name}-ubyte.gz"
    with idx.Reader(file, file.name) as reader:
        return reader.read()


def measure(on: Stand, rows: int, seed: int, numbers: tuple[int, int]) -> None:
    """Print the table, a line as soon as it is known."""
    equal, changed = numbers
    random = np.random.default_rng(seed)

    def drawn(weights: np.ndarray | None = None) -> np.ndarray:
        return random.choice(len(on.images), rows, replace=False, p=weights)

    print(f"\n| {rows:,} images | samples | drifted | 95% interval | significant | beyond their limits |")
    print("|:--|--:|--:|:--|--:|:--|", flush=True)
    same = [on.judged(on.images[places], on.labels[places]) for places in (drawn() for _ in range(equal))]
    _line("the same distribution, with labels", same)
    for name, change in CHANGES.items():
        _line(name, [on.judged(change(on.images[drawn()], random)) for _ in range(changed)])
    for name, weigh in (("one class missing", without), ("one class twice as frequent", doubled)):
        weighed = [weigh(on.labels, number % CLASSES) for number in range(changed)]
        _line(name, [on.judged(on.images[drawn(weights)]) for weights in weighed])
        with_labels = [on.judged(on.images[places], on.labels[places]) for places in map(drawn, weighed)]
        _line(f"{name}, with labels", with_labels)
    others = other_digits()
    chosen = (random.choice(len(others), min(rows, len(others)), replace=False) for _ in range(changed))
    _line("another data set (scikit-learn's digits)", [on.judged(others[places]) for places in chosen])


def _line(name: str, found: list[Comparison]) -> None:
    # Whatever the size of the difference: what the stated rate of false alarms would be without limits.
    significant = sum(any(v.corrected <= Drift().false_alarms for v in each.verdicts) for each in found) / len(found)
    noticed = sum(comparison.is_drifted for comparison in found)
    named = [{verdict.name for verdict in comparison.verdicts if verdict.is_beyond} for comparison in found]
    counts = Counter(name for names in named for name in names)
    first = ", ".join(sorted(counts, key=lambda test: (-counts[test], test))[:4])
    low, high = wilson.interval(noticed, len(found))
    print(
        f"| {name} | {len(found):,} | {noticed / len(found):.1%} | {low:.1%} to {high:.1%} | {significant:.1%} "
        f"| {first or 'none'} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of MNIST's four archives")
    parser.add_argument("--rows", type=int, default=500, help="images of each sample")
    parser.add_argument("--equal", type=int, default=EQUAL, help="samples of the same distribution")
    parser.add_argument("--changed", type=int, default=CHANGED, help="samples of each change")
    parser.add_argument("--seed", type=int, default=22)
    asked = parser.parse_args()
    started = time.perf_counter()
    measure(stand(asked.folder, asked.seed), asked.rows, asked.seed, (asked.equal, asked.changed))
    print(f"\n{time.perf_counter() - started:,.0f} s")


if __name__ == "__main__":
    main()
