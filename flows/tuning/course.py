"""A study as far as it has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flows.run import Job
from flows.tuning.request import StudyRequest
from storage.datasets.own_models import Source
from storage.datasets.training import CHOICES
from storage.records import Normalization, Split, Study, Trial, to_json
from tasks.tune import Candidate, configuration
from tasks.tuning.optuna_study import Proposals, Search, ranked, score
from tasks.tuning.space import with_effect


@dataclass
class Course:
    """A study as far as it has come."""

    request: StudyRequest
    job: Job
    search: Search
    study: Study
    split: Split
    normalizations: tuple[Normalization, ...]
    """Of the seed of each training."""
    source: Source | None = None
    """Of the user's own model, if there is one."""
    trials: dict[int, Trial] = field(default_factory=dict)
    """By their numbers."""
    report: str | None = None

    def note(self, trial: Trial) -> Trial:
        """Keep a trial that has ended; return it with its values in the order of the space, which the store forgets."""
        values = {name: trial.values[name] for name in self.search.space if name in trial.values}
        noted = self.trials[trial.number] = replace(trial, values={**values, **trial.values})
        return noted

    @property
    def ended(self) -> list[Trial]:
        """The trials, in the order of their numbers."""
        return [self.trials[number] for number in sorted(self.trials)]

    @property
    def ranking(self) -> list[Trial]:
        """The complete trials, best first."""
        return ranked(self.trials.values(), self.search.by)

    @property
    def total(self) -> int:
        """How many trials there are in the end, unless time runs out."""
        most = self.proposals.count
        return self.request.trials if most is None else min(most, self.request.trials)

    @property
    def proposals(self) -> Proposals:
        search = self.search
        usual = {choice: getattr(self.job.config, choice) for choice in CHOICES}
        return Proposals(search.space, search.sampler, search.by, search.seed, usual)

    def candidate(self, number: int, under_way: Mapping[int, Mapping[str, Any]]) -> Candidate:
        """Return the trial with this number; the first is of the configuration before the search."""
        config = self.job.config.model_dump(mode="json")
        values = with_effect({name: config[name] for name in self.search.space}, config)
        if number:
            values = self.proposals.values(number, self.ended, [*under_way.values()])
        return Candidate(
            self.job.store,
            self.study.entry.key,
            self.job.dataset,
            self.split,
            self.normalizations,
            self.job.config,
            self.search,
            number,
            values,
            tuple(self.ended),
            self.source,
        )

    def winner(self) -> dict[str, Any] | None:
        """Return the best trial with its complete training parameters; None if no trial is complete."""
        if not self.ranking:
            return None
        best = self.ranking[0]
        config = configuration(replace(self.candidate(0, {}), values=best.values))
        return {
            "trial": best.number,
            "score": score(best, self.search.by),
            "values": to_json(best.values),
            "config": config.model_dump(mode="json", exclude={"memory"}),
        }

    @property
    def counts(self) -> dict[str, int]:
        """How many trials have ended in which state."""
        states = [trial.state for trial in self.trials.values()]
        return {state: states.count(state) for state in ("complete", "pruned", "failed")}
