"""Repeated decisions on the same test images: the error budget they share, and what an accuracy is worth after them.

Each decision is another chance for luck. The budget bounds the probability that any of them promotes a model that is no
better: each gets a part of it as its alpha, and the probabilities add up to at most the whole, however much the models
and the decisions depend on each other (Bonferroni's inequality). Pure: no input or output.

Source of the simultaneous intervals: O. J. Dunn 1961, Journal of the American Statistical Association 56, 52-64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from storage.datasets.catalog import Dataset
from storage.records import Rule
from storage.words import counted
from tasks.gate import wilson

REMEDY = "use other test images, promote by hand, or raise alpha_budget"
"""What to do when nothing is left of an error budget."""
_NOTHING = 1e-9
"""The share of a budget that is left over by rounding."""


@dataclass(frozen=True)
class Budget:
    """The error budget of one test split, before a decision."""

    total: float
    """Largest probability that any decision on the split promotes a model that is no better."""
    decisions: int
    """How many decisions share it."""
    alpha: float
    """The most that one decision may take."""
    spent: float = 0.0
    """What earlier decisions on the split have taken."""

    @property
    def is_used_up(self) -> bool:
        return self._left <= _NOTHING * self.total

    @property
    def in_force(self) -> float:
        """The alpha of the next decision. If nothing is left, as if it were, to compare the models all the same."""
        share = min(self.alpha, self.total / self.decisions)
        return share if self.is_used_up else min(share, self._left)

    @property
    def left(self) -> int:
        """The number of decisions that are left."""
        return 0 if self.is_used_up else math.ceil(self._left / self.in_force - _NOTHING)

    @property
    def is_low(self) -> bool:
        """Whether at most a tenth of the decisions is left."""
        return self.left <= max(1, self.decisions // 10)

    @property
    def cost(self) -> float:
        """What a decision takes, if the answers of the two models differ."""
        return 0.0 if self.is_used_up else self.in_force

    def after(self) -> Budget:
        """Return the budget after one more decision."""
        return dataclasses.replace(self, spent=self.spent + self.cost)

    @property
    def _left(self) -> float:
        return self.total - self.spent


def budget(limits: Mapping[str, float], past: Iterable[Mapping[str, Any]], test_digest: str) -> Budget | None:
    """Return the error budget of a test split, or None if the gate has none.

    Args:
        limits: the settings of the gate, as a `Decision` has them.
        past: the decisions so far, as `Registry.decisions` returns them.
        test_digest: content digest of the test split.
    """
    if "alpha_budget" not in limits:
        return None
    spent = math.fsum(values.get("spent") or 0.0 for values in past if values.get("test_digest") == test_digest)
    return Budget(limits["alpha_budget"], int(limits["budget_decisions"]), limits["alpha"], spent)


def governed(dataset: Dataset, budget: Budget | None) -> Dataset:
    """Return `dataset` with the alpha that its gate has for the next decision."""
    if budget is None:
        return dataset
    return dataclasses.replace(dataset, gate=dataclasses.replace(dataset.gate, alpha=budget.in_force))


def rule(budget: Budget) -> Rule:
    """Return the rule that something must be left for this decision."""
    limit = f"at most {budget.total:.6g} for all decisions on them, {budget.in_force:.6g} for each"
    left = "no decision" if budget.is_used_up else counted(budget.left, "decision")
    observed = f"{budget.spent:.4g} spent before, {left} left"
    return Rule("error budget of these test images", limit, observed, not budget.is_used_up)


def remark(budget: Budget) -> str:
    """Return what this decision leaves of the budget; if it is used up, also what to do."""
    if budget.is_used_up:
        return used_up(budget)
    left = budget.after().left
    return f"the error budget allows {left or 'no'} more decision{'' if left == 1 else 's'}"


def remaining(budget: Budget) -> str:
    """Return how many decisions are left."""
    return (
        f"{counted(budget.left, 'decision')} of the error budget of these test images left ({budget.spent:.4g} of "
        f"{budget.total:.6g} spent)"
    )


def used_up(budget: Budget) -> str:
    """Return that the rules promote nothing any more, and what to do."""
    return (
        f"the error budget of these test images is used up ({budget.spent:.4g} of {budget.total:.6g}), so the rules "
        f"promote nothing: {REMEDY}"
    )


def count(past: Iterable[Mapping[str, Any]], test_digest: str) -> int:
    """Return how many of the ledger's decisions were made on the test split with this content digest."""
    return sum(values.get("test_digest") == test_digest for values in past)


@dataclass(frozen=True)
class Worth:
    """An accuracy on test images that several decisions have used. All but `decisions` are in [0, 1]."""

    accuracy: float
    low: float
    """Lower end of the 95 % Wilson interval, as if there had been no choice among models."""
    high: float
    decisions: int
    """On these test images so far."""
    adjusted_low: float
    """Lower end of the interval that allows for the choice: with 95 % confidence, those of all models are right."""
    adjusted_high: float
    sentence: str
    """Empty after one decision, when both intervals are the same."""


def worth(correct: int, rows: int, decisions: int) -> Worth:
    """Return what the accuracy of the champion is worth, the best of the models of so many decisions.

    A champion was chosen for its score on the same images, so its luck there stays with it. Intervals for all models at
    once, each with confidence 1 - 0.05 / `decisions`, hold for the chosen one too, however it was chosen (Dunn 1961).

    Args:
        correct: how many of the test images the champion gets right.
        rows: how many test images there are, at least one.
        decisions: on the same test images; less than 1 counts as 1.
    """
    made, error = max(1, decisions), 1 - wilson.CONFIDENCE
    low, high = wilson.interval(correct, rows)
    ends = (low, high) if made == 1 else wilson.interval(correct, rows, 1 - error / made)
    sentence = "" if made == 1 else _worth(correct / rows, made, ends)
    return Worth(correct / rows, low, high, made, *ends, sentence)


def _worth(accuracy: float, decisions: int, ends: tuple[float, float]) -> str:
    return (
        f"The champion's {accuracy:.2%} is the score of a model chosen in {decisions:,} decisions on the same test "
        f"images, so it is likely a little too high; allowing for the choice, the 95% interval is {ends[0]:.2%} to "
        f"{ends[1]:.2%}."
    )
