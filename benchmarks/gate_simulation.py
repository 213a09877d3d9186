"""How often the gate promotes a model that is no better, and how often one that is.

python -m benchmarks.gate_simulation

Prints the tables of docs/gate.md. Each pair of models is drawn as its counts on the test rows: both right, only one,
neither. If a row's difficulty is drawn for each row anew and both models answer it by chance, those counts are
multinomial, so nothing is lost by drawing them at once. Shares of rows that only one model has right, as found between
two seeds of one profile: 1.5% on digits (360 rows), 3% on MNIST (10,000 rows); better models differ less.

The tables of a year are of 52 candidates that are compared with the champion one after another, on the same rows. There
the rows have difficulties, the chance that a model gets a row right, which all models share, and the champion's luck
stays with it. See `year`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from storage.datasets.manifest import Gate
from tasks.gate import criteria, holm, looks

Test = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes the rows that only the candidate, and only the champion, gets right; says whether it promotes."""

ALPHA = 0.05
ACCURACY = 0.96
SIZES = (360, 10_000)
DISAGREEMENTS = (0.005, 0.015, 0.03, 0.06)
GAINS = {360: (0.001, 0.005, 0.01, 0.02, 0.03), 10_000: (0.001, 0.002, 0.003, 0.004, 0.005)}
MARGINS = {360: (0.005, 0.01, 0.02, 0.03), 10_000: (0.001, 0.0025, 0.005, 0.01)}
TYPICAL = {360: 0.015, 10_000: 0.03}
LOOKS = 52
BUDGET = 0.05
BETTER_AT = 26
IMPROVEMENTS = (0.003, 0.005, 0.01)
OPEN = (0.9, 0.7, 0.5, 0.3)
"""The difficulties of rows that some models get right and some wrong, equally many of each."""

Alphas = Callable[[int], float]
"""Takes the number of a decision, from 1; returns its alpha. 1: one more right answer suffices."""

RULES: dict[str, Alphas] = {
    "One more right answer": lambda look: 1.0,
    "alpha 0.05": lambda look: 0.05,
    "alpha 0.01": lambda look: 0.01,
    "alpha_budget 0.2": lambda look: 0.2 / LOOKS,
    "alpha_budget 0.05": lambda look: BUDGET / LOOKS,
}
SPENDING: dict[str, Alphas] = {
    "Equal parts": RULES["alpha_budget 0.05"],
    "6/(π² k²)": lambda look: BUDGET * 6 / (np.pi * look) ** 2,
}
"""Ways to spend the budget."""
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


@dataclass(frozen=True)
class Year:
    """What happened in simulated years; arrays of shape (years,)."""

    by_luck: np.ndarray
    """How many candidates that are no better were promoted."""
    better: np.ndarray
    """Whether the one that is better was promoted when it came."""
    inflation: np.ndarray
    """The champion's accuracy at the end of the year less its expected one on the same rows, as a share."""
    right: np.ndarray
    """How many rows the champion gets right then."""


def year(
    random: np.random.RandomState, shape: tuple[int, int], alphas: Alphas, gain: float = 0.0, candidates: int = LOOKS
) -> Year:
    """Simulate years of candidates that are compared with the champion on the same rows.

    A model gets a row right with a probability that depends on the row alone. So of the rows of one difficulty, only
    the number that the champion gets right matters: how many of these a candidate gets wrong, and how many of the
    others right, is binomial, whatever was drawn before. Nothing is lost by drawing counts instead of answers.

    Args:
        random: where chance comes from.
        shape: how many years, and how many test rows.
        alphas: the alpha of each decision.
        gain: how much larger the chance of a right answer is for candidate number `BETTER_AT` and, once it is
            champion, for all later ones; a share of the wrong answers becomes right, on rows of any difficulty.
        candidates: how many in a year.
    """
    number, rows = shape
    chances, shares = _difficulties(TYPICAL[rows])
    of_each = random.multinomial(rows, shares, size=number)
    improved = chances + (1 - chances) * gain / (1 - ACCURACY)
    right = random.binomial(of_each, chances)
    lucky, better = np.zeros(number, int), np.zeros(number, bool)
    for look in range(1, candidates + 1):
        is_better = (look == BETTER_AT) & (gain > 0)
        chance = np.where((better | is_better)[:, None], improved, chances)
        gained, lost = random.binomial(of_each - right, chance), random.binomial(right, 1 - chance)
        promoted = exact(gained.sum(axis=1), lost.sum(axis=1), alphas(look))
        right = np.where(promoted[:, None], right + gained - lost, right)
        if is_better:
            better = promoted
        else:
            lucky += promoted
    true = (of_each * np.where(better[:, None], improved, chances)).sum(axis=1)
    shown = right.sum(axis=1)
    return Year(lucky, better, (shown - true) / rows, shown)


def coverage(right: np.ndarray, rows: int, decisions: int) -> float:
    """Return how often the 95 % interval of the champion's accuracy has `ACCURACY`, as a share.

    Args:
        right: of the champion, integers of shape (years,).
        decisions: that the interval allows for; 1 gives the plain one.
    """
    known = {}
    for count in np.unique(right).tolist():
        ends = looks.worth(count, rows, decisions)
        known[count] = ends.adjusted_low <= ACCURACY <= ends.adjusted_high
    return float(np.mean([known[count] for count in right.tolist()]))


def _difficulties(disagreement: float) -> tuple[np.ndarray, np.ndarray]:
    """Return chances of a right answer and the shares of the rows that have them, for models of accuracy `ACCURACY`.

    Two models disagree about `disagreement` of the rows. The rows that are not `OPEN` are sure: right or wrong.
    """
    chances = np.array([*OPEN, 0.0, 1.0])
    each = disagreement / sum(2 * p * (1 - p) for p in OPEN)
    wrong = 1 - ACCURACY - each * sum(1 - p for p in OPEN)
    shares = [*[each] * len(OPEN), wrong]
    return chances, np.array([*shares, 1 - sum(shares)])


def main() -> None:
    """Print the Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, help="pairs of models for each number")
    parser.add_argument("--years", type=int, default=10_000, help="simulated years for each number")
    parser.add_argument("--seed", type=int, default=20)
    asked = parser.parse_args()
    # The numbers of its successor differ between releases of NumPy (NEP 19).
    random = np.random.RandomState(asked.seed)
    _equally_good(random, asked.pairs)
    _limits()
    _power(random, asked.pairs)
    _margins(random, asked.pairs)
    _luck(np.random.RandomState(asked.seed), asked.years)
    _late_power(np.random.RandomState(asked.seed), asked.years)
    _spending(np.random.RandomState(asked.seed), asked.years // 5)
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


def _luck(random: np.random.RandomState, years: int) -> None:
    rows = []
    for size in SIZES:
        for name, alphas in RULES.items():
            found = year(random, (years, size), alphas)
            inflation = f"{max(0.0, 100 * found.inflation.mean()):.2f} points"
            covered = [f"{coverage(found.right, size, decisions):.1%}" for decisions in (1, LOOKS + 1)]
            rows.append([f"{size:,}", name, f"{(found.by_luck > 0).mean():.1%}", inflation, *covered])
    head = ["Test rows", "Rule", "Years with a promotion by luck", "Shown accuracy too high by"]
    head += ["95% interval right", "Adjusted interval right"]
    _table(f"{years:,} years of {LOOKS} candidates that are no better", head, rows)


def _late_power(random: np.random.RandomState, years: int) -> None:
    rows = []
    for size in SIZES:
        for gain in IMPROVEMENTS:
            rates = [f"{year(random, (years, size), of, gain, BETTER_AT).better.mean():.1%}" for of in RULES.values()]
            rows.append([f"{size:,}", f"+{100 * gain:.1f} points", *rates])
    head = ["Test rows", "Real improvement", *RULES]
    _table(f"Candidate {BETTER_AT} of a year is better: promoted in so many of {years:,} years", head, rows)


def _spending(random: np.random.RandomState, years: int) -> None:
    rows = []
    for name, alphas in SPENDING.items():
        none, one = (year(random, (years, 10_000), alphas, gain) for gain in (0.0, 0.005))
        rates = [f"{share.mean():.1%}" for share in (none.by_luck > 0, one.by_luck > 0, one.better)]
        rows.append([name, *(f"{alphas(look):.1g}" for look in (1, BETTER_AT, LOOKS)), *rates])
    names = [f"alpha of decision {look}" for look in (1, BETTER_AT, LOOKS)]
    better = f"candidate {BETTER_AT} is better by 0.5 points"
    head = [
        "Spending",
        *names,
        "Years with a promotion by luck",
        f"the same if {better}",
        f"It is promoted if {better}",
    ]
    _table(f"A budget of {BUDGET} for {LOOKS} decisions, 10,000 test rows, {years:,} years", head, rows)


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
