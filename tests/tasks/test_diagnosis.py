"""What the rules find in trainings that are built to have a fault, and that their advice ends it."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.commands.cli import app
from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig, parse_overrides, training_config
from storage.formats import split_rows
from storage.formats.history import parse, read_history
from storage.records import Epoch, LayerActivity, RunRecord, Split, TrainedModel, from_json
from storage.store import Store
from tasks.diagnosing import rules
from tasks.diagnosing.rules import Course, findings
from tasks.normalize import normalize
from tasks.report import document, past_runs
from tasks.report.diagnosis import to_try
from tasks.report.evidence import Evidence, Labels
from tasks.sources import embedded
from tasks.train import train
from tests.conftest import write_tiny
from tests.support.models import split

DIGITS = catalog.find("digits")
QUICK = {"epochs": 8, "hidden": [20], "learning_rate": 0.02}
DEEP = [20] * 8
FAULTS: dict[str, dict[str, Any]] = {
    "not learning": {"epochs": 5, "learning_rate": 1e-6},
    "dead units": {"epochs": 4, "hidden": [20, 20], "activation": "relu", "learning_rate": 0.5},
    "saturated units": {"epochs": 5, "learning_rate": 3},
    "vanishing gradients": {"epochs": 3, "hidden": DEEP, "activation": "sigmoid"},
    "learning rate too high": {"hidden": [20, 20], "learning_rate": 1},
    "learning rate too low": {"learning_rate": 0.001},
    "under-fitting": {"epochs": 10, "hidden": [1], "learning_rate": 0.1},
}
"""By what is found: the training parameters that have this fault, where they are not those of `QUICK`."""
SIDE_EFFECTS = {
    "dead units": ["not learning", "dead units"],
    "saturated units": ["saturated units", "learning rate too high"],
    "vanishing gradients": ["not learning", "vanishing gradients"],
    "learning rate too high": ["saturated units", "learning rate too high"],
}
"""All that is found where it is more than the fault itself, the most important first."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A data set whose training split is decoded, to train on."""

    store: Store
    dataset: Dataset
    rows: Split

    def course(self, **parameters: Any) -> Course:
        """Train, and return what the rules look at."""
        config = TrainingConfig(**QUICK | parameters)
        normalization = normalize.fn(self.store, self.dataset, self.rows, config).record
        model = train.fn(self.store, self.dataset, self.rows, normalization, config).record
        counts = np.bincount(split_rows.labels(self.rows))
        epochs = read_history(model.history)[: model.chosen_epoch]
        return Course(epochs, config, (counts / counts.sum()).tolist(), model.layers, model.validation_rows)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("digits")
    embedded.write(DIGITS, folder)
    store = Store(folder / "store")
    store.prepare()
    return Trained(store, DIGITS, split(store, DIGITS, "train", folder))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Random labels: what is learned of the fitted rows is wrong for the held-out ones."""
    folder = tmp_path_factory.mktemp("noise")
    dataset = write_tiny(folder, arrays={"train-labels": np.random.default_rng(1).integers(0, 3, 120).astype(np.uint8)})
    store = Store(folder / "store")
    store.prepare()
    return Trained(store, dataset, split(store, dataset, "train"))


def names(course: Course) -> list[str]:
    return [found.name for found in findings(course)]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_its_advice_ends_it(digits: Trained, fault: str) -> None:
    course = digits.course(**FAULTS[fault])
    assert names(course) == SIDE_EFFECTS.get(fault, [fault])
    found = next(each for each in findings(course) if each.name == fault)
    after = digits.course(**FAULTS[fault] | found.settings)
    assert fault not in names(after)
    # It is an improvement, not another fault.
    assert after.last.loss < course.last.loss
    assert after.has_learned


def test_over_fitting_is_found_and_patience_ends_it(noise: Trained) -> None:
    parameters = {"epochs": 40, "learning_rate": 0.02, "hidden": [50], "batch_size": 16, "validation_fraction": 0.5}
    course = noise.course(**parameters)
    assert names(course) == ["over-fitting"]
    (found,) = findings(course)
    assert found.settings == {"patience": 5}
    assert "over-fitting" not in names(noise.course(**parameters | found.settings))


def test_a_training_that_stops_but_keeps_the_last_weights_is_to_keep_the_best() -> None:
    course = curve(0.3, 0.2, 0.1, 0.09, config=TrainingConfig(patience=2, restore_best=False))
    turned = [
        dataclasses.replace(epoch, validation_loss=max(epoch.loss, 0.12 * n)) for n, epoch in enumerate(course.epochs)
    ]
    (found,) = findings(dataclasses.replace(course, epochs=turned))
    assert (found.name, found.settings) == ("over-fitting", {"restore_best": True})


def test_a_good_training_has_no_fault(digits: Trained) -> None:
    assert names(digits.course()) == []


WELL_TRAINED = json.loads((Path(__file__).parent / "well_trained.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WELL_TRAINED)
def test_the_examples_have_none(name: str) -> None:
    """Trainings of `idxflow run digits`, `idxflow run mnist --profile tutorial`, … as they were."""
    dataset, _, profile = name.partition(" ")
    kept = WELL_TRAINED[name]
    epochs = parse("\n".join(map(json.dumps, kept["epochs"])))
    layers = tuple(from_json(LayerActivity, layer) for layer in kept["layers"])
    config = training_config(catalog.find(dataset), profile)
    assert len(epochs) == config.epochs
    assert names(Course(epochs, config, kept["shares"], layers, kept["held_out_rows"])) == []


def curve(*losses: float, held_out: float = 1.0, **changes: Any) -> Course:
    """Return a course with these losses, and held-out losses that are `held_out` times as high."""
    epochs = [
        Epoch(n, 0.01, loss, 0.5, held_out * loss, 0.5, 0.1, {"a": 1.0, "b": 1.0}) for n, loss in enumerate(losses, 1)
    ]
    values: dict[str, Any] = {"config": TrainingConfig(), "shares": [0.25] * 4, "held_out_rows": 100} | changes
    return Course(epochs, **values)


def with_norms(course: Course, *norms: float) -> Course:
    epochs = [
        dataclasses.replace(epoch, gradients={"hidden_1": norm, "classes": norm})
        for epoch, norm in zip(course.epochs, norms, strict=True)
    ]
    return dataclasses.replace(course, epochs=epochs)


def test_exploding_gradients_are_found_and_a_lower_rate_is_advised() -> None:
    course = curve(0.3, 0.2, 0.1, 0.05)
    assert names(with_norms(course, 1, 2, 3, 2)) == []
    # Where all norms grow, because the first layers begin to learn late, nothing has exploded.
    assert names(with_norms(course, 0.1, 1, 1.5, 2)) == []
    (found,) = findings(with_norms(course, 1, 2, 30, 2))
    assert (found.name, found.settings) == ("exploding gradients", {"learning_rate": 0.0001})
    assert "1.41 at the end of epoch 1 and 42.4 at the end of epoch 3, 30 times as large" in found.sentence


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"differences": ["no row of class 3"], "config": TrainingConfig(held_out="tail")}, {"held_out": "stratified"}),
        ({"differences": ["a different mean brightness"]}, {"seed": 2}),
        ({"held_out": 1.5}, {"seed": 2}),
    ],
)
def test_held_out_rows_that_are_unlike_the_fitted_ones_are_found(changes: dict, settings: dict) -> None:
    (found,) = findings(curve(0.3, 0.2, 0.1, **changes))
    assert (found.name, found.settings) == ("held-out rows unlike", settings)


def test_few_held_out_rows_are_unlike_by_chance() -> None:
    assert names(curve(0.3, 0.2, 0.1, held_out=1.5, held_out_rows=12)) == []


def test_a_network_that_answers_right_has_learned_however_large_its_loss_is() -> None:
    course = curve(5.0, 4.0)
    assert course.has_learned
    right_by_share = dataclasses.replace(course.last, accuracy=0.28)
    assert not dataclasses.replace(course, epochs=[right_by_share]).has_learned


def test_nothing_is_said_of_what_is_not_known() -> None:
    epochs = [dataclasses.replace(epoch, gradients={}, validation_loss=None) for epoch in curve(0.3, 0.2, 0.1).epochs]
    assert names(Course(epochs, TrainingConfig(), [1.0])) == []
    nothing = dataclasses.replace(curve(0.3), layers=[LayerActivity("hidden_1", "gelu", 5, None, None)])
    assert names(nothing) == []


@cache
def all_settings() -> tuple[dict[str, Any], ...]:
    """Return everything that the rules can advise to try."""
    saturated = [LayerActivity("hidden_1", "tanh", 5, 1.0, None)]
    flat = [0.9] * 10
    courses = (
        curve(2.0, 1.9, 1.8),
        curve(0.5, 0.5, layers=saturated),
        with_norms(curve(0.3, 0.2, 0.1), 1, 100, 1),
        curve(*flat),
        curve(*flat, config=TrainingConfig(hidden=())),
        curve(*flat, config=TrainingConfig(weight_decay=0.1)),
        curve(0.3, held_out=2.0),
        curve(0.3, differences=["x"], config=TrainingConfig(held_out="tail")),
        curve(*(1.3 - 0.1 * n for n in range(8))),
    )
    return tuple(dict(found.settings) for course in courses for found in findings(course))


def test_each_remedy_is_a_command_with_exactly_these_settings() -> None:
    assert len(all_settings()) >= 8
    for settings in (*all_settings(), {"patience": 5}, {"activation": "relu"}, {"restore_best": True}):
        config = training_config(DIGITS, "fast", {"seed": 7})
        facts = past_runs.facts(DIGITS)
        run = RunRecord(
            "r", "digits", "2026-11-30T00:00:00+00:00", "", "fast", config.model_dump(mode="json"), facts=facts
        )
        words = shlex.split(to_try(run, settings))
        _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
        overrides = parse_overrides(bound.arguments["set_"])
        assert (words[0], bound.arguments["dataset"]) == ("idxflow", ["digits"])
        wanted = config.model_copy(update=TrainingConfig(**settings).model_dump(include=set(settings)))
        assert training_config(DIGITS, bound.arguments["profile"], overrides) == wanted


def test_the_report_names_each_finding_with_its_figures_and_its_command() -> None:
    config = training_config(DIGITS, "default", {"epochs": 2})
    model = TrainedModel(None, "we", 10, 90, 10, 2, 2, 2.3, 0.1)  # type: ignore[arg-type]
    facts, started = past_runs.facts(DIGITS), "2026-11-30T00:00:00+00:00"
    run = RunRecord("r", "digits", started, "", "default", config.model_dump(mode="json"), facts=facts, model=model)
    labels = Labels.of([np.repeat(np.arange(10), 10).astype(np.uint8)])
    epochs = tuple(Epoch(n, 0.01, 2.31 - n / 1e6, 0.1, 2.31, 0.1, 0.1) for n in (1, 2))
    training = document.content(run, Evidence(history=epochs, labels={"train": labels}))["training"]
    (finding,) = training["findings"]
    assert (finding["name"], training["overfitting"], training["gap"]) == ("not learning", "not learned", None)
    assert training["sentence"] == finding["sentence"]
    assert f"2.3100, and predicting only the class shares gives {math.log(10):.4f}" in finding["sentence"]
    assert finding["source"]
    assert finding["remedy"] == "idxflow run digits --profile default --set learning_rate=1.0 --set epochs=2"


def test_every_threshold_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    for name in (*FAULTS, "over-fitting", "exploding gradients", "held-out rows unlike"):
        assert f"**{name}**" in page
    shown = {
        *(f"{share:.0%}" for share in (rules.NOT_LEARNING, rules.SATURATED, rules.DEAD, rules.RISE, rules.RISES)),
        *(f"{share:.0%}" for share in (rules.TURNED, rules.FALLING, rules.STILL_LEARNING, rules.HIGH, rules.FITTED)),
        *(f"{rules.EXPLODING:g} times", f"{rules.UNLIKE:g} times", f"{rules.VANISHING:g}"),
    }
    assert not {figure for figure in shown if figure not in page}
