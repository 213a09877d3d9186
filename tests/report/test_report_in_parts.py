"""The report of a run on splits in parts says what it says of the same rows in one file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expectations import summary
from storage.datasets.catalog import Dataset
from storage.datasets.training import TrainingConfig
from storage.formats import members
from storage.records import Check, Evaluation, FolderEntry, RunRecord, Split, Validation
from storage.registry import Registry
from storage.store import Store
from tasks.checking import image_table
from tasks.checking.measuring import Measured
from tasks.evaluate import evaluate
from tasks.normalize import normalize
from tasks.report import comparison, document, evidence, past_runs
from tasks.report.images import pictures
from tasks.slicing import columns
from tasks.train import train
from tests.conftest import TinyFactory, bars
from tests.support.memory import peak
from tests.support.reports import a_dataset, a_run, scored, written
from tests.support.split_in_parts import in_one_file, in_parts

CONFIG = TrainingConfig(held_out="tail", epochs=2, batch_size=16, learning_rate=0.05, validation_fraction=0.3)
ROWS = bars(200, 80, 3, (9, 7))


@pytest.fixture
def runs(store: Store, tiny: TinyFactory) -> list[RunRecord]:
    """The same run on one file for each split, and on parts."""
    dataset, made = tiny(), []
    labels = ROWS["test-labels"].copy()
    labels[::5] = 1
    checks = (Check("train", "some", "e", "ink", "l", "o", "warning", False, (0, 7, 199)),)
    for sizes in ((None, None), ((64, 6, 130), (16, 1, 63))):
        train_split, test = (
            in_parts(store, dataset, name, images, of_images, cut)
            if cut
            else in_one_file(store, dataset, name, images, of_images)
            for name, images, of_images, cut in (
                ("train", ROWS["train-images"], ROWS["train-labels"], sizes[0]),
                ("test", ROWS["test-images"], labels, sizes[1]),
            )
        )
        normalization = normalize.fn(store, dataset, train_split, CONFIG).record
        model = train.fn(store, dataset, train_split, normalization, CONFIG).record
        of_model = evaluate.fn(store, dataset, model, test).record
        run = RunRecord(
            f"20260502-09001{len(made)}-3f2a",
            dataset.name,
            "2026-05-02T09:00:13+00:00",
            "command line",
            "default",
            CONFIG.model_dump(mode="json"),
            train=train_split,
            test=test,
            validation=Validation(train_split.entry, True, "va", checks, {}),
            normalization=normalization,
            model=model,
            evaluation=of_model,
            champion_evaluation=of_model,
            facts=past_runs.facts(dataset),
        )
        made.append(run)
    return made


def flat(values: Any, path: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        return {name: one for key, value in values.items() for name, one in flat(value, f"{path}.{key}").items()}
    if isinstance(values, list):
        return {name: one for n, value in enumerate(values) for name, one in flat(value, f"{path}[{n}]").items()}
    return {path: values}


def test_every_section_about_rows_is_the_same(store: Store, runs: list[RunRecord]):
    registry = Registry(store, "tiny")
    found = [evidence.gather(registry, run) for run in runs]
    whole, divided = (document.content(run, one) for run, one in zip(runs, found, strict=True))
    assert divided["data"]["splits"][0]["parts"] == 3
    assert divided["data"]["sentence"].startswith(
        "200 images for training in 3 parts and 80 images for testing in 3 parts"
    )
    assert whole["data"]["classes"] == divided["data"]["classes"]
    assert [check["labels"] for check in divided["checks"]["checks"]] == [["bar 0", "bar 1", "bar 1"]]
    for section in ("training", "test", "mistakes", "checks"):
        first, second = flat(whole[section]), flat(divided[section])
        assert first.keys() == second.keys()
        for name, value in first.items():
            if not name.startswith(".epochs") and "seconds" not in name:
                expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
                assert second[name] == expected, f"{section}{name}"
    assert whole["training"]["held_out"] is not None
    assert whole["mistakes"]["shown"]
    examples = [
        pictures(run, values, one).examples for run, values, one in zip(runs, (whole, divided), found, strict=True)
    ]
    assert examples[0] is not None
    np.testing.assert_array_equal(examples[0], examples[1])


def test_two_runs_on_parts_are_compared_image_by_image(store: Store, runs: list[RunRecord]):
    run = runs[1]
    compared = comparison.compare(store, run, run)
    assert compared["paired"]["rows"] == 80
    assert compared["paired"]["differing"] == 0
    np.testing.assert_array_equal(comparison.images(run, run, [0, 16, 79]), ROWS["test-images"][[0, 16, 79]])


def listed(folder: Path, name: str, parts: list[Any]) -> FolderEntry:
    """Return an entry of parts that are in folders beside it."""
    (folder / name).mkdir()
    members.write(folder / name, parts)
    return FolderEntry(folder / name)


def whole(folder: Path, name: str, parts: list[Any]) -> Any:
    """Return the record of all parts, or that of the only one."""
    rows = sum(part.rows for part in parts)
    if len(parts) == 1:
        return parts[0]
    return dataclasses.replace(parts[0], entry=listed(folder, name, parts), rows=rows, parts=len(parts))


def run_on(store: Store, dataset: Dataset, parts: int, rows: int) -> RunRecord:
    """Return a run with a test split in so many parts of `rows` rows, half of which are in the training split, too."""
    random, folder = np.random.default_rng(3), store.root / "tested" / f"{parts}-{rows}"
    splits, tables, scores = list[Split](), list[Measured](), {"ours": list[Evaluation](), "theirs": list[Evaluation]()}
    for number in range(parts):
        images = random.integers(0, 256, (rows, *dataset.image_shape), np.uint8)
        splits.append(
            written(folder / f"test-{number}", dataset, "test", images, random.integers(0, 3, rows, np.uint8))
        )
        for name, of_model in scores.items():
            answers = random.dirichlet(np.ones(3), rows)
            of_model.append(scored(folder / f"{name}-{number}", dataset, splits[-1], answers))
        entry = FolderEntry(folder / f"table-{number}")
        entry.folder.mkdir()
        table = {name: np.zeros(rows, kind) for name, kind in summary.IMAGE_COLUMNS.items()}
        table |= {"mean": images.mean(axis=(1, 2)), "leaked": np.arange(rows) % 2}
        with image_table.writer(entry.folder / image_table.FILE) as writer:
            assert [*image_table.written(writer, "test", [table], ())]
        tables.append(Measured(entry, "test", number * rows, rows, dataset.image_shape, ""))
    check = Check("test", "also in training", "e", "leaked", "l", "o", "warning", False, (1,))
    of_checks = listed(folder, "tables", tables) if parts > 1 else tables[0].entry
    return dataclasses.replace(
        a_run(store, dataset),
        test=whole(folder, "test", splits),
        validation=Validation(of_checks, True, "va", (check,), {}, parts if parts > 1 else 0),
        evaluation=whole(folder, "ours", scores["ours"]),
        champion_evaluation=whole(folder, "theirs", scores["theirs"]),
    )


@pytest.mark.parametrize(("few", "many"), [((4, 5000), (16, 5000)), ((1, 20_000), (1, 80_000))])
def test_the_memory_of_a_report_does_not_grow_with_the_test_rows(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: tuple[int, int], many: tuple[int, int]
):
    monkeypatch.setattr(columns, "ROWS", 4000)
    dataset = a_dataset(tmp_path, shape=(3, 2))
    registry, runs = Registry(store, dataset.name), [run_on(store, dataset, *cut) for cut in (few, many)]
    values = document.values_of(registry, runs[1])
    assert values["test"]["unseen"]["rows"] == 40_000
    assert sum(one["rows"] for one in values["test"]["calibration"]["bins"]) == 80_000
    assert sum(one["rows"] for one in values["test"]["slices"]) == 2 * 80_000
    assert values["mistakes"]["lost"]["count"] > 10_000
    taken = [peak(lambda run=run: document.values_of(registry, run)) for run in runs]  # type: ignore[misc]
    # Two bytes for each of the 60,000 rows more: what is known of each part, nothing of each row.
    assert taken[1] - taken[0] < 120_000
