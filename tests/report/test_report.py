"""What the report says: overfitting in words, the command that does it again, confusions, and what is kept private."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig, parse_overrides, training_config
from storage.records import (
    SPLITS,
    Check,
    Epoch,
    Evaluation,
    Failure,
    FolderEntry,
    RunRecord,
    Split,
    Step,
    TrainedModel,
    Validation,
    to_json,
)
from storage.registry import Registry
from storage.store import Store
from tasks.model.holdout import drawn, tail
from tasks.model.sides import Sample, of_rows
from tasks.report import document, past_runs, sanitize
from tasks.report.evidence import Evidence, Labels, gather
from tasks.report.heldout import LEAST_P, homogeneity_p, means_p
from tasks.report.lineage import command
from tasks.report.training import _configuration
from tasks.slicing.columns import Column
from tasks.validate import validate
from tests.conftest import bars, write_tiny
from tests.support.models import split


def history(*epochs: tuple[float, float, float | None, float | None]) -> tuple[Epoch, ...]:
    """Make epochs of (loss, accuracy, held-out loss, held-out accuracy)."""
    return tuple(Epoch(n, 0.001, *values, seconds=0.1) for n, values in enumerate(epochs, start=1))


def a_run(dataset: Dataset, **changes: Any) -> RunRecord:
    config = changes.pop("config", None) or training_config(dataset).model_dump(mode="json")
    values: dict[str, Any] = {"profile": "default", "config": config, "facts": past_runs.facts(dataset)} | changes
    return RunRecord("20260502-090013-3f2a", dataset.name, "2026-05-02T09:00:13+00:00", "command line", **values)


def a_model(chosen: int, epochs: int) -> TrainedModel:
    return TrainedModel(FolderEntry(Path()), "we", 10, 90, 10, epochs, chosen, 0.1, 0.99)


def content(run: RunRecord, evidence: Evidence | None = None) -> dict[str, Any]:
    return document.content(run, evidence or Evidence())


@pytest.mark.parametrize(
    ("epochs", "chosen", "word", "phrase"),
    [
        (history((0.3, 0.90, 0.3, 0.90), (0.1, 0.97, 0.11, 0.965)), 2, "none", "lowest at the last epoch"),
        (history((0.1, 0.97, 0.1, 0.965), (0.09, 0.98, 0.101, 0.965)), 2, "slight", "lowest at epoch 1"),
        (history((0.1, 0.97, 0.1, 0.965), (0.05, 0.99, 0.104, 0.95)), 2, "slight", "4.00 points apart"),
        (history((0.1, 0.97, 0.1, 0.965), (0.05, 0.97, 0.2, 0.965)), 2, "none", "lowest at epoch 1"),
        (history((0.1, 0.97, 0.1, 0.965), (0.05, 0.99, 0.2, 0.90)), 1, "none", "lowest at epoch 1"),
        (history((0.1, 0.97, None, None)), 1, "unknown", "No rows were held out"),
        (history((0.1, 0.97, 0.1, 0.965)), 1, "none", "lowest at epoch 1"),
        (
            history((0.3, 0.97, 0.3, 0.965), (0.2, 0.98, 0.25, 0.975), (0.1, 0.98, 0.2, 0.975)),
            2,
            "none",
            "lowest at the last epoch",
        ),
        ((), 1, "unknown", "cannot be read"),
        (history((0.1, 0.97, 0.1, 0.965)), 7, "unknown", "cannot be read"),
    ],
)
def test_overfitting_in_a_word(epochs: tuple[Epoch, ...], chosen: int, word: str, phrase: str) -> None:
    run = a_run(catalog.find("digits"), model=a_model(chosen, len(epochs)))
    training = content(run, Evidence(history=epochs))["training"]
    assert training["overfitting"] == word
    assert phrase in training["sentence"]
    assert training["epochs"] == to_json(epochs)


def held_out_section(labels: np.ndarray, held: np.ndarray, ink: np.ndarray | None = None) -> dict[str, Any]:
    run = a_run(catalog.find("digits"), model=a_model(1, 1))
    evidence = Evidence(history=history((0.1, 0.97, 0.1, 0.96)), sides=of_rows(labels, held, ink))
    section: dict[str, Any] = content(run, evidence)["training"]["held_out"]
    return section


def test_held_out_rows_drawn_from_every_class_are_like_the_fitted_ones() -> None:
    labels = np.repeat(np.arange(10), 200).astype(np.uint8)
    random = np.random.default_rng(1)
    section = held_out_section(labels, drawn(labels, np.arange(2000), 200, 1), random.normal(40, 9, 2000))
    assert (section["like"], section["without"]) == (True, [])
    assert section["sentence"].startswith("The held-out rows are like the fitted rows")
    assert section["classes_p"] > 0.99


def test_the_last_rows_of_a_sorted_split_are_not() -> None:
    section = held_out_section(np.repeat(np.arange(10), 200).astype(np.uint8), tail(2000, 300))
    assert (section["like"], len(section["without"]), section["classes_p"] < 1e-9) == (False, 8, True)
    assert (
        "differ from the fitted rows: no row of classes 0, 1, 2, 3, 4, …, different shares of the classes."
        in (section["sentence"])
    )


def test_held_out_rows_that_are_darker_are_not() -> None:
    labels = np.tile(np.arange(10), 200).astype(np.uint8)
    ink = np.random.default_rng(1).normal(40, 9, 2000)
    ink[1800:] -= 5
    section = held_out_section(labels, tail(2000, 200), ink)
    assert not section["like"]
    assert "differ from the fitted rows: a different mean brightness." in section["sentence"]


def test_without_held_out_rows_nothing_is_said_of_them() -> None:
    assert held_out_section(np.arange(10, dtype=np.uint8), tail(10, 0)) is None


def test_two_samples_of_the_same_are_seldom_said_to_be_unlike() -> None:
    random = np.random.default_rng(3)
    counts = [np.stack([random.multinomial(900, [0.1] * 10), random.multinomial(100, [0.1] * 10)]) for _ in range(2000)]
    classes = np.array([homogeneity_p(table) for table in counts])
    means = np.array([means_p(*(Sample.of(random.normal(size=rows)) for rows in (900, 100))) for _ in range(2000)])
    for p_values in (classes, means):
        assert 0.03 < (p_values < 0.05).mean() < 0.07
        assert (p_values < LEAST_P).mean() < 0.005


def test_a_model_that_knows_no_more_than_the_shares_of_the_classes_has_not_learned() -> None:
    """Ten layers of sigmoids stay at the entropy of the classes: there is no gap, and nothing to speak of."""
    labels = np.repeat([0, 1], [30, 70]).astype(np.uint8)
    entropy = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7))
    run = a_run(catalog.find("digits"), model=a_model(1, 1))
    for loss, word in ((entropy, "not learned"), (entropy + 1, "not learned"), (0.9 * entropy, "slight")):
        epochs = history((float(loss), 0.70, float(loss), 0.685))
        training = content(run, Evidence(history=epochs, labels={"train": Labels.of([labels], [10])}))["training"]
        assert training["overfitting"] == word
        assert ("The network did not learn" in training["sentence"]) == (word == "not learned")
        assert [finding["name"] for finding in training["findings"]] == ["not learning"] * (word == "not learned")
    assert (
        f"{entropy:.4f}"
        in content(run, Evidence(history=history((9.0, 0.7, 9.0, 0.7)), labels={"train": Labels.of([labels], [10])}))[
            "training"
        ]["sentence"]
    )


def test_a_resumed_training_says_so_with_the_seconds_of_all_its_parts() -> None:
    epochs = history(*[(0.3 / n, 0.9, 0.31 / n, 0.9) for n in range(1, 6)])
    model = dataclasses.replace(a_model(5, 5), resumed_after=3)
    step = Step("train", "k", "5 epochs", 0.25, False, "first run")
    run = a_run(catalog.find("digits"), model=model, steps=(step,))
    values = content(run, Evidence(history=epochs))
    assert values["training"]["seconds_before"] == 0.3
    phrase = "This training continues an interrupted one, whose 3 epochs took 0.30 s"
    assert f"{phrase}; the rest took 0.25 s." in values["training"]["sentence"]
    reused = dataclasses.replace(run, steps=(dataclasses.replace(step, reused=True),))
    assert f"{phrase}." in content(reused, Evidence(history=epochs))["training"]["sentence"]
    assert (
        content(a_run(catalog.find("digits"), model=a_model(5, 5)), Evidence(history=epochs))["training"][
            "seconds_before"
        ]
        is None
    )


def scored(right: np.ndarray) -> Evaluation:
    correct = int(right.sum())
    return Evaluation(
        FolderEntry(Path()), "we", "te", len(right), correct, correct / len(right), 0.1, 0.9, 0.5, (), ((1,),), ()
    )


def rows_that(are: np.ndarray) -> Column:
    """Return truth values, as evidence has them of each test row."""
    return Column([are], np.bool_)


def test_test_images_in_the_training_split_are_counted_and_the_accuracy_is_said_without_them() -> None:
    right, leaked = np.arange(100) < 90, np.arange(100) < 20
    evidence = Evidence(right=rows_that(right), leaked=rows_that(leaked))
    values = content(a_run(catalog.find("digits"), evaluation=scored(right)), evidence)
    assert values["test"]["unseen"]["correct"] == 70
    assert values["test"]["unseen"]["accuracy"] == 0.875
    assert (
        "20 test images are in the training split too. Of the other 80, it classifies 70 correctly (87.50%)"
        in (values["test"]["sentence"])
    )
    note = values["verdict"]["accuracy"][0]["note"]
    assert note == "20 of them in the training split too; accuracy on the others: 87.50%"


@pytest.mark.parametrize(
    ("of_check", "leaked", "note", "ending"),
    [
        ((), None, "none of them in the training split", "(95% interval)"),
        ((0, 1), np.ones(4, bool), "all of them in the training split too", "says nothing about new images"),
        ((0, 1), None, "of the test split", "(95% interval)"),
    ],
    ids=["none", "all", "unreadable"],
)
def test_how_many_test_images_are_in_the_training_split_is_only_said_where_it_is_known(
    of_check: tuple[int, ...], leaked: np.ndarray | None, note: str, ending: str
) -> None:
    check = Check("test", "no leak", "e", "leaked", "l", "o", "critical", True, of_check)
    run = a_run(
        catalog.find("digits"),
        validation=Validation(FolderEntry(Path()), True, "va", (check,), {}),
        evaluation=scored(np.array([True, True, True, False])),
    )
    right = rows_that(np.array([True, True, True, False]))
    evidence = Evidence(right=right, leaked=None if leaked is None else rows_that(leaked))
    values = content(run, evidence)
    assert values["verdict"]["accuracy"][0]["note"] == note
    assert values["test"]["sentence"].endswith(f"{ending}.")


def test_which_test_images_are_in_the_training_split_is_read_from_the_validation(store: Store) -> None:
    arrays = bars(120, 30, 3, (9, 7))
    arrays["test-images"][[5, 8]] = arrays["train-images"][[2, 5]]
    dataset = write_tiny(store.root, arrays=arrays, manifest="[limits]\nmax_leaked = 0.1\n")
    train, test = (split(store, dataset, name) for name in SPLITS)
    record = validate.fn(store, dataset, train, test).record
    run = a_run(dataset, train=train, test=test, validation=record)
    rows = gather(Registry(store, run.dataset), run).leaked
    assert rows is not None
    assert np.flatnonzero([*rows.blocks()]).tolist() == [5, 8]
    sound = write_tiny(store.root, name="sound")
    train, test = (split(store, sound, name) for name in SPLITS)
    run = a_run(sound, train=train, test=test, validation=validate.fn(store, sound, train, test).record)
    assert gather(Registry(store, run.dataset), run).leaked is None


@pytest.mark.parametrize("profile", ["default", "tutorial", "fast"])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"epochs": 3, "hidden": [100, 50], "activation": "relu", "patience": 2},
        {"optimizer": "adam", "beta_1": 0.8, "schedule": "cosine", "warmup_epochs": 1},
    ],
)
def test_the_command_makes_the_same_configuration(profile: Any, overrides: dict[str, Any]) -> None:
    dataset = catalog.find("digits")
    config = training_config(dataset, profile, overrides)
    words = shlex.split(command(a_run(dataset, profile=profile, config=config.model_dump(mode="json"))))
    assert words[:5] == ["idxflow", "run", "digits", "--profile", profile]
    overrides_given = [words[n + 1] for n, word in enumerate(words) if word == "--set"]
    assert len(overrides_given) == len(overrides)
    assert training_config(dataset, profile, parse_overrides(overrides_given)) == config


def test_settings_are_those_that_the_optimizer_takes_with_its_defaults() -> None:
    config = TrainingConfig(optimizer="adamw", beta_1=0.8).model_dump(mode="json")
    settings = {setting["name"]: setting for setting in _configuration(a_run(catalog.find("digits"), config=config))}
    assert config.keys() - settings.keys() == {"momentum", "rho", "final_share", "model"}
    shown = {name: (setting["value"], setting["default"]) for name, setting in settings.items()}
    assert shown["optimizer"] == ("adamw", "sgd")
    assert (shown["beta_1"], shown["weight_decay"], shown["decay"]) == ((0.8, 0.9), (0.004, 0.004), (1e-7, 1e-7))


def test_the_command_names_a_manifest_of_ones_own_without_its_folder(tmp_path: Path) -> None:
    dataset = dataclasses.replace(catalog.find("digits"), name="mine", manifest=tmp_path / "my set.toml")
    assert command(a_run(dataset)).startswith("idxflow run --dataset-file 'my set.toml' --profile")


def test_the_command_sets_the_same_rows_aside_although_the_run_was_refused_before_that() -> None:
    dataset = catalog.find("digits")
    # It was refused by the quarantine, or by the checks.
    for checks, words in ((("blank", "leaked"), "--quarantine blank,leaked --quarantine-limit 0.01"), ((), "none")):
        rules = dataclasses.replace(dataset.quarantine, checks=checks)
        asked = dataclasses.replace(dataset, quarantine=rules)
        assert command(a_run(dataset, facts=past_runs.facts(asked, True))).endswith(words)
    assert "--quarantine" not in command(a_run(dataset))


def test_the_command_of_an_unknown_profile_gives_every_setting() -> None:
    dataset = catalog.find("digits")
    assert command(a_run(dataset, profile="gone")).count("--set") == len(a_run(dataset).config)


def an_evaluation(confusion: tuple[tuple[int, ...], ...]) -> Evaluation:
    rows = sum(map(sum, confusion))
    return Evaluation(FolderEntry(Path()), "we", "sp", rows, 1, 0.5, 0.4, 0.6, 1.0, (), confusion, ())


def test_confusions_are_counted_and_ordered() -> None:
    run = a_run(catalog.find("digits"), evaluation=an_evaluation(((5, 2, 0), (0, 0, 7), (1, 0, 0))))
    test = content(run)["test"]
    assert [(c["true"], c["predicted"], c["count"], c["share"]) for c in test["confusions"]] == [
        ("1", "2", 7, 1.0),
        ("0", "1", 2, 2 / 7),
        ("2", "0", 1, 1.0),
    ]
    assert test["most_confused"] == 7


def test_a_model_without_mistakes_has_no_confusions() -> None:
    test = content(a_run(catalog.find("digits"), evaluation=an_evaluation(((5, 0), (0, 5)))))["test"]
    assert test["confusions"] == []
    assert test["most_confused"] == 0


def test_labels_outside_the_classes_are_shown_but_not_counted() -> None:
    dataset = catalog.find("digits")
    train = Split(FolderEntry(Path()), "train", 11, (8, 8), 10, "tr", {})
    check = Check("train", "labels", "e", "label", "0 to 9", "0 to 37", "critical", False, (10,))
    run = a_run(dataset, train=train, validation=Validation(FolderEntry(Path()), False, "va", (check,), {}))
    labels = np.array([*range(10), 37], np.uint8)
    values = content(run, Evidence(labels={"train": Labels.of([labels], [10])}))
    assert [c["train"] for c in values["data"]["classes"]] == [1] * 10
    assert values["checks"]["checks"][0]["labels"] == ["label 37"]


def test_the_advice_names_the_keys_of_the_failed_checks() -> None:
    def advice(*checks: tuple[str, str, bool]) -> list[str]:
        failed_checks = tuple(Check("train", "n", "e", "", "l", "o", s, ok, (), key) for key, s, ok in checks)  # type: ignore[arg-type]
        failure = Failure("ValidationFailed", "2 checks failed", 3)
        validation = Validation(FolderEntry(Path()), False, "va", failed_checks, {})
        run = a_run(catalog.find("digits"), validation=validation, failure=failure)
        lines: list[str] = content(run)["verdict"]["advice"]
        return [line for line in lines if "manifest" in line]

    critical = ("[limits] max_blank", "critical", False)
    assert advice(
        critical,
        critical,
        ("[rows] train", "critical", False),
        ("[limits] max_repeated", "warning", False),
        ("[limits] max_imbalance", "critical", True),
    ) == ["If this data is intended, change [limits] max_blank, [rows] train in the manifest."]
    # Labels that name no class are wrong whatever a manifest says.
    assert advice(("", "critical", False)) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann/data/x.gz cannot be read", "…/x.gz cannot be read"),
        ("at /var/lib/store/tiny/1-archives/x: no", "at store/tiny/1-archives/x: no"),
        ("~/secret/y.gz", "…/y.gz"),
        ("file:///srv/data/x.gz", "file://…/x.gz"),
        ("https://example.org/a/b/c.gz", "https://example.org/a/b/c.gz"),
        ("and/or, 3/4, T-shirt/top", "and/or, 3/4, T-shirt/top"),
        ("at /lib/mine/a.toml: and /lib/mine/b/c.toml", "at …/a.toml: and …/c.toml"),
        ("tabs\tand\nlines", "tabs and lines"),
        ("\x00\x1b\u202e\udc80", "\ufffd" * 4),
        ("👩‍🔬 é 中文", "👩‍🔬 é 中文"),
    ],
)
def test_texts_are_made_shareable(text: str, shown: str) -> None:
    run = a_run(catalog.find("digits"), config={"seed": float("nan")})
    roots = {"/var/lib/store": "store", "/lib/mine": "…"}
    clean = sanitize.shareable(dataclasses.replace(run, asked_by=text), roots)
    assert clean.asked_by == shown
    assert clean.config["seed"] is None


def test_long_texts_are_cut() -> None:
    assert sanitize.presentable("x" * 5000) == "x" * sanitize.MAX_TEXT + "…"


def test_environment_names_neither_user_nor_host() -> None:
    import getpass
    import platform

    environment = past_runs.environment()
    assert environment.packages["numpy"] == np.__version__
    for private in (platform.node(), getpass.getuser(), str(Path.home())):
        assert private not in str(dataclasses.asdict(environment))
