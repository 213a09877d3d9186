"""A study in Optuna's terms, made anew from the trials whenever it is needed: Optuna keeps nothing.

So what it proposes for a trial depends on the study, on the number of the trial and on the trials before it, and not on
which process asks: a study that was killed goes on as if it had not been.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from storage.datasets.training import CHOICES
from storage.errors import ConfigError
from storage.records import Epoch, Trial
from tasks.tuning.space import Space, Values, combinations, with_effect

if TYPE_CHECKING:
    import optuna

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "halving", "none"]
By = Literal["accuracy", "loss"]

WARM_UP = 5
"""A trial is pruned after an epoch in so many at the earliest (`median`)."""
RUNGS = 16
"""The first rung of successive halving is after an epoch in so many; each later one after 4 times as many."""
FIRST = 5
"""Trials that are complete before the first is pruned (`median`)."""


@dataclass(frozen=True)
class Search:
    """What decides what a study tries, and how it judges that."""

    space: Space
    sampler: Sampler = "tpe"
    pruner: Pruner = "median"
    by: By = "loss"
    seed: int = 1
    """Of the sampler."""
    seeds: int = 1
    """How many trainings each trial has; their seeds count up from that of the configuration."""


def check_installed() -> None:
    """Check that Optuna is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "expected the package optuna, which proposes the trials of a study; found none; install the extra `tune`: "
            f"`{sys.executable} -m pip install 'idxflow[tune]'`"
        )


def score(trial: Trial, by: By) -> float:
    """Return what a complete trial is compared by: the mean over its trainings."""
    return float(np.mean(trial.accuracies if by == "accuracy" else trial.losses))


def is_better(first: float, second: float, by: By) -> bool:
    """Return whether a score is better than another one."""
    return first > second if by == "accuracy" else first < second


def ranked(trials: Iterable[Trial], by: By) -> list[Trial]:
    """Return the complete trials, best first; of equal ones, that with the lower loss."""
    sign = -1 if by == "accuracy" else 1
    complete = (trial for trial in trials if trial.state == "complete")
    return sorted(complete, key=lambda trial: (sign * score(trial, by), float(np.mean(trial.losses)), trial.number))


class Proposals:
    """What a study tries.

    Args:
        space: of the study.
        sampler: `tpe` (J. Bergstra and others: Algorithms for Hyper-Parameter Optimization, NIPS 2011), `random`, or
            `grid`: all combinations in a random order.
        by: what trials are compared by.
        seed: with the same one, the same is proposed.
        usual: the optimizer and the schedule, where the space does not have them.

    Raises:
        ConfigError: the space has no finite grid.
    """

    def __init__(
        self, space: Space, sampler: Sampler, by: By, seed: int, usual: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._space, self._sampler, self._by, self._seed, self._usual = space, sampler, by, seed, usual
        self._grid = self._shuffled(self._combinations()) if sampler == "grid" else None

    @property
    def count(self) -> int | None:
        """How many trials there can be, with that of the configuration before the search; None: any number."""
        return None if self._grid is None else 1 + len(self._grid)

    def values(self, number: int, trials: Iterable[Trial], under_way: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the values of the parameters of a trial.

        Args:
            number: of the trial, from 1.
            trials: those that have ended, in the order of their numbers.
            under_way: the values of those that are being carried out.
        """
        if self._grid is not None:
            return self._grid[number - 1]
        with _quietly() as optuna:
            study = _study(optuna, self._by, sampler=self._optuna_sampler(optuna, number, bool(under_way)))
            for trial in trials:
                if _is_within(trial.values, self._space):
                    study.add_trial(_frozen(optuna, trial, self._space, self._by))
            for values in under_way:
                if _is_within(values, self._space):
                    running = optuna.trial.TrialState.RUNNING
                    study.add_trial(optuna.trial.create_trial(state=running, **_placed(optuna, values, self._space)))
            return self._proposed(study.ask())

    def _proposed(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return a value for each parameter that has an effect, in the order of the space."""
        found: dict[str, Any] = {}
        # The others depend on the choice of an optimizer and a schedule.
        for name in sorted(self._space, key=lambda name: name not in CHOICES):
            if with_effect({**found, name: None}, self._usual).keys() > found.keys():
                found[name] = _suggested(trial, self._space[name])
        return {name: found[name] for name in self._space if name in found}

    def _combinations(self) -> list[dict[str, Any]]:
        """Return what is left of all combinations: some differ only in what has no effect."""
        kept = (with_effect(values, self._usual) for values in combinations(self._space))
        return [*{json.dumps(values): values for values in kept}.values()]

    def _optuna_sampler(self, optuna: Any, number: int, beside_others: bool) -> Any:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        if self._sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        # Otherwise it would propose for several at a time almost the same.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=beside_others)

    def _shuffled(self, grid: list[dict[str, Any]]) -> list[dict[str, Any]]:
        order = np.random.Generator(np.random.PCG64(self._seed)).permutation(len(grid))
        return [grid[place] for place in order]


class Judge:
    """Tells after each epoch of the first training of a trial, in their order, whether it is not worth going on.

    Args:
        pruner: `median`: ends a trial that is worse after an epoch than the median of the complete ones was after it;
            `halving`: goes on with the best quarter after 1/16 and 1/4 of the epochs (L. Li and others: A System for
            Massively Parallel Hyperparameter Tuning, MLSys 2020); `none`.
        by: what is compared on the held-out rows.
        epochs: the most that a training has.
        trials: those that have ended.
    """

    def __init__(self, pruner: Pruner, by: By, epochs: int, trials: Sequence[Trial]) -> None:
        self._by = by
        self._trial: Any = None
        if pruner == "none":
            return
        with _quietly() as optuna:
            study = _study(optuna, by, pruner=_pruner(optuna, pruner, epochs))
            for trial in trials:
                study.add_trial(_frozen(optuna, trial, {}, by))
            self._trial, self._study = study.ask(), study

    def __call__(self, epoch: Epoch) -> bool:
        if not self._trial:
            return False
        with _quietly():
            self._trial.report(of_epoch(epoch, self._by), epoch.epoch)
            return bool(self._trial.should_prune())

    @property
    def notes(self) -> dict[str, Any]:
        """What a later judge needs to know of this trial."""
        return dict(self._study.trials[-1].system_attrs) if self._trial else {}


def of_epoch(epoch: Epoch, by: By) -> float:
    """Return what trials are compared by, after an epoch."""
    value = epoch.validation_accuracy if by == "accuracy" else epoch.validation_loss
    assert value is not None, "a study has held-out rows"  # noqa: S101
    return value


def importance(trials: Sequence[Trial], space: Space, by: By) -> dict[str, float]:
    """Return the share of each parameter in how good trials are, most important first; empty with too few trials.

    By PED-ANOVA (S. Watanabe, A. Bansal, F. Hutter: PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
    Arbitrary Subspaces, IJCAI 2023), which asks what sets the best tenth of the trials apart. It takes no library that
    the others of Optuna do.
    """
    within = [trial for trial in trials if trial.state == "complete" and _is_within(trial.values, space)]
    if len(within) < 2 * FIRST:
        return {}
    with _quietly() as optuna:
        study = _study(optuna, by)
        for trial in within:
            study.add_trial(_frozen(optuna, trial, space, by))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items() if np.isfinite(share)}


@contextmanager
def _quietly() -> Iterator[Any]:
    """Yield Optuna, which neither logs nor warns of what is experimental meanwhile."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield optuna
        finally:
            optuna.logging.set_verbosity(before)


def _study(module: Any, by: By, **how: Any) -> optuna.Study:
    direction = "maximize" if by == "accuracy" else "minimize"
    study: optuna.Study = module.create_study(direction=direction, **how)
    return study


def _pruner(optuna: Any, pruner: Pruner, epochs: int) -> Any:
    if pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=epochs // WARM_UP)
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // RUNGS), reduction_factor=4)


def _distribution(optuna: Any, values: Values) -> Any:
    distributions = optuna.distributions
    if values.choices:
        return distributions.CategoricalDistribution(values.texts)
    if values.whole:
        return distributions.IntDistribution(values.low, values.high, log=values.log, step=int(values.step or 1))
    return distributions.FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def _is_within(values: Mapping[str, Any], space: Space) -> bool:
    """Return whether these are values of the space; the configuration before the search need not be."""
    return all(name in space and space[name].has(value) for name, value in values.items())


def _placed(optuna: Any, values: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Return values of a space as Optuna's trials have them."""
    return {
        "params": {name: json.dumps(value) if space[name].choices else value for name, value in values.items()},
        "distributions": {name: _distribution(optuna, space[name]) for name in values},
    }


def _suggested(trial: optuna.Trial, values: Values) -> Any:
    if values.choices:
        return json.loads(trial.suggest_categorical(values.name, values.texts))
    if values.whole:
        step = int(values.step or 1)
        return trial.suggest_int(values.name, int(values.low), int(values.high), log=values.log, step=step)
    return trial.suggest_float(values.name, values.low, values.high, log=values.log, step=values.step)


def _frozen(optuna: Any, trial: Trial, space: Space, by: By) -> Any:
    """Return a trial that has ended as Optuna's. One that failed counts as one that was not worth going on."""
    complete = trial.state == "complete"
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
        value=score(trial, by) if complete else None,
        **(_placed(optuna, trial.values, space) if space else {}),
        intermediate_values={epoch: value for epoch, value in enumerate(trial.curve, 1) if np.isfinite(value)},
        system_attrs=dict(trial.notes),
    )
