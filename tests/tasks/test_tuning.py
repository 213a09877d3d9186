"""What a study tries, and what it does not carry on: by Optuna, from nothing but the trials in the store."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from storage.datasets.training import PROFILES, TrainingConfig, with_other
from storage.errors import ConfigError
from storage.records import Epoch, FolderEntry, Trial
from tasks.tuning import optuna_study
from tasks.tuning.optuna_study import By, Judge, Proposals, importance, ranked
from tasks.tuning.space import DEFAULT, FIXED, check_effects, combinations, default, parsed, read, to_toml

SPACE = parsed(
    {
        "learning_rate": {"low": 0.001, "high": 0.1, "log": True},
        "momentum": {"low": 0.0, "high": 0.9, "step": 0.1},
        "hidden": {"choices": [[8], [8, 8], []]},
        "batch_size": {"low": 8, "high": 64},
    },
    "a test",
)


def trial(
    number: int, values: dict[str, Any], loss: float, state: Any = "complete", curve: Sequence[float] = ()
) -> Trial:
    scores = ((1 - loss,), (loss,)) if state == "complete" else ((), ())
    return Trial(FolderEntry(Path(f"s-{number:06d}")), number, state, values, *scores, tuple(curve), 3, 10, 1.0)


def loss_of(values: dict[str, Any]) -> float:
    """A made-up loss: the rate decides it, and the units a little."""
    return abs(math.log10(values["learning_rate"]) + 2) + 0.01 * len(values["hidden"])


def studied(trials: int, sampler: Any = "tpe", seed: int = 1) -> list[Trial]:
    proposals, found = Proposals(SPACE, sampler, "loss", seed), list[Trial]()
    for number in range(1, trials + 1):
        values = proposals.values(number, found, [])
        found.append(trial(number, values, loss_of(values)))
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_proposes_the_same_within_the_space(sampler: str):
    found = studied(15, sampler)
    assert [t.values for t in found] == [t.values for t in studied(15, sampler)]
    assert [t.values for t in found] != [t.values for t in studied(15, sampler, seed=2)]
    for t in found:
        assert all(SPACE[name].has(value) for name, value in t.values.items())
        TrainingConfig(**t.values)
    assert len({t.values["learning_rate"] for t in found}) == 15


def test_the_profile_best_is_of_the_space_that_is_said_to_have_it():
    space = read(Path(__file__).parents[2] / "examples" / "dense.toml", ("epochs",))
    found = {name: value for name, value in PROFILES["best"].items() if name != "epochs"}
    assert all(space[name].has(value) for name, value in found.items())


def test_tpe_finds_better_values_than_chance():
    best = [min(map(loss_of, (t.values for t in studied(40, sampler)))) for sampler in ("tpe", "random")]
    assert best[0] < best[1]
    found = studied(40)
    assert next(iter(importance(found, SPACE, "loss"))) == "learning_rate"
    assert importance(found[:5], SPACE, "loss") == {}


def test_trials_that_are_under_way_are_taken_into_account():
    proposals, found = Proposals(SPACE, "tpe", "loss", 1), studied(12)
    alone = proposals.values(13, found, [])
    assert proposals.values(13, found, [alone]) != alone
    outside = {**alone, "learning_rate": 1.0}
    assert proposals.values(13, [*found, trial(0, outside, 0.0)], []) == alone


def test_a_grid_has_all_combinations_once():
    space = parsed({"hidden": {"choices": [[8], []]}, "batch_size": {"low": 8, "high": 24, "step": 8}}, "a test")
    proposals = Proposals(space, "grid", "accuracy", 1)
    assert proposals.count == 7
    values = [proposals.values(number, [], []) for number in range(1, 7)]
    assert sorted(map(str, values)) == sorted(map(str, combinations(space)))
    assert values != combinations(space)


CHOOSING = parsed(
    {
        "momentum": {"choices": [0.0, 0.5, 0.9]},
        "beta_1": {"low": 0.5, "high": 0.9},
        "final_share": {"low": 0.0, "high": 0.1},
        "optimizer": {"choices": ["sgd", "adam", "rmsprop"]},
        "learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    },
    "a test",
)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_the_chosen_optimizer_does_not_take_is_not_proposed(sampler: Any):
    proposals, found = Proposals(CHOOSING, sampler, "loss", 1, {"schedule": "inverse"}), list[Trial]()
    for number in range(1, 21):
        values = proposals.values(number, found, [found[-1].values] if found else [])
        found.append(trial(number, values, values["learning_rate"]))
        TrainingConfig(**values)
    taken = {t.values["optimizer"]: {*t.values} - {"optimizer", "learning_rate"} for t in found}
    assert taken == {"sgd": {"momentum"}, "adam": {"beta_1"}, "rmsprop": {"momentum"}}
    importance(found, CHOOSING, "loss")


def test_a_grid_tries_once_what_differs_only_in_what_has_no_effect():
    space = {name: CHOOSING[name] for name in ("optimizer", "momentum")}
    proposals = Proposals(space, "grid", "loss", 1)
    found = [proposals.values(number, [], []) for number in range(1, 8)]
    assert proposals.count == 8
    assert found.count({"optimizer": "adam"}) == 1


def test_another_optimizer_has_its_own_defaults_and_what_was_set():
    config = TrainingConfig(weight_decay=0.1).model_dump()
    assert TrainingConfig(**with_other(config, {"optimizer": "adamw"})) == TrainingConfig(
        optimizer="adamw", weight_decay=0.1
    )
    usual = TrainingConfig().model_dump()
    assert TrainingConfig(**with_other(usual, {"optimizer": "adamw"})) == TrainingConfig(optimizer="adamw")
    cosine = {"schedule": "cosine", "final_share": 0.1}
    assert TrainingConfig(**with_other(usual, cosine)) == TrainingConfig(**cosine)


def epochs(values: Sequence[float]) -> list[Epoch]:
    return [Epoch(n, 0.1, value, 1 - value, value, 1 - value, 0.1) for n, value in enumerate(values, 1)]


def judged(judge: Judge, values: Sequence[float]) -> int | None:
    """Return the epoch after which a training ends, or None."""
    return next((epoch.epoch for epoch in epochs(values) if judge(epoch)), None)


@pytest.mark.parametrize("by", ["loss", "accuracy"])
def test_median_ends_what_is_worse_than_half_but_not_early(by: By):
    curves = [[level - 0.01 * n for n in range(10)] for level in (0.5, 0.6, 0.7, 0.8, 0.9)]
    done = [
        trial(n, {}, curve[-1], curve=curve if by == "loss" else [1 - v for v in curve])
        for n, curve in enumerate(curves)
    ]
    worse, better = [0.8 - 0.01 * n for n in range(10)], [0.65 - 0.01 * n for n in range(10)]
    # Of ten epochs, the first fifth is too early.
    assert judged(Judge("median", by, 10, done), worse) == 2
    assert judged(Judge("median", by, 10, done), better) is None
    assert judged(Judge("median", by, 10, done[:4]), worse) is None
    assert judged(Judge("none", by, 10, done), worse) is None


def test_halving_goes_on_with_the_best_quarter_and_remembers_the_rungs():
    done = list[Trial]()
    ended = list[int | None]()
    for number, level in enumerate((0.5, 0.6, 0.7, 0.4, 0.9, 0.8, 0.95)):
        judge = Judge("halving", "loss", 16, done)
        ended.append(judged(judge, [level] * 16))
        state = "pruned" if ended[-1] else "complete"
        found = trial(number, {}, level, state, [level] * (ended[-1] or 16))
        done.append(Trial(**{**vars(found), "notes": judge.notes}))
    assert ended == [None, 1, 1, None, 1, 1, 1]


def test_the_ranking_has_complete_trials_and_breaks_ties_by_loss():
    trials = [
        Trial(FolderEntry(Path(str(n))), n, state, {}, accuracies, losses, (), 1, 1, 1.0)
        for n, (state, accuracies, losses) in enumerate(
            [
                ("complete", (0.9,), (0.4,)),
                ("complete", (0.9,), (0.3,)),
                ("pruned", (), ()),
                ("complete", (0.8,), (0.1,)),
            ]
        )
    ]
    assert [t.number for t in ranked(trials, "accuracy")] == [1, 0, 3]
    assert [t.number for t in ranked(trials, "loss")] == [3, 1, 0]


def test_the_default_space_leaves_out_what_is_fixed_and_can_be_written_as_a_file(tmp_path: Path):
    space = default(("hidden",))
    assert set(space) == {name for name in DEFAULT if name in TrainingConfig.model_fields} - {"hidden"}
    path = tmp_path / "space.toml"
    path.write_text(to_toml(space), encoding="utf-8")
    assert read(path, ()) == space


WRONG = {
    "": "expected a table for each parameter to search; found none; add one",
    "[learning_rat]\nlow = 1": "expected a training parameter that a study can search (hidden, ",
    "[seed]\nchoices = [1, 2]": "expected a training parameter that a study can search (hidden, ",
    "[epochs]\nchoices = [1, 2]": "expected a parameter that is not fixed; found --set epochs; leave one of them out",
    "[momentum]\nlow = 0.1": "expected `choices`, or `low` and `high`; found {'low': 0.1}; add them",
    "momentum = 1": "expected `choices`, or `low` and `high`; found 1; add them",
    "[momentum]\nlow = 0.1\nhigh = 0.2\nhi = 1": "expected nothing beside low, high, log, step; found 'hi'; remove it",
    "[momentum]\nchoices = [0.1]\nlow = 1": "expected nothing beside `choices`; found 'low'; remove it",
    "[momentum]\nchoices = []": "expected a list of values as `choices`; found []; give at least one",
    "[momentum]\nchoices = [0, 0.0]": "expected `choices` that differ; found [0, 0.0]; remove what is twice",
    "[momentum]\nchoices = [2]": "expected momentum to be a number of at least 0 and below 1, or null; found 2",
    "[momentum]\nlow = true\nhigh = 1": "expected a number as `low`; found True; correct it",
    "[momentum]\nlow = 0.1\nhigh = 0.5\nlog = 1": "expected true or false as `log`; found 1; correct it",
    "[momentum]\nlow = 0.5\nhigh = 0.1": "expected `low` below `high`, above 0 with `log`, and either `log`",
    "[momentum]\nlow = 0.1\nhigh = 0.5\nstep = nan": "expected a number as `step`, at most the 0.4 from `low` to ",
    "[momentum]\nlow = 0.1\nhigh = 0.5\nstep = 1e-320": "with at most 100,000 steps in it; found 1e-320; correct it",
    "[momentum]\nlow = 0.1\nhigh = 0.5\nstep = 0.5": "found 0.5; correct it",
    "[patience]\nlow = 1\nhigh = 9\nstep = 0.5": "expected a whole number as `step`, at most the 8",
    "[hidden]\nlow = 1\nhigh = 2": "expected hidden to be a list of",
    "[restore_best]\nlow = 0\nhigh = 1": "expected `choices`, because it is no number; found `low` and `high`; list",
    "[momentum": "expected the space of a study in TOML; ",
}


@pytest.mark.remedies(
    "tasks.tuning.space:parsed",
    "tasks.tuning.space:_values",
    "tasks.tuning.space:_values:2",
    "tasks.tuning.space:_values:3",
    "tasks.tuning.space:_values:4",
    "tasks.tuning.space:_choices",
    "tasks.tuning.space:_choices:2",
    "tasks.tuning.space:_range",
    "tasks.tuning.space:_range:2",
    "tasks.tuning.space:_range:3",
    "tasks.tuning.space:_range:4",
    "tasks.tuning.space:_check_step",
)
def test_a_wrong_space_is_refused_in_a_sentence_and_a_right_one_is_read(tmp_path: Path):
    path = tmp_path / "space.toml"
    with pytest.raises(ConfigError, match="found nothing; correct the path, or see the example"):
        read(path, ("epochs",))
    for text, sentence in WRONG.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as refused:
            read(path, ("epochs",))
        assert str(refused.value).startswith(f"{path}: "), text
        assert sentence in str(refused.value)
    path.write_text("[momentum]\nlow = 0.1\nhigh = 0.5\n", encoding="utf-8")
    assert read(path, ("epochs",))["momentum"].high == 0.5
    assert set(FIXED) < set(TrainingConfig.model_fields)


@pytest.mark.remedies("tasks.tuning.space:check_effects")
def test_what_no_trial_would_take_is_not_searched():
    usual = TrainingConfig(optimizer="adam").model_dump()
    momentum = {"momentum": {"choices": [0.1, 0.5]}}
    with pytest.raises(ConfigError) as refused:
        check_effects(parsed(momentum, "a test"), usual, "space.toml")
    assert str(refused.value) == (
        "space.toml: [momentum]: expected optimizer sgd or rmsprop, which takes it; found adam; remove [momentum], or "
        "give another optimizer: --set, or [optimizer]"
    )
    of_adam = {**momentum, "optimizer": {"choices": ["adam", "adamw"]}}
    with pytest.raises(ConfigError, match=r"found adam, adamw; .* give another optimizer: in \[optimizer\]"):
        check_effects(parsed(of_adam, "a test"), usual, "space.toml")
    for remedy in ({}, {**momentum, "optimizer": {"choices": ["adam", "sgd"]}}, {"beta_1": {"choices": [0.1, 0.5]}}):
        check_effects(parsed(remedy, "a test") if remedy else {}, usual, "space.toml")
    check_effects(parsed(momentum, "a test"), {**usual, "optimizer": "sgd"}, "space.toml")


@pytest.mark.remedies("tasks.tuning.space:listed", "tasks.tuning.space:combinations")
def test_a_grid_needs_finitely_many_combinations():
    with pytest.raises(ConfigError, match="expected `choices` or a `step` for learning_rate"):
        Proposals(SPACE, "grid", "loss", 1)
    many = parsed({"batch_size": {"low": 1, "high": 1000}, "epochs": {"low": 1, "high": 1000}}, "a test")
    with pytest.raises(ConfigError, match="at most 100,000 combinations of a grid; found 1,000,000; give fewer"):
        Proposals(many, "grid", "loss", 1)
    assert Proposals(many, "random", "loss", 1).count is None


@pytest.mark.remedies("tasks.tuning.optuna_study:check_installed")
def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ConfigError, match=r"found none; install the extra `tune`: `.* -m pip install 'idxflow\[tune\]'`"
    ):
        optuna_study.check_installed()
    monkeypatch.undo()
    optuna_study.check_installed()
