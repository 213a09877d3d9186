"""The parameters of a study as the user gave them, and what they come to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from flows.run import Request
from storage.datasets.catalog import Dataset, shown
from storage.datasets.training import NETWORK, TrainingConfig, check_poolings
from storage.errors import ConfigError
from storage.words import meant
from storage.workers.address import are_elsewhere, chosen
from tasks.tuning import space
from tasks.tuning.optuna_study import By, Proposals, Pruner, Sampler, Search, check_installed
from tasks.tuning.space import Space

TRIALS = 30
"""How many trials a study has by default."""
MOST_TRIALS = 100_000
MOST_AT_ONCE = 512
"""The most trials at a time: each has a process of its own."""


@dataclass(frozen=True)
class StudyRequest:
    """A study on the command line, in a deployment, or in the Prefect UI."""

    run: Request = field(default_factory=Request)
    """What is the same in all trials: the data, and the training parameters that are not searched."""
    trials: int = TRIALS
    """How many the study has in the end, with those that it has already."""
    timeout: float | None = None
    """Begin no trial after so many seconds."""
    at_once: int | None = None
    """Trials at a time; None: one, or as many as there are workers."""
    seeds: int = 1
    space: str | None = None
    """A file of a space; None: the default one."""
    sampler: str = "tpe"
    pruner: str = "median"
    by: str = "loss"
    seed: int = 1

    def resolve(self) -> tuple[Dataset, TrainingConfig, Search]:
        """Return the data set, the configuration before the search, and the search.

        Raises:
            ConfigError: something in the request is wrong, or Optuna is not installed.
            StoreError: it cannot be read what an earlier study has found.
        """
        check_installed()
        choices = {"--sampler": (self.sampler, Sampler), "--pruner": (self.pruner, Pruner), "--by": (self.by, By)}
        for option, (word, kind) in choices.items():
            _check_word(option, word, get_args(kind))
        for option, number, most in (("trials", self.trials, MOST_TRIALS), ("at-once", self.at_once, MOST_AT_ONCE)):
            if number is not None and number > most:
                raise ConfigError(f"--{option}: expected at most {most:,}; found {number:,}; give fewer")
        dataset, config = self.run.resolve()
        if not config.validation_fraction:
            raise ConfigError(
                "expected held-out rows, on which trials are compared; found a validation_fraction of 0; raise it"
            )
        if config.seed + self.seeds > 2**32:
            raise ConfigError(f"expected seeds below {2**32:,}; found {config.seed:,} and more; choose a lower seed")
        searched = self._searched(config)
        for choice in searched["conv"].choices if "conv" in searched else ():
            check_poolings(config.model_copy(update={"conv": choice}), dataset)
        how: Any = {name: getattr(self, name) for name in ("sampler", "pruner", "by", "seed", "seeds")}
        # A grid may have too many combinations.
        Proposals(searched, how["sampler"], how["by"], self.seed)
        return dataset, config, Search(searched, **how)

    def _searched(self, config: TrainingConfig) -> Space:
        fixed = tuple(self.run.overrides)
        if not self.space:
            return space.default((*fixed, *NETWORK) if config.model else fixed)
        searched = space.read(Path(self.space), fixed)
        of_network = [name for name in searched if config.model and name in NETWORK]
        if of_network:
            raise ConfigError(
                f"{self.space}: expected no parameters of a network, because {config.model} makes it; found "
                f"{', '.join(of_network)}; remove them"
            )
        space.check_effects(searched, config.model_dump(), self.space)
        return searched

    def processes(self) -> int:
        """Return how many trials to carry out at a time, without asking a cluster: 0 stands for all its workers."""
        if self.at_once:
            return self.at_once
        name = chosen(self.run.workers)
        if are_elsewhere(self.run.workers):
            return 0
        return int(name) if name else 1

    def command(self) -> str:
        """Return the command that goes on with the study, ready to type."""
        usual, words = StudyRequest(), []
        options = ("trials", "timeout", "at_once", "seeds", "space", "sampler", "pruner", "by", "seed")
        for name in options:
            if (value := getattr(self, name)) != getattr(usual, name):
                words.append(f" --{name.replace('_', '-')} {value}")
        return self.run.command("tune") + "".join(words)

    def tuned_run(self) -> Request:
        """Return the run that uses what the study has found."""
        # The winner has what was fixed.
        return replace(self.run, profile="tuned", training={}, settings=())


def _check_word(option: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ConfigError(
            f"{option}: expected one of {', '.join(known)}; found {shown(word)}{meant(word, known)}; correct it"
        )


def seconds(text: str) -> float:
    """Return the seconds of a span such as `90`, `90s`, `15m` or `2h`.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r" *([0-9]{1,9}(?:\.[0-9]{1,9})?) *([smh]?) *", text)
    if not match or not float(match[1]):
        raise ConfigError(f"--timeout: expected a time such as 90s, 15m or 2h; found {shown(text)}; correct it")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
