"""What the report works out itself, by hand and at the edges: calibration, slices, disagreements, changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.datasets.catalog import Dataset
from storage.records import Environment, RunRecord
from storage.store import Store
from tasks.gate import wilson
from tasks.report.calibration import calibration
from tasks.report.changes import changes
from tasks.report.evaluation import evaluation
from tasks.report.evidence import ChampionSnapshot, Evidence, Origin
from tasks.report.mistakes import MOST, mistakes
from tasks.report.slices import Measures, slices, weakest
from tasks.report.training import in_words
from tasks.slicing import columns
from tasks.slicing.columns import Column
from tasks.slicing.measures import MEASURES, class_means, measured, slants
from tests.support.pages import both
from tests.support.reports import a_dataset, a_run

ORIGINS = {
    "decode train": Origin("decode", {"train-images": "aa"}, {"rows": 120}, {}, {}),
    "train": Origin("train", {"train": "t"}, {}, {"tasks.train": "1"}, {"tensorflow": "2.21.0"}),
}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return a_dataset(tmp_path)


def right(rows: np.ndarray) -> Column:
    """Return which rows were predicted correctly."""
    return Column([rows], np.bool_)


def measures_of(inks: np.ndarray, slants: np.ndarray) -> Measures:
    return Measures(Column([inks], np.float64), Column([slants], np.float64))


def numbers_of(column: Column) -> np.ndarray:
    return np.concatenate([*column.blocks()])


# --- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ""),
        ({"hidden": [50, 50], "activation": "tanh"}, "dense 50, dense 50; tanh"),
        ({"hidden": [], "activation": "tanh"}, "no hidden layers: a linear model"),
        (
            {"hidden": [128], "activation": "relu", "conv": [32, 64], "batch_norm": True, "dropout": 0.25},
            "conv 32, conv 64, dense 128; relu; batch normalization; dropout 0.25",
        ),
        ({"hidden": [], "activation": "relu", "conv": [8], "batch_norm": False, "dropout": 0}, "conv 8; relu"),
    ],
)
def test_the_network_in_words_also_of_records_without_its_newer_parts(config: dict[str, Any], words: str) -> None:
    assert in_words(config) == words


# --- calibration --------------------------------------------------------------------------------------------------


def test_calibration_by_hand() -> None:
    sure = np.array([0.95, 0.95, 0.95, 0.95, 0.5, 0.5], np.float32)
    right = np.array([True, True, True, False, True, False])
    section = calibration(Column([sure], np.float32), Column([right], np.bool_))
    assert section is not None
    assert section["ece"] == pytest.approx(4 / 6 * 0.20 + 2 / 6 * 0.0, abs=1e-6)
    assert [(b["rows"], b["accuracy"], round(b["confidence"], 6)) for b in section["bins"]] == [
        (2, 0.5, 0.5),
        (4, 0.75, 0.95),
    ]
    assert "clearly overconfident" in section["sentence"]
    assert "13.33 points" in section["sentence"]


@pytest.mark.parametrize(
    ("sure", "right", "phrase"),
    [
        ([1.0, 1.0], [True, True], "is well calibrated"),
        ([0.6, 0.6], [True, True], "clearly underconfident"),
        ([0.97, 0.97], [True, True], "somewhat underconfident"),
    ],
)
def test_calibration_in_words(sure: list[float], right: list[bool], phrase: str) -> None:
    section = calibration(Column([np.array(sure)], np.float32), Column([np.array(right)], np.bool_))
    assert section is not None
    assert phrase in section["sentence"]


def test_every_row_is_in_one_bin_whatever_its_confidence() -> None:
    sure = np.array([0, 1 / 15, 2 / 15, 0.5, 1, 1 + 1e-6], np.float64)
    section = calibration(Column([sure], np.float64), right(np.ones(6)))
    assert section is not None
    assert sum(b["rows"] for b in section["bins"]) == 6
    assert all(b["low"] - 1e-9 <= b["confidence"] <= b["high"] + 1e-9 for b in section["bins"])


@pytest.mark.parametrize("sure", [None, [], [0.5], [0.5, np.nan]])
def test_no_calibration_of_what_cannot_be_counted(sure: list[float] | None) -> None:
    column = None if sure is None else Column([np.array(sure)], np.float32)
    assert calibration(column, right(np.array([1, 0]))) is None
    assert calibration(Column([], np.float32), Column([], np.bool_)) is None


# --- slices -------------------------------------------------------------------------------------------------------


def stroke(slope: float) -> np.ndarray:
    """Return a 21×21 image of a line through the middle that moves `slope` pixels to the right per row upwards."""
    image = np.zeros((21, 21), np.uint8)
    for y in range(4, 17):
        image[y, round(10 + slope * (10 - y))] = 255
    return image


def test_slant_is_the_angle_of_a_stroke() -> None:
    angles = slants(np.stack([stroke(0), stroke(1), stroke(-1), stroke(0.5)]))
    np.testing.assert_allclose(angles[:3], [0, 45, -45], atol=1e-6)
    assert angles[3] == pytest.approx(np.degrees(np.arctan(0.5)), abs=2)


def test_ink_without_height_has_no_slant() -> None:
    blank, line = np.zeros((5, 4), np.uint8), np.zeros((5, 4), np.uint8)
    line[2] = 200
    assert np.isnan(slants(np.stack([blank, line]))).all()
    assert np.isnan(slants(np.full((1, 1, 1), 9, np.uint8))).all()


def test_images_are_measured_in_their_order_whatever_the_blocks() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 9, 7), dtype=np.uint8)
    labels = np.zeros(50, np.uint8)
    parts = [(images[:7], labels[:7]), (images[:0], labels[:0]), (images[7:], labels[7:])]
    flat = images.reshape(50, -1).astype(np.float64)
    np.testing.assert_allclose(numbers_of(measured("ink", parts)), flat.mean(axis=1))
    np.testing.assert_allclose(numbers_of(measured("contrast", parts)), flat.std(axis=1))
    for name in MEASURES:
        np.testing.assert_array_equal(numbers_of(measured(name, [(images, labels)])), numbers_of(measured(name, parts)))


def test_the_mean_image_of_each_class_whatever_the_blocks() -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (60, 5, 4), dtype=np.uint8), random.integers(0, 3, 60).astype(np.uint8)
    labels[:5] = 200
    means = class_means([(images[:20], labels[:20]), (images[:0], labels[:0]), (images[20:], labels[20:])], 4)
    assert list(means) == [0, 1, 2]
    for label, mean in means.items():
        np.testing.assert_allclose(mean, images[labels == label].mean(axis=0))


def test_quarters_count_every_row_once() -> None:
    inks, slopes = np.arange(100.0), np.full(100, np.nan)
    slopes[:40] = np.arange(40)
    quarters = slices(measures_of(inks, slopes), right(np.arange(100) >= 20))
    assert [(s["by"], s["rows"], s["correct"]) for s in quarters] == [
        ("ink", 25, 5),
        ("ink", 25, 25),
        ("ink", 25, 25),
        ("ink", 25, 25),
        ("slant", 10, 0),
        ("slant", 10, 0),
        ("slant", 10, 10),
        ("slant", 10, 10),
    ]
    assert (quarters[0]["from"], quarters[0]["to"], quarters[0]["accuracy"]) == (0, 24, 0.2)
    assert (quarters[0]["low"], quarters[0]["high"]) == wilson.interval(5, 25)
    assert weakest(quarters).startswith("The weakest quarter is slant: furthest left, at 0.00%; its interval is below")


@pytest.mark.parametrize("rows", [1, 2, 5, 100, 1003])
def test_quarters_end_at_the_quartiles_of_numpy_whatever_the_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(rows)
    for numbers in (random.normal(0, 20, rows), random.integers(-2, 3, rows) / 3, -1e-310 * np.arange(rows)):
        right = Column([random.integers(0, 2, rows)], np.bool_)
        values = Column([numbers, [np.nan, np.inf]], np.float64)
        monkeypatch.setattr(columns, "ROWS", 64)
        place = np.searchsorted(np.quantile(numbers, (0.25, 0.5, 0.75)), numbers)
        expected = [numbers[place == quarter] for quarter in range(4) if (place == quarter).any()]
        found = slices(Measures(values, values), Column([*right.blocks(), np.zeros(2, bool)], np.bool_))
        assert [(s["from"], s["to"], s["rows"]) for s in found if s["by"] == "ink"] == [
            (one.min(), one.max(), len(one)) for one in expected
        ]


def test_no_quarter_is_the_weakest_where_all_do_alike() -> None:
    quarters = slices(measures_of(np.arange(100.0), np.arange(100.0)), right(np.ones(100)))
    assert weakest(quarters) == "All quarters have the same accuracy, 100.00%."


def test_the_names_of_quarters_say_nothing_of_a_side_that_no_image_leans_to() -> None:
    quarters = slices(measures_of(np.arange(100.0), np.linspace(5, 30, 100)), right(np.ones(100)))
    assert [s["name"] for s in quarters if s["by"] == "slant"][1:3] == ["second quarter", "third quarter"]


def test_quarters_of_equal_values_are_fewer() -> None:
    quarters = slices(measures_of(np.full(8, 3.0), np.full(8, np.nan)), right(np.ones(8)))
    assert [(s["name"], s["rows"]) for s in quarters] == [("least ink", 8)]
    assert "differ too little in ink and slant" in weakest(quarters)


def test_no_slices_of_what_cannot_be_read() -> None:
    assert slices(None, right(np.ones(3))) == []
    assert slices(measures_of(np.ones(2), np.ones(2)), right(np.ones(3))) == []
    assert "cannot be read" in weakest([])


# --- disagreements ------------------------------------------------------------------------------------------------


def answers(labels: list[int], ours: list[int], theirs: list[int]) -> Evidence:
    return Evidence(
        test_labels=Column([np.array(labels)], np.uint8),
        sure=Column([np.linspace(0.5, 0.9, len(labels))], np.float32),
        predicted=Column([np.array(ours)], np.uint8),
        champion_predicted=Column([np.array(theirs)], np.uint8),
    )


def test_disagreements_are_told_apart_and_the_surest_come_first(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    section = mistakes(run, answers([0, 0, 0, 1, 1, 2], [1, 1, 0, 1, 2, 2], [0, 0, 0, 2, 0, 2]))
    assert section is not None
    assert (section["lost"]["count"], section["gained"]["count"], section["otherwise_wrong"]["count"]) == (2, 1, 1)
    assert [image["row"] for image in section["lost"]["shown"]] == [1, 0]
    first = section["lost"]["shown"][0]
    assert (first["name"], first["predicted_name"], first["champion_name"]) == ("bar 0", "bar 1", "bar 0")
    assert first["probability"] == pytest.approx(0.58)
    assert section["sentence"].endswith("Compared with the champion, 1 image became right and 2 became wrong.")


def test_the_surest_disagreements_are_found_whatever_the_blocks(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, random = a_run(store, dataset), np.random.default_rng(0)
    evidence = dataclasses.replace(
        answers(*random.integers(0, 3, (3, 900)).tolist()),
        sure=Column([random.integers(40, 90, 900) / 100], np.float32),
    )
    whole = mistakes(run, evidence)
    monkeypatch.setattr(columns, "ROWS", 64)
    assert mistakes(run, evidence) == whole


def test_only_so_many_disagreements_are_shown(store: Store, dataset: Dataset) -> None:
    section = mistakes(a_run(store, dataset), answers([0] * 40, [1] * 40, [0] * 40))
    assert section is not None
    assert (section["lost"]["count"], len(section["lost"]["shown"])) == (40, MOST)


def test_without_the_champion_s_answers_nothing_is_said_about_them(store: Store, dataset: Dataset) -> None:
    evidence = dataclasses.replace(answers([0], [1], [0]), champion_predicted=None)
    section = mistakes(a_run(store, dataset), evidence)
    assert section is not None
    assert section["lost"] is section["gained"] is None
    assert "no champion's predictions" in section["sentence"]


def test_the_confusion_matrix_shows_what_differs_from_the_champion(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    assert run.evaluation
    assert run.champion_evaluation
    section = evaluation(run, Evidence())
    assert section is not None
    expected = np.array(run.evaluation.confusion) - np.array(run.champion_evaluation.confusion)
    assert expected.any()
    assert section["confusion_change"] == expected.tolist()
    page, _ = both(store, dataset, run)
    small = [a for tag, a in page.elements if tag == "small"]
    assert len(small) == np.count_nonzero(expected)


# --- changes ------------------------------------------------------------------------------------------------------


def against(
    run: RunRecord, champion: RunRecord, origins: Any = ORIGINS, champion_origins: Any = ORIGINS
) -> dict[str, Any]:
    return changes(run, Evidence(origins=origins, champion=ChampionSnapshot(3, champion, champion_origins)))


def changed_inputs(section: dict[str, Any]) -> list[tuple[str, str, Any, Any]]:
    return [
        (difference["part"], difference["name"], difference["old"], difference["new"])
        for difference in section["differences"]
    ]


def test_nothing_changed_is_said(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    section = against(run, run)
    assert (section["differences"], section["champion"], section["run"]) == ([], 3, run.id)
    assert section["sentence"].startswith("Nothing: ")


def test_only_what_differs_is_listed_old_and_new(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    assert run.train
    before = dataclasses.replace(
        run,
        config={**run.config, "learning_rate": 0.5},
        train=dataclasses.replace(run.train, rows=119),
        environment=Environment("3.11.1", "Linux", {}),
    )
    run = dataclasses.replace(run, environment=Environment("3.12.9", "Linux", {}))
    origins = {
        "decode train": dataclasses.replace(ORIGINS["decode train"], inputs={"train-images": "bb"}),
        "train": dataclasses.replace(
            ORIGINS["train"], code={"tasks.train": "2", "tasks.new": "3"}, libraries={"tensorflow": "2.22.0"}
        ),
    }
    section = against(run, before, origins=origins)
    assert changed_inputs(section) == [
        ("parameters", "learning_rate", 0.5, 0.001),
        ("data", "train rows", 119, 120),
        ("data", "train-images archive", "aa", "bb"),
        ("code", "tasks.new", None, "3"),
        ("code", "tasks.train", "1", "2"),
        ("libraries", "tensorflow", "2.21.0", "2.22.0"),
        ("environment", "python", "3.11.1", "3.12.9"),
    ]
    assert section["sentence"] == (
        "7 differences from champion v3: in parameters, data, code, libraries and environment."
    )


def test_a_step_that_only_one_run_came_to_is_no_difference(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    cut = dataclasses.replace(run, train=None, test=None, environment=None)
    assert changed_inputs(against(cut, run, origins={"decode train": ORIGINS["decode train"]})) == []


def test_an_unknown_profile_is_no_difference(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    assert changed_inputs(against(run, dataclasses.replace(run, profile="unknown"))) == []
    assert changed_inputs(against(run, dataclasses.replace(run, profile="fast"))) == [
        ("parameters", "profile", "fast", "default")
    ]


def test_without_a_champion_there_is_nothing_to_compare(store: Store, dataset: Dataset) -> None:
    run = a_run(store, dataset)
    assert run.decision
    assert "inputs of champion v1 can no longer be read" in changes(run, Evidence())["sentence"]
    first = dataclasses.replace(run, decision=dataclasses.replace(run.decision, previous=None))
    assert "No champion (the model in use) existed before this run" in changes(first, Evidence())["sentence"]
