"""The paired comparison against published and hand-computed numbers, and what the gate makes of it."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy

from benchmarks import gate_simulation as simulation
from storage.datasets.manifest import Gate
from storage.records import ClassScore, Evaluation, FolderEntry
from tasks.gate import criteria

BENTUR = (1, 1, 7, 12)
"""Airway hyper-responsiveness before and after: the example of Fagerland, Lydersen, Laake (2014), table 1."""


def test_counts_of_a_table_by_hand():
    labels = np.array([0, 0, 1, 1, 2, 2, 2], np.uint8)
    candidate = np.array([0, 0, 1, 0, 2, 1, 0], np.uint8)
    champion = np.array([0, 1, 1, 1, 0, 1, 1], np.uint8)
    comparison = criteria.paired(labels, candidate, champion)
    counts = (
        comparison.rows,
        comparison.both_right,
        comparison.only_candidate,
        comparison.only_champion,
        comparison.both_wrong,
    )
    assert counts == (7, 2, 2, 1, 2)
    # Row 6: both wrong, each in its own way.
    assert (comparison.differing, comparison.net, comparison.difference) == (4, 1, 1 / 7)
    assert comparison.p_better == pytest.approx(0.5)
    assert comparison.p_value == pytest.approx(2 * (0.5 - 0.375 / 2))


def test_published_numbers():
    comparison = criteria.compared(BENTUR, 8, alpha=0.025)
    assert comparison.confidence == pytest.approx(0.95)
    assert comparison.p_value == pytest.approx(0.0391, abs=5e-5)
    assert 2 * criteria.exact_p(7, 1) == pytest.approx(0.0703, abs=5e-5)
    assert (comparison.low, comparison.high) == pytest.approx((-0.507, -0.026), abs=5e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(0, 0), (1, 0), (0, 3), (5, 0), (9, 2), (50, 50), (152, 147), (90, 70), (900, 700)]
)
def test_p_values_are_those_of_the_binomial_test(ours: int, theirs: int):
    total = ours + theirs
    expected = scipy.stats.binomtest(ours, total, 0.5, alternative="greater").pvalue if total else 1.0
    assert criteria.exact_p(ours, theirs) == pytest.approx(expected, rel=1e-12)
    half = Fraction(math.comb(total, ours), 2 ** (total + 1))
    assert criteria.one_sided_mid_p(ours, theirs) == pytest.approx(expected - float(half), rel=1e-9)
    assert criteria.mid_p(ours, theirs) == criteria.mid_p(theirs, ours) <= 1
    if ours == theirs:
        assert criteria.mid_p(ours, theirs) == pytest.approx(1)


@pytest.mark.parametrize(
    "table", [(10, 0, 0, 0), (0, 0, 0, 10), (0, 10, 0, 0), (0, 0, 10, 0), (5, 0, 0, 5), (9_700, 31, 0, 269)]
)
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_an_interval_holds_its_difference_whatever_the_table(table: criteria.Table, confidence: float):
    low, high = criteria.interval(table, confidence)
    difference = (table[1] - table[2]) / sum(table)
    assert -1 <= low <= difference <= high <= 1
    mirrored = criteria.interval((table[0], table[2], table[1], table[3]), confidence)
    assert mirrored == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("lengths", [(3, 3, 2), (3, 2, 3), (2, 3, 3), (0, 0, 0)])
def test_answers_to_other_rows_are_refused(lengths: tuple[int, int, int]):
    with pytest.raises(ValueError, match="same test rows"):
        criteria.paired(*(np.zeros(n, np.uint8) for n in lengths))


BETTER, NOT_WORSE = Gate("better", 0.05), Gate("not_worse", 0.05, margin=0.005)
DECISIONS = [
    (
        BETTER,
        (9_600, 100, 69, 231),
        True,
        "31 more of 10,000 test images right than the champion, beyond luck (p 0.01)",
    ),
    (
        BETTER,
        (9_600, 100, 79, 221),
        False,
        "21 more of 10,000 test images right than the champion, which may be luck (p 0.067 > 0.05)",
    ),
    (
        BETTER,
        (9_600, 400, 0, 0),
        True,
        "400 more of 10,000 test images right than the champion, beyond luck (p < 0.0001)",
    ),
    (BETTER, (9_600, 80, 80, 240), False, "as many of 10,000 test images right as the champion"),
    (BETTER, (9_600, 69, 100, 231), False, "31 fewer of 10,000 test images right than the champion"),
    (BETTER, (350, 4, 0, 6), False, "which may be luck (p 0.062 > 0.05)"),
    (BETTER, (350, 5, 0, 5), True, "beyond luck (p 0.031)"),
    (Gate("ask", 0.05), (350, 5, 0, 5), True, "beyond luck (p 0.031)"),
    (Gate("better", 0.01), (350, 5, 0, 5), False, "which may be luck (p 0.031 > 0.01)"),
    (Gate("better", 0.07), (9_600, 91, 70, 239), True, "beyond luck (p 0.057)"),
    (
        NOT_WORSE,
        (9_600, 80, 80, 240),
        True,
        "as many of 10,000 test images right as the champion; it may be 0.21 points worse, and 0.50 points",
    ),
    (
        NOT_WORSE,
        (9_600, 70, 90, 240),
        True,
        "20 fewer of 10,000 test images right than the champion; it may be 0.41 points worse, and 0.50",
    ),
    (NOT_WORSE, (9_600, 50, 90, 260), False, "it may be 0.60 points worse, and only 0.50 points worse are allowed"),
    (NOT_WORSE, (350, 3, 3, 4), False, "it may be 1.40 points worse, and only 0.50 points worse are allowed"),
    (
        Gate("not_worse", 0.05, 0.0),
        (350, 9, 0, 1),
        True,
        "9 more of 360 test images right than the champion; it is at least ",
    ),
]


@pytest.mark.parametrize(("settings", "table", "passed", "phrase"), DECISIONS)
def test_policies(settings: Gate, table: criteria.Table, passed: bool, phrase: str):
    comparison = criteria.compared(table, table[1] + table[2], settings.alpha)
    assert criteria.replaces(settings, comparison) is passed
    assert phrase in criteria.sentence(settings, comparison)
    rule = criteria.difference_rule(settings, comparison, "v6")
    assert rule.passed is passed
    assert "champion v6" in rule.name
    assert f"{comparison.rows:,} test images right (only the candidate {comparison.only_candidate:,}" in rule.observed


@pytest.mark.parametrize("policy", ["better", "not_worse", "ask"])
def test_the_same_answers_never_replace(policy: str):
    settings = Gate(policy, margin=1.0)  # type: ignore[arg-type]
    comparison = criteria.compared((350, 0, 0, 10), differing=0)
    assert not criteria.replaces(settings, comparison)
    assert (
        criteria.sentence(settings, comparison)
        == "the same answers on all 360 test rows, so there is nothing to choose"
    )
    assert not criteria.difference_rule(settings, comparison, "v6").passed


@pytest.mark.parametrize("excess", [1e-4, 1e-7, 1e-12])
def test_a_p_value_is_never_shown_on_the_wrong_side_of_alpha(excess: float):
    comparison = criteria.compared((350, 5, 0, 5), 5)
    settings = Gate("better", comparison.p_better * (1 - excess))
    assert not criteria.replaces(settings, comparison)
    shown = criteria.sentence(settings, comparison).split("p ")[1].split(" > ")[0]
    assert float(shown) > settings.alpha


def scores(*recalls: float | None) -> Evaluation:
    classes = tuple(
        ClassScore(n, f"class {n}", 0 if recall is None else 20, 1.0, recall or 0.0, 1.0)
        for n, recall in enumerate(recalls)
    )
    return Evaluation(FolderEntry(Path()), "w", "t", 100, 90, 0.9, 0.8, 1.0, 0.1, classes, (), ())


@pytest.mark.parametrize(
    ("candidate", "champion", "limit", "passed", "observed"),
    [
        ((1.0, 0.9), (0.9, 0.95), 0.05, True, "5.00 points (class class 1)"),
        ((1.0, 0.85), (0.9, 0.95), 0.05, False, "10.00 points (class class 1)"),
        ((1.0, 0.0), (0.9, 1.0), 1.0, True, "100.00 points (class class 1)"),
        ((0.95, 0.9), (0.9, 0.85), 0.0, True, "none"),
        ((None, 0.9), (None, 0.9), 0.0, True, "none"),
    ],
)
def test_loss_of_a_class(candidate: tuple, champion: tuple, limit: float, passed: bool, observed: str):
    rule = criteria.class_rule(Gate(max_class_loss=limit), scores(*candidate), scores(*champion))
    assert (rule.passed, observed in rule.observed) == (passed, True), rule


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05, 0.1, 0.3, 0.49])
def test_no_number_of_rows_lets_an_equal_model_pass_more_often_than_alpha(alpha: float):
    """Computed, not drawn: true of the exact test, and the reason why it is not the mid-p test that decides."""
    assert simulation.worst(lambda ours, theirs: simulation.exact(ours, theirs, alpha), 120)[0] <= alpha
    if alpha >= 0.01:
        assert simulation.worst(lambda ours, theirs: simulation.mid_p(ours, theirs, alpha), 120)[0] > alpha


@pytest.mark.parametrize("rows", simulation.SIZES)
def test_drawn_pairs_of_equally_good_models(rows: int):
    random, number = np.random.default_rng(4), 2000
    counts = simulation.pairs(random, (number, rows), disagreement=0.03)
    assert counts.sum(axis=1).tolist() == [rows] * number
    tolerance = 3 * math.sqrt(0.05 * 0.95 / number)
    assert simulation.rate(simulation.exact, counts) <= 0.05 + tolerance
    assert simulation.rate(simulation.naive, counts) > 0.35


def test_drawn_pairs_of_which_one_is_better_or_worse():
    random = np.random.default_rng(4)
    better = simulation.pairs(random, (500, 10_000), disagreement=0.03, gain=0.005)
    assert (better[:, 1] - better[:, 2]).mean() == pytest.approx(50, abs=3)
    assert simulation.rate(simulation.exact, better) > 0.8
    worse = simulation.pairs(random, (300, 10_000), disagreement=0.035, gain=-0.005)
    assert simulation.rate(simulation.exact, worse) == 0
    assert simulation.not_worse(worse, margin=0.005) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_the_documentation_shows_what_the_simulation_prints(capsys: pytest.CaptureFixture[str]):
    simulation._equally_good(np.random.RandomState(20), 1000)
    printed = capsys.readouterr().out.strip()
    document = Path(__file__).resolve().parents[2] / "docs" / "gate.md"
    assert printed in document.read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [1e-300, 1e-17, 1e-16, 1e-15])
def test_an_interval_that_is_almost_sure_is_wider_than_a_less_sure_one(error: float):
    low, high = criteria.interval((340, 10, 5, 5), 1 - error)
    wide, high_end = criteria.interval((340, 10, 5, 5), 1 - 1e-13)
    assert -1 <= low < wide < high_end < high <= 1
