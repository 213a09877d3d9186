"""Many decisions on the same test images: the error budget, the adjusted interval, and a simulated year of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy

from benchmarks import gate_simulation as simulation
from tasks.gate import looks
from tasks.gate.looks import Budget

LIMITS = {"alpha": 0.05, "alpha_budget": 0.1, "budget_decisions": 4.0}


def spend(budget: Budget, most: int = 1000) -> list[float]:
    """Return the alphas of the decisions until nothing is left."""
    alphas: list[float] = []
    while not budget.is_used_up and len(alphas) < most:
        alphas.append(budget.in_force)
        left, budget = budget.left, budget.after()
        assert budget.left == left - 1
    return alphas


@pytest.mark.parametrize("total", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("decisions", [1, 3, 52, 365])
def test_a_budget_is_for_as_many_decisions_as_the_manifest_says_and_no_rounding_adds_one(total: float, decisions: int):
    alphas = spend(Budget(total, decisions, 0.4))
    assert len(alphas) == decisions
    assert math.fsum(alphas) == pytest.approx(total, rel=1e-12)
    assert max(alphas) == total / decisions


def test_no_decision_takes_more_than_alpha_so_a_smaller_alpha_makes_the_budget_last():
    assert spend(Budget(0.1, 4, alpha=0.01)) == pytest.approx([0.01] * 10)


def test_after_a_change_of_the_keys_the_last_decision_takes_what_is_left():
    assert spend(Budget(0.1, 4, 0.05, spent=0.06)) == pytest.approx([0.025, 0.015])
    assert spend(Budget(0.2, 4, 0.05, spent=0.1)) == pytest.approx([0.05, 0.05])
    # Lowered below what was spent.
    assert spend(Budget(0.05, 4, 0.05, spent=0.06)) == []


def test_what_is_used_up_costs_nothing_and_still_has_an_alpha_to_compare_by():
    budget = Budget(0.1, 4, 0.05, spent=0.1)
    assert (budget.is_used_up, budget.left, budget.cost, budget.in_force) == (True, 0, 0.0, 0.025)
    assert budget.after() == budget
    assert not looks.rule(budget).passed


@pytest.mark.parametrize(("decisions", "left"), [(52, 5), (10, 1), (3, 1), (365, 36)])
def test_it_is_low_at_a_tenth(decisions: int, left: int):
    share = 0.05 / decisions
    assert Budget(0.05, decisions, 0.05, spent=share * (decisions - left)).is_low
    assert not Budget(0.05, decisions, 0.05, spent=share * (decisions - left - 1)).is_low


def test_only_decisions_on_the_same_test_split_count_and_those_of_older_records_took_nothing():
    past = [
        {"test_digest": "today", "spent": 0.025},
        {"test_digest": "before", "spent": 0.025},
        {"test_digest": "today"},
        {"outcome": "forced"},
        {"test_digest": "today", "spent": 0.05},
    ]
    budget = looks.budget(LIMITS, past, "today")
    assert budget
    assert budget.spent == pytest.approx(0.075)
    assert (budget.left, looks.count(past, "today")) == (1, 3)
    assert looks.budget(LIMITS, past, "another") == Budget(0.1, 4, 0.05)
    assert looks.budget({"alpha": 0.05}, past, "today") is None


@pytest.mark.parametrize(
    ("budget", "remark"),
    [
        (Budget(0.1, 4, 0.05), "the error budget allows 3 more decisions"),
        (Budget(0.1, 4, 0.05, 0.05), "the error budget allows 1 more decision"),
        (Budget(0.1, 4, 0.05, 0.075), "the error budget allows no more decisions"),
        (
            Budget(0.1, 4, 0.05, 0.1),
            "the error budget of these test images is used up (0.1 of 0.1), so the rules promote nothing: use other "
            "test images, promote by hand, or raise alpha_budget",
        ),
    ],
)
def test_what_is_left_is_said(budget: Budget, remark: str):
    assert looks.remark(budget) == remark


def test_after_one_decision_both_intervals_are_the_same_and_nothing_is_said():
    worth = looks.worth(9_632, 10_000, 1)
    assert (worth.low, worth.high) == (worth.adjusted_low, worth.adjusted_high)
    assert worth.sentence == ""
    assert looks.worth(9_632, 10_000, 0) == worth


@pytest.mark.parametrize("decisions", [2, 5, 52])
def test_the_adjusted_interval_is_wilson_s_at_the_confidence_of_bonferroni(decisions: int):
    worth = looks.worth(349, 360, decisions)
    plain, adjusted = (
        scipy.stats.binomtest(349, 360).proportion_ci(1 - 0.05 / k, method="wilson") for k in (1, decisions)
    )
    assert (worth.low, worth.high) == pytest.approx((plain.low, plain.high), abs=1e-12)
    assert (worth.adjusted_low, worth.adjusted_high) == pytest.approx((adjusted.low, adjusted.high), abs=1e-12)
    assert worth.adjusted_low < worth.low < worth.accuracy < worth.high < worth.adjusted_high
    assert f"chosen in {decisions} decisions" in worth.sentence
    assert f"{worth.adjusted_low:.2%} to {worth.adjusted_high:.2%}" in worth.sentence


def test_the_published_quantiles_of_bonferroni_are_met():
    """As tabulated by Dunn 1961: z for 95 % in all of m intervals, unlimited degrees of freedom."""
    for m, z in ((2, 2.24), (5, 2.58), (10, 2.81), (20, 3.02), (50, 3.29)):
        worth = looks.worth(5_000, 10_000, m)
        half = (worth.adjusted_high - worth.adjusted_low) / 2
        # Wilson's interval of one half has no other term than z.
        assert half / math.sqrt(0.25 / 10_000 - half**2 / 10_000) == pytest.approx(z, abs=0.005)


YEARS = 400


def test_a_simulated_year_keeps_to_what_is_promised():
    random, shape = np.random.RandomState(4), (YEARS, 10_000)
    found = {name: simulation.year(random, shape, alphas) for name, alphas in simulation.RULES.items()}
    share = {name: (year.by_luck > 0).mean() for name, year in found.items()}
    assert share["alpha_budget 0.05"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / YEARS)
    assert share["One more right answer"] > 0.9
    assert 0.3 < share["alpha 0.05"] < 0.6
    inflation = [found[name].inflation.mean() for name in ("One more right answer", "alpha 0.05", "alpha_budget 0.05")]
    assert inflation[0] > inflation[1] > inflation[2] > -0.001
    one_more = found["One more right answer"].right
    assert simulation.coverage(one_more, 10_000, 1) < 0.9
    assert simulation.coverage(one_more, 10_000, simulation.LOOKS + 1) > 0.95


def test_a_model_that_is_really_better_gets_through():
    random, even = np.random.RandomState(4), simulation.RULES["alpha_budget 0.05"]
    late = simulation.year(random, (100, 10_000), even, 0.01, simulation.BETTER_AT)
    assert late.better.mean() > 0.9
    assert not simulation.year(random, (100, 10_000), even, 0.0, simulation.BETTER_AT).better.any()


@pytest.mark.parametrize("disagreement", simulation.TYPICAL.values())
def test_difficulties_give_the_accuracy_and_the_disagreement_that_they_are_made_for(disagreement: float):
    chances, shares = simulation._difficulties(disagreement)
    assert shares.min() > 0
    assert (shares.sum(), shares @ chances) == pytest.approx((1, simulation.ACCURACY))
    assert shares @ (2 * chances * (1 - chances)) == pytest.approx(disagreement)


def test_counts_of_rows_are_distributed_as_answers_are():
    """The reduction in `year`: answers drawn for each row, and the counts drawn at once, promote equally often."""
    random, years, rows = np.random.RandomState(5), 600, 360
    chances, shares = simulation._difficulties(simulation.TYPICAL[rows])
    lucky = np.zeros(years, bool)
    for year in range(years):
        chance = random.choice(chances, rows, p=shares)
        champion = random.random_sample(rows) < chance
        for _ in range(10):
            candidate = random.random_sample(rows) < chance
            ours, theirs = int((candidate & ~champion).sum()), int((champion & ~candidate).sum())
            if ours > theirs + 2:
                lucky[year], champion = True, candidate
    counted = np.zeros(years, bool)
    of_each = random.multinomial(rows, shares, size=years)
    right = random.binomial(of_each, chances)
    for _ in range(10):
        gained, lost = random.binomial(of_each - right, chances), random.binomial(right, 1 - chances)
        ahead = gained.sum(axis=1) > lost.sum(axis=1) + 2
        counted |= ahead
        right = np.where(ahead[:, None], right + gained - lost, right)
    spread = math.sqrt(lucky.mean() * (1 - lucky.mean()) * 2 / years)
    assert abs(lucky.mean() - counted.mean()) < 3.5 * spread


def test_the_documentation_shows_what_the_simulation_prints(capsys: pytest.CaptureFixture[str]):
    simulation._spending(np.random.RandomState(20), 2_000)
    printed = capsys.readouterr().out.strip()
    root = Path(__file__).resolve().parents[2]
    assert printed in (root / "docs" / "decisions" / "gate-statistics.md").read_text(encoding="utf-8")
