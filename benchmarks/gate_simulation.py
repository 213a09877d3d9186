"""How often the gate promotes a model that is no better, and how often one that is.

python -m benchmarks.gate_simulation

Prints the tables of docs/gate.md. Each pair of models is drawn as its counts on the test rows: both right, only one,
neither. If a row's difficulty is drawn for each row anew and both models answer it by chance, those counts are
multinomial, so nothing is lost by drawing them at once. Shares of rows that only one model has right, as found between
two seeds of one profile: 1.5% on digits (360 rows), 3% on MNIST (10,000 rows); better models differ less.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from storage.datasets.manifest import Gate
from tasks.gate import criteria, holm

Test = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes the rows that only the candidate, and only the champion, gets right; says whether it promotes."""

ALPHA = 0.05
ACCURACY = 0.96
SIZES = (360, 10_000)
DISAGREEMENTS = (0.005, 0.015, 0.03, 0.06)
GAINS = {360: (0.001, 0.005, 0.01, 0.02, 0.03), 10_000: (0.001, 0.002, 0.003, 0.004, 0.005)}
MARGINS = {360: (0.005, 0.01, 0.02, 0.03), 10_000: (0.001, 0.0025, 0.005, 0.01)}
TYPICAL = {360: 0.015, 10_000: 0.03}
CUTS, LOSSES = (1, 3, 6), (0.01, 0.02, 0.03, 0.04, 0.05)
_OF_CUT = 10
"""Slices that each way to divide the test rows has."""


def naive(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Promote with one more right answer."""
    return np.asarray(ours > theirs)


def exact(ours: np.ndarray, theirs: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """Promote as the policy `better` does."""
    return np.asarray((ours > theirs) & (criteria.exact_p(ours, theirs) <= alpha))


def mid_p(ours: np.ndarray, theirs: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """Promote by the less strict test, for comparison."""
    return np.asarray((ours > theirs) & (criteria.one_sided_mid_p(ours, theirs) <= alpha))


def pairs(random: np.random.RandomState, shape: tuple[int, int], disagreement: float, gain: float = 0.0) -> np.ndarray:
    """Draw the counts of `shape` = (pairs, rows).

    Args:
        random: where chance comes from.
        shape: how many pairs of models, and how many test rows each.
        disagreement: share of rows that only one of two equally good models gets right.
        gain: how much larger the candidate's chance of a right answer is; rows that neither got right go to it
            first in the proportion in which it could be right there.

    Returns:
        Integers of shape (pairs, 4): both right, only the candidate, only the champion, neither.
    """
    half, wrong = disagreement / 2, 1 - ACCURACY
    rescued = gain / wrong
    cells = [ACCURACY - half + half * rescued, half + (wrong - half) * rescued, half * (1 - rescued)]
    return random.multinomial(shape[1], [*cells, 1 - sum(cells)], size=shape[0])


def rate(test: Test, counts: np.ndarray) -> float:
    """Return how many of the pairs `test` promotes, as a share."""
    return float(test(counts[:, 1], counts[:, 2]).mean())


def worst(test: Test, most: int = 400) -> tuple[float, int]:
    """Return the highest rate of equally good models promoted at any number of rows that tell them apart, computed.

    Also returns that number of rows; `most` is the largest that is tried.
    """
    from scipy.stats import binom

    found = []
    for telling in range(1, most + 1):
        ours = np.arange(telling + 1)
        promoted = test(ours, telling - ours)
        found.append((float(binom.pmf(ours, telling, 0.5)[promoted].sum()), telling))
    return max(found)


def not_worse(counts: np.ndarray, margin: float) -> float:
    """Return how many of the pairs the policy `not_worse` promotes, as a share."""
    settings, known = Gate("not_worse", ALPHA, margin), {}
    for both, ours, theirs, neither in np.unique(counts, axis=0).tolist():
        found = criteria.compared((both, ours, theirs, neither), ours + theirs, ALPHA)
        known[both, ours, theirs] = criteria.replaces(settings, found)
    return float(np.mean([known[both, ours, theirs] for both, ours, theirs, _ in counts.tolist()]))


def main() -> None:
    """Print six Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, help="pairs of models for each number")
    parser.add_argument("--seed", type=int, default=20)
    asked = parser.parse_args()
    # The numbers of its successor differ between releases of NumPy (NEP 19).
    random = np.random.RandomState(asked.seed)
    _equally_good(random, asked.pairs)
    _limits()
    _power(random, asked.pairs)
    _margins(random, asked.pairs)
    # By itself, so that what comes before does not change its numbers.
    _slices(np.random.RandomState(asked.seed), asked.pairs)


def _equally_good(random: np.random.RandomState, number: int) -> None:
    rows = []
    for size in SIZES:
        for disagreement in DISAGREEMENTS:
            counts = pairs(random, (number, size), disagreement)
            rates = [f"{rate(test, counts):.1%}" for test in (naive, mid_p, exact)]
            rows.append([f"{size:,}", f"{disagreement:.1%}", *rates])
    head = ["Test rows", "Only one right", "One more right answer", "Mid-p test", "`better` (exact test)"]
    _table(f"Promoted of {number:,} pairs of equally good models, at alpha {ALPHA}", head, rows)


def _limits() -> None:
    rows = []
    for name, test in (("mid-p test", mid_p), ("`better` (exact test)", exact)):
        for alpha in (0.01, 0.05, 0.1):
            share, telling = worst(partial(test, alpha=alpha))
            rows.append([name, f"{alpha}", f"{share:.2%}", f"{telling}"])
    head = ["Test", "alpha", "Highest rate", "at so many such rows"]
    _table(
        "Highest rate of promoting an equally good model, over 1 to 400 rows that only one of the two gets right",
        head,
        rows,
    )


def _power(random: np.random.RandomState, number: int) -> None:
    rows = []
    for size in SIZES:
        for gain in GAINS[size]:
            counts = pairs(random, (number, size), TYPICAL[size], gain)
            rates = [f"{rate(test, counts):.1%}" for test in (naive, exact)]
            rows.append([f"{size:,}", f"+{100 * gain:.1f} points", *rates])
    head = ["Test rows", "Real improvement", "One more right answer", "`better`"]
    _table(f"Promoted of {number:,} pairs whose candidate is better", head, rows)


def _margins(random: np.random.RandomState, number: int) -> None:
    rows = []
    for size in SIZES:
        for margin in MARGINS[size]:
            same = pairs(random, (number, size), TYPICAL[size])
            worse = pairs(random, (number, size), TYPICAL[size] + margin, -margin)
            rates = [f"{not_worse(counts, margin):.1%}" for counts in (worse, same)]
            rows.append([f"{size:,}", f"{margin}", *rates])
    head = ["Test rows", "margin", "Worse by the margin", "Equally good"]
    _table(f"Promoted of {number:,} pairs by `not_worse`", head, rows)


def slices(random: np.random.RandomState, number: int, cuts: int, loss: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows that one of two models gets right, on 10 slices of each of `cuts` ways to divide the test rows.

    The ways are independent of each other, and so is each of the slices that a row is in; slices of different ways have
    rows in common.

    Args:
        random: where chance comes from.
        number: how many pairs of models.
        cuts: in how many ways 10,000 rows are divided into slices of about 1,000.
        loss: how much smaller the candidate's chance of a right answer is on the first slice of the first way.

    Returns:
        Rows that only the candidate, and only the champion, gets right: integers of shape (number, 10 * cuts).
    """
    bad, rest = 10_000 // _OF_CUT, 10_000 - 10_000 // _OF_CUT
    lost = pairs(random, (number, bad), TYPICAL[10_000] + loss, -loss)[:, 1:3]
    others = pairs(random, (number, rest), TYPICAL[10_000])[:, 1:3]
    even, of_first = np.full(_OF_CUT, 1 / _OF_CUT), np.full(_OF_CUT - 1, 1 / (_OF_CUT - 1))
    counts = np.empty((2, number, _OF_CUT * cuts), np.int64)
    for pair in range(number):
        for which in range(2):
            total = int(lost[pair, which] + others[pair, which])
            first = [[int(lost[pair, which])], random.multinomial(int(others[pair, which]), of_first)]
            counts[which, pair] = np.concatenate([*first, *(random.multinomial(total, even) for _ in range(cuts - 1))])
    return counts[0], counts[1]


def refused(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for which pairs of `slices` one is worse, without a correction and with it, bool of shape (number,)."""
    p = criteria.exact_p(theirs, ours)
    corrected = np.array([holm.corrected(of_pair) for of_pair in p])
    return (p <= ALPHA).any(axis=1), (corrected <= ALPHA).any(axis=1)


def _slices(random: np.random.RandomState, number: int) -> None:
    rows = []
    for cuts in CUTS:
        rates = [f"{found.mean():.1%}" for found in refused(*slices(random, number, cuts))]
        rows.append([f"{_OF_CUT * cuts}", *rates])
    head = ["Slices of 1,000 rows", "Each at 0.05", "Corrected (Holm)"]
    _table(
        f"Kept from promotion by a slice, of {number:,} pairs of equally good models with 10,000 test rows", head, rows
    )
    rows = []
    for loss in LOSSES:
        rates = [f"{refused(*slices(random, number, cuts, loss))[1].mean():.1%}" for cuts in CUTS]
        rows.append([f"{100 * loss:.1f} points", *rates])
    head = ["Loss on one slice of 1,000 rows", *(f"{_OF_CUT * cuts} slices" for cuts in CUTS)]
    _table(
        f"Kept from promotion by a slice (corrected), of {number:,} pairs whose candidate is worse on one", head, rows
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print(f"{title}:\n")
    for line in (head, ["--:"] * len(head), *rows):
        print("| " + " | ".join(line) + " |")
    print()


if __name__ == "__main__":
    main()
