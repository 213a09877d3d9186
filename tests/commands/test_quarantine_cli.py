"""`--quarantine` of `idxflow run`, and `idxflow quarantine`: see what was set aside, and take good rows back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline
from flows.commands import options
from flows.commands.cli import run_command
from flows.run import Request, prepare
from storage.datasets.catalog import Dataset
from storage.errors import ConfigError
from storage.records import RunRecord
from storage.store import Store
from tasks.report import past_runs
from tasks.report.document import build
from tests.conftest import TinyFactory, bars, write_tiny
from tests.support.runs import carried_out

REPEATED, LEAKED = 3, 2
BAD = '[quarantine]\nchecks = ["duplicate", "leaked"]\nmax_share = 0.1\n'


WRONG = {"epochs": 1, "learning_rate": 1e-6}
"""How a model is trained that makes mistakes."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A data set with a repeated training image and a leaked test image."""
    arrays = bars(120, 30, 3, (9, 7))
    arrays["train-images"][REPEATED] = arrays["train-images"][0]
    arrays["test-images"][LEAKED] = arrays["train-images"][5]
    return write_tiny(tmp_path_factory.mktemp("bad"), arrays=arrays, manifest=BAD)


@pytest.fixture(scope="module")
def first(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, RunRecord]:
    """A run of it, for tests that change nothing."""
    store = Store(tmp_path_factory.mktemp("first") / "store")
    store.prepare()
    return store, carried_out(store, dataset.manifest, **WRONG)


@pytest.fixture
def after(first: tuple[Store, RunRecord], tmp_path: Path) -> Store:
    """A copy of the store after that run."""
    return Store(shutil.copytree(first[0].root, tmp_path / "after"))


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run_command([*words])
    out, err = capsys.readouterr()
    return code, out, err


def listed(store: Store, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code, out, _ = call(capsys, "quarantine", "list", "tiny", "--store", str(store.root), "--json")
    assert code == 0
    values: dict[str, Any] = json.loads(out)
    return values


def test_a_run_sets_rows_aside_and_all_that_follows_knows(first: tuple[Store, RunRecord]):
    _, record = first
    assert record.train
    assert record.test
    assert record.evaluation
    assert record.decision
    assert (record.train.rows, record.test.rows, record.evaluation.rows) == (119, 29, 29)
    assert record.decision.test_digest == record.test.digest
    assert record.evaluation.split_digest == record.test.digest
    assert [step.name for step in record.steps].index("quarantine") == 6


def test_the_report_shows_the_rows_and_counts_rows_as_the_archives_do(first: tuple[Store, RunRecord], dataset: Dataset):
    store, record = first
    registry = prepare(Request(dataset_file=str(dataset.manifest), store=str(store.root)), "test").registry
    document = build(registry, record)
    section = document.values["quarantine"]
    assert section["sentence"] == (
        "2 rows were set aside (1 of train and 1 of test; at most 10% of a split may be). No model is "
        "trained or tested on them; the archives are as they were."
    )
    assert [(row["split"], row["row"], row["reasons"]) for row in section["shown"]] == [
        ("train", REPEATED, ["duplicate"]),
        ("test", LEAKED, ["leaked"]),
    ]
    assert "119 images for training and 29 images for testing (2 more are in quarantine)" in document.html()
    assert "--quarantine duplicate,leaked --quarantine-limit 0.1" in document.values["lineage"]["command"]
    # The labels of the archive: each class has every third row.
    mistakes = document.values["mistakes"]["shown"]
    assert mistakes
    assert all(one["row"] % 3 == one["label"] and one["row"] != LEAKED for one in mistakes)
    assert f"train row {REPEATED}" in document.html()


def test_a_listed_row_can_be_released_and_taken_back(
    after: Store, dataset: Dataset, capsys: pytest.CaptureFixture[str]
):
    store = after
    rows = listed(store, capsys)["rows"]
    digest = next(row["digest"] for row in rows if row["split"] == "train")
    code, out, _ = call(capsys, "quarantine", "list", "tiny", "--store", str(store.root))
    assert (code, f"{digest[:12]}  train row         3  bar 0         duplicate" in out) == (0, True)
    place = ["--store", str(store.root)]

    code, out, _ = call(capsys, "quarantine", "release", "tiny", digest[:12], *place)
    assert (code, "released 1 row, in" in out) == (0, True)
    assert listed(store, capsys)["released"] == [digest]
    assert "(released, from the next run on)" in call(capsys, "quarantine", "list", "tiny", *place)[1]
    assert carried_out(store, dataset.manifest, **WRONG).train.rows == 120  # type: ignore[union-attr]

    code, out, _ = call(capsys, "quarantine", "release", "tiny", digest, "--undo", "--json", *place)
    assert (code, json.loads(out)["changed"]) == (0, 1)
    assert listed(store, capsys)["released"] == []


@pytest.mark.remedies("flows.commands.quarantine:_named")
def test_a_row_is_named_by_enough_digits_of_its_digest(after: Store, capsys: pytest.CaptureFixture[str]):
    store = after
    digest = listed(store, capsys)["rows"][0]["digest"]
    for text in (digest[:5], "0123456789"):
        code, _, err = call(capsys, "quarantine", "release", "tiny", text, "--store", str(store.root))
        assert (code, "or at least its first 6 digits; found" in err) == (2, True)
    assert f"`idxflow quarantine list tiny --store {store.root}` lists them" in err
    assert call(capsys, "quarantine", "release", "tiny", digest[:6].upper(), "--store", str(store.root))[0] == 0


@pytest.mark.remedies("flows.commands.quarantine:_of_run")
def test_of_a_lost_quarantine_nothing_is_listed_and_the_report_has_no_wrong_row(
    first: tuple[Store, RunRecord], after: Store, dataset: Dataset, capsys: pytest.CaptureFixture[str]
):
    store, (original, record) = after, first
    digest = listed(store, capsys)["rows"][0]["digest"]
    assert record.quarantine
    shutil.rmtree(store.root / record.quarantine.entry.folder.relative_to(original.root))
    for words in (["list", "tiny"], ["release", "tiny", digest]):
        code, _, err = call(capsys, "quarantine", *words, "--store", str(store.root))
        assert (code, "it was removed or is damaged; make it again: `idxflow run --dataset-file" in err) == (2, True)
    registry = prepare(Request(dataset_file=str(dataset.manifest), store=str(store.root)), "test").registry
    again = past_runs.find(registry, record.id)
    assert again
    # The decoded splits are there, but with other numbers of rows than those of the predictions.
    assert (again.train, again.test, past_runs.missing(again)) == (None, None, ["quarantine"])
    assert not build(registry, again).values["mistakes"]
    carried_out(store, dataset.manifest, **WRONG)
    assert digest in [row["digest"] for row in listed(store, capsys)["rows"]]


@pytest.mark.remedies("flows.commands.quarantine:_of_run:2")
def test_a_run_without_quarantine_has_no_list(store: Store, tiny: TinyFactory, capsys: pytest.CaptureFixture[str]):
    manifest = tiny().manifest
    carried_out(store, manifest)
    code, _, err = call(capsys, "quarantine", "list", "tiny", "--store", str(store.root))
    assert (code, "expected a run of tiny with a quarantine; found none; name what is set aside" in err) == (2, True)
    manifest.write_text(manifest.read_text() + BAD)
    carried_out(store, manifest)
    assert listed(store, capsys)["rows"] == []


@pytest.mark.remedies("flows.run:_with_quarantine")
def test_the_option_replaces_what_the_manifest_names(store: Store, dataset: Dataset):
    def rules(words: str | None, limit: float | None = None) -> tuple[tuple[str, ...], float]:
        request = Request(
            dataset_file=str(dataset.manifest),
            store=str(store.root),
            quarantine=options.words(words),
            quarantine_limit=limit,
        )
        found = request.resolve()[0].quarantine
        return found.checks, found.max_share

    assert rules(None) == (("duplicate", "leaked"), 0.1)
    assert rules(" blank ,leaked", 0.2) == (("blank", "leaked"), 0.2)
    assert rules("none") == ((), 0.1)
    with pytest.raises(ConfigError, match=r"--quarantine: expected words from .*; found 'leek' \(did you mean leaked"):
        rules("leek")


def test_a_request_says_the_command_with_its_quarantine(dataset: Dataset):
    request = Request("mnist", quarantine=("blank", "leaked"), quarantine_limit=0.5)
    assert request.command("run").endswith("run mnist --quarantine blank,leaked --quarantine-limit 0.5")
    assert Request("mnist", quarantine=()).command("run").endswith("run mnist --quarantine none")


def test_validation_alone_sets_rows_aside_too(store: Store, dataset: Dataset):
    job = prepare(Request(dataset_file=str(dataset.manifest), store=str(store.root)), "test")
    train, test = pipeline.to_validation(job, pipeline.Directly())
    assert (train.rows, test.rows, job.state) == (119, 29, "valid")


def test_an_edit_of_the_file_counts_from_the_next_run_on(after: Store, dataset: Dataset):
    store = after
    (store.root / "tiny" / "released.txt").write_text("not a digest\n")
    assert carried_out_with_error(store, dataset).startswith(f"{store.root}/tiny/released.txt: expected a row digest")


def carried_out_with_error(store: Store, dataset: Dataset) -> str:
    job = prepare(Request(dataset_file=str(dataset.manifest), store=str(store.root)), "test")
    with pytest.raises(Exception, match="row digest") as caught:
        pipeline.to_validation(job, pipeline.Directly())
    return str(caught.value)
