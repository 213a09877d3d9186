"""Without digests, all archives of a data set come from one place: from two, labels may not be of the images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows import retrain
from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.ledger import Ledger
from storage.outcomes import steps_of
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tasks.report import past_runs
from tasks.report.document import build
from tests.conftest import TinyFactory
from tests.fetch.helpers import publish
from tests.support.faultserver import FaultServer, good
from tests.support.runs import Walk, run_without_prefect

LABELS = catalog.DEFAULT_FILES["test-labels"]


@pytest.fixture
def old(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A data set whose manifest names a folder with all four archives, and no digest."""
    monkeypatch.delenv("IDXFLOW_SOURCE", raising=False)
    return tiny()


@pytest.fixture
def new(old: Dataset, tmp_path: Path) -> Path:
    """A folder of the same names, where that of one file has a slip."""
    assert old.source
    place = tmp_path / "new"
    shutil.copytree(old.source, place)
    (place / LABELS).rename(place / LABELS.replace("labels", "lables"))
    return place


def run(store: Store, dataset: Dataset, source: str | None, to: Walk = retrain.to_validation) -> dict[str, Any]:
    return run_without_prefect(store, dataset_file=str(dataset.manifest), source=source, to=to)


@pytest.mark.parametrize("to", [retrain.to_validation, retrain.to_decision], ids=["validate", "run"])
@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_given_folder_that_lacks_one_ends_the_run(store: Store, old: Dataset, new: Path, form: str, to: Walk):
    ended = run(store, old, form.format(new), to)
    assert ended["error"]["exit_code"] == 4
    assert f"{LABELS}: expected it in {new}" in ended["sentence"]
    assert (
        f"there is no {LABELS} (did you mean {LABELS.replace('labels', 'lables')}?); put it there" in ended["sentence"]
    )
    assert not list(store.root.rglob("*.parquet"))


def test_the_remedies_of_the_error_help(store: Store, old: Dataset, new: Path):
    assert run(store, old, str(new))["error"]
    (new / LABELS.replace("labels", "lables")).rename(new / LABELS)
    assert run(store, old, str(new))["state"] == "valid"
    (new / LABELS).unlink()
    assert run(store, old, str(old.source))["state"] == "valid"


def test_the_variable_is_a_given_place_too(store: Store, old: Dataset, new: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IDXFLOW_SOURCE", str(new))
    assert run(store, old, None)["error"]["exit_code"] == 4
    assert run(store, old, str(old.source))["state"] == "valid"


def test_a_given_folder_that_is_not_there_ends_the_run(store: Store, old: Dataset, tmp_path: Path):
    ended = run(store, old, str(tmp_path / "nothing"))
    assert ended["error"]["exit_code"] == 4
    assert "nothing: there is no such folder; " in ended["sentence"]


def test_the_same_files_in_the_store_make_up_for_nothing(store: Store, old: Dataset, new: Path):
    assert run(store, old, None)["state"] == "valid"
    assert run(store, old, str(new))["error"]["exit_code"] == 4


def test_the_manifests_own_folder_must_have_all_too(store: Store, old: Dataset):
    assert old.source
    (old.source / LABELS).unlink()
    assert run(store, old, None)["error"]["exit_code"] == 4


def test_each_step_and_the_report_say_from_where_also_where_the_bytes_were_there_before(
    store: Store, old: Dataset, tmp_path: Path
):
    assert old.source
    same = shutil.copytree(old.source, tmp_path / "same")
    for place in (old.source, same):
        run(store, old, str(place))
        values = next(iter(Ledger(store, old.name).newest("runs")))
        summaries = [step.summary for step in steps_of(values) if step.step == "fetch"]
        assert len(summaries) == 4
        assert all(f" bytes from {place}, " in line for line in summaries), json.dumps(summaries)
        record = past_runs.find(Registry(store, old.name), values["run"])
        assert record
        archives = build(Registry(store, old.name), record).values["data"]["archives"]
        assert {archive["source"] for archive in archives} == {f"…/{old.source.name}"}
        assert {archive["reused"] for archive in archives} == {place is same}


def test_with_digests_each_file_may_come_from_another_place(
    store: Store, old: Dataset, new: Path, caplog: pytest.LogCaptureFixture
):
    with FaultServer({}) as server:
        published = publish(old, [server.url()])
        server.answers.update({path: good(body) for path, body in published.bodies.items()})
        ended = run_without_prefect(
            store, dataset_file=str(published.manifest), source=str(new), to=retrain.to_validation
        )
    assert ended["state"] == "valid"
    summaries = {name: step["summary"] for name, step in ended["steps"].items()}
    assert f" from {server.host}, " in summaries["fetch test-labels"]
    assert f" from {new}, " in summaries["fetch test-images"]
    assert f"there is no {LABELS}" in caplog.text


def test_a_given_folder_that_is_missing_is_named_also_where_nothing_is_needed_of_it(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    nowhere = str(tmp_path / "nothing")
    sentence = "nothing: no such folder; using the archives that are in the store"
    for source, times in ((None, 0), (nowhere, 1)):
        caplog.clear()
        assert run_without_prefect(store, dataset="digits", source=source, to=retrain.to_validation)["state"] == "valid"
        assert caplog.text.count(sentence) == times


def test_a_fetch_that_found_nothing_leaves_nothing(store: Store, old: Dataset, new: Path):
    published = publish(old, ["http://127.0.0.1:9"])
    ended = run_without_prefect(
        store, dataset_file=str(published.manifest), source=str(new / "x"), to=retrain.to_validation
    )
    assert ended["error"]["exit_code"] == 4
    assert not verify(store).leftovers
