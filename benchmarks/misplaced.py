"""Which sets with labels or images out of place the checks of the data stop, and which sound sets with them.

python -m benchmarks.misplaced --mnist ~/archives

Draws sets at random from MNIST, from digits, and from data that is hard to tell apart: five classes of MNIST's digits
at random places of a noisy picture. Then the labels of both splits, or of the test split, are shifted by one row,
shifted by one row in the second half, or shuffled; or the test images are transposed.

Prints, of so many sets, how many are stopped by `max_label_chance` (0.01), and how many are below the usual
`min_centroid_hit`, which warns: a quarter of the way from chance to certainty. Until it was a warning, it stopped them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.subjects import FILES, MNIST_VARIABLE
from expectations import summary
from storage.datasets.manifest import Limits
from storage.formats import idx
from tasks.sources import embedded

Split = tuple[np.ndarray, np.ndarray]
"""Images, uint8 of shape (rows, side, side), and labels, uint8."""
Damage = Callable[[Split, np.random.Generator], Split]

HARD_CLASSES, HARD_SIDE, NOISE = 5, 60, 110


def main() -> None:
    """Judge all sets, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", default=os.environ.get(MNIST_VARIABLE), help="folder of the four archives")
    parser.add_argument("--sets", type=int, default=20)
    asked = parser.parse_args()
    if not asked.mnist:
        parser.error(f"expected the folder of the four archives: --mnist or {MNIST_VARIABLE}")
    mnist = {role: idx.read(Path(asked.mnist).expanduser() / file) for role, file in FILES.items()}
    data = {
        "MNIST": (lambda random: drawn(mnist, random, 2000, 400), 10),
        "digits": (lambda random: drawn(embedded.digits(), random, 1000, 300), 10),
        "hard": (lambda random: hard(mnist, random), HARD_CLASSES),
    }
    print(f"{'data':8}{'out of place':24}{'splits':8}{'nearest mean right':>20}{'stopped':>10}{'warned of':>11}")
    for name, (make, classes) in data.items():
        for what, where, damage in _damages():
            found = [
                judged(make(np.random.default_rng(seed)), where, damage, seed, classes) for seed in range(asked.sets)
            ]
            shares, stopped, warned = zip(*found, strict=True)
            print(f"{name:8}{what:24}{where:8}{np.mean(shares):>20.1%}{sum(stopped):>10}{sum(warned):>11}", flush=True)


def _damages() -> Iterator[tuple[str, str, Damage]]:
    yield "nothing", "", lambda split, random: split
    for where in ("test", "both"):
        yield "labels shifted by one", where, lambda split, random: (split[0], np.roll(split[1], 1))
        yield "half of them shifted", where, _half_shifted
        yield "labels shuffled", where, lambda split, random: (split[0], random.permutation(split[1]))
    yield "images transposed", "test", lambda split, random: (split[0].transpose(0, 2, 1), split[1])


def _half_shifted(split: Split, random: np.random.Generator) -> Split:
    images, labels = split
    half = len(labels) // 2
    return images, np.append(labels[:half], np.roll(labels[half:], 1))


def judged(made: tuple[Split, Split], where: str, damage: Damage, seed: int, classes: int) -> tuple[float, bool, bool]:
    """Return the share of test images whose nearest mean is right, and whether the set is stopped, and warned of."""
    random, limits, train = np.random.default_rng([seed, 1]), Limits(), made[0]
    if where == "both":
        train = damage(train, random)
    test = damage(made[1], random) if where else made[1]
    of_train, stopped, warned, share = summary.survey([train], classes), False, False, 0.0
    for split, known in ((train, None), (test, of_train)):
        (table,) = summary.images([split], summary.survey([split], classes), known, len(split[1]))
        matches = summary.Matches()
        matches.add(table)
        share = float(table["centroid_hit"].mean())
        stopped |= matches.by_chance > limits.max_label_chance
        warned |= share < limits.least_centroid_hit(classes)
    return share, stopped, warned


def drawn(data: dict[str, np.ndarray], random: np.random.Generator, train: int, test: int) -> tuple[Split, Split]:
    """Return so many rows of both splits, drawn at random."""

    def some(split: str, count: int) -> Split:
        rows = random.permutation(len(data[f"{split}-labels"]))[:count]
        return data[f"{split}-images"][rows], data[f"{split}-labels"][rows]

    return some("train", train), some("test", test)


def hard(mnist: dict[str, np.ndarray], random: np.random.Generator) -> tuple[Split, Split]:
    """Return five classes of digits at random places of noise."""

    def some(split: str, count: int) -> Split:
        rows = random.permutation(np.flatnonzero(mnist[f"{split}-labels"] < HARD_CLASSES))[:count]
        digits, labels = mnist[f"{split}-images"][rows].astype(np.int16), mnist[f"{split}-labels"][rows]
        pictures = random.integers(0, NOISE, (count, HARD_SIDE, HARD_SIDE), dtype=np.int16)
        for picture, digit in zip(pictures, digits, strict=True):
            y, x = random.integers(0, HARD_SIDE - 28, 2)
            picture[y : y + 28, x : x + 28] += digit * (NOISE - 1) // 255
        return pictures.astype(np.uint8), labels

    return some("train", 4000), some("test", 800)


if __name__ == "__main__":
    main()
