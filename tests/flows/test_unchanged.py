"""What a run does not do, counted: an unchanged one reads no source, decodes nothing and imports no heavy library.

It starts no process either, and makes few files durable.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import datasets, retrain, run
from flows.preload import needed, preload
from flows.run import Request
from storage import underway
from storage.errors import StoreError
from storage.ledger import Ledger
from storage.runtime import code_digests
from storage.store import Store
from storage.verify import verify
from tasks.model import network
from tests.conftest import TinyFactory
from tests.support.memory_objects import MemoryObjects, cloud_store
from tests.support.runs import QUICK, run_without_prefect, whole_run

SIZES = (("train", 120), ("test", 30))
HEAVY = {"tensorflow", "keras", "great_expectations", "pandas", "sklearn", "scipy", "matplotlib"}

# The flow in a process of its own; says which libraries it loaded, which files it opened, how each step ended, which
# processes it started, and how often it waited for the disk.
COUNTED = """
import json, logging, os, sys

opened, started, synced = [], [], []

def note(event, values):
    if event == "open":
        opened.append(str(values[0]))
    elif event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        started.append(event)

def sync(descriptor, make=os.fsync):
    synced.append(descriptor)
    make(descriptor)

sys.addaudithook(note)
os.fsync = sync

from flows import retrain
from flows.pipeline import Directly
from flows.run import Request
from storage.formats import idx

begun, readers, make = len(opened), [], idx.Reader.__init__
idx.Reader.__init__ = lambda self, *given: (readers.append(str(given[0])), make(self, *given))[1]
request = Request("digits", training={"epochs": 2}, store=sys.argv[1], workers="2")
ended = retrain.carry_out(request, retrain.to_decision, caller=Directly()).data.to_json()
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
    "opened": opened[begun:],
    "decoded": readers,
    "started": started,
    "synced": len(synced),
    "made": [name for name, step in ended["steps"].items() if not step["reused"]],
    "state": ended["state"],
}))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The first run of `digits`, and the same again."""
    store = tmp_path_factory.mktemp("unchanged") / "store"
    command = [sys.executable, "-c", COUNTED, str(store)]
    outcomes = {}
    for name in ("first", "again"):
        ended = subprocess.run(command, cwd=code_digests.ROOT, capture_output=True, text=True, check=True)
        outcomes[name] = json.loads(ended.stdout)
    return outcomes


def test_the_unchanged_run_imports_no_heavy_library(runs: dict[str, dict]):
    # Another process imports what validation needs.
    assert set(runs["first"]["modules"]) & HEAVY == HEAVY - {"great_expectations", "pandas"}
    assert not set(runs["again"]["modules"]) & HEAVY


def test_nothing_of_dask_is_imported_for_data_in_one_part(runs: dict[str, dict]):
    assert not {"dask", "distributed"} & {*runs["first"]["modules"], *runs["again"]["modules"]}


def test_the_unchanged_run_makes_nothing(runs: dict[str, dict]):
    assert (runs["first"]["state"], len(runs["first"]["made"])) == ("promoted", 13)
    assert (runs["again"]["state"], runs["again"]["made"]) == ("unchanged", [])


def test_the_unchanged_run_decodes_no_archive_and_opens_none_of_its_source(runs: dict[str, dict]):
    """It reads what the store keeps, to see that it is whole; nothing else."""
    assert len(runs["first"]["decoded"]) == 4
    assert any("0-inbox" in path for path in runs["first"]["opened"])
    assert runs["again"]["decoded"] == []
    assert not [path for path in runs["again"]["opened"] if "0-inbox" in path or "sklearn" in path]


def test_the_unchanged_run_starts_no_process_and_seldom_waits_for_the_disk(runs: dict[str, dict]):
    # The one that validates, the one that confirms, and `uname`, which Python asks for the kind of processor.
    assert len(runs["first"]["started"]) <= 3
    assert runs["again"]["started"] == []
    assert 0 < runs["again"]["synced"] <= 4 < runs["first"]["synced"]


def test_only_what_a_run_is_sure_to_need_is_imported_ahead(store: Store, tiny: TinyFactory):
    manifest = str(tiny().manifest)

    def imported(force: bool = False, workers: str | None = None, **training: object) -> list[str]:
        request = Request(
            dataset_file=manifest, training=QUICK | training, store=str(store.root), force=force, workers=workers
        )
        return [f"{load.__module__}.{load.__name__}" for load in needed(request)]

    training = [f"{network.__name__}.tensorflow"]
    assert imported() == ["expectations.engine_process.begin", *training]
    whole_run(store, Path(manifest))
    assert imported() == []
    assert imported(memory="1GiB") == []
    assert imported(seed=5) == training
    assert imported(force=True) == imported(force=True, workers="2") == training
    # Workers of a cluster train.
    assert imported(force=True, workers="tcp://127.0.0.1:8786") == []


def test_the_source_of_the_steps_is_read_ahead(store: Store, tiny: TinyFactory):
    manifest = tiny().manifest
    whole_run(store, manifest)
    code_digests._read.cache_clear()
    preload(Request(dataset_file=str(manifest), training=QUICK, store=str(store.root)), lambda: False)
    ahead = code_digests._read.cache_info().misses
    whole_run(store, manifest)
    assert code_digests._read.cache_info().misses == ahead > 0


def test_the_unchanged_run_of_another_person_fetches_no_file(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In object storage, requests count: at most three that read an object for each step, also with all rules."""
    rules = 'label_column = 0\n[slices]\nby = ["class", "ink", "column 1"]\nmin_rows = 5\naccuracy = 0.01\n'
    rules += "[behaviour]\nbrightness = { percent = 5, changed = 1.0 }\n[gate]\nalpha_budget = 0.1\n"
    columns = {f"{split}-labels": np.stack([np.arange(rows) % 3] * 2, axis=1).astype(np.int32) for split, rows in SIZES}
    manifest, objects = str(tiny(manifest=rules, arrays=columns).manifest), MemoryObjects()

    def run_of(person: str, **training: Any) -> dict[str, Any]:
        # What others have fetched is not in the cache of this one.
        store = cloud_store(tmp_path / person, objects)
        for module in (run, datasets):
            monkeypatch.setattr(module, "open_store", lambda _: store)
        objects.forget()
        return run_without_prefect(store, dataset_file=manifest, **training)

    assert run_of("first")["state"] == "promoted"
    assert run_of("second", seed=2)["state"] == "kept"
    assert objects.counts["download"] > 0
    for person, training, of_version in (("third", {}, 1), ("fourth", {"seed": 2}, 2)):
        again = run_of(person, **training)
        assert (again["state"], again["version"], again["champion"]) == ("unchanged", of_version, 1)
        assert all(step["reused"] for step in again["steps"].values())
        assert objects.counts["download"] == 0
        assert 0 < objects.counts["get"] + objects.counts["range"] <= 3 * len(again["steps"])
        assert not list((tmp_path / person / "files").rglob("*.*"))


def test_a_run_makes_again_what_is_damaged_in_object_storage(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    manifest, objects = str(tiny().manifest), MemoryObjects()

    def run_of(person: str, **training: Any) -> dict[str, Any]:
        store = cloud_store(tmp_path / person, objects)
        for module in (run, datasets):
            monkeypatch.setattr(module, "open_store", lambda _: store)
        return run_without_prefect(store, dataset_file=manifest, **training)

    assert run_of("first")["state"] == "promoted"
    for name in ("train.parquet", "test.parquet"):
        (key,) = (found.key for found in objects.walk("tiny/2-splits") if found.name == name)
        objects.put(key, objects.get(key)[:-1] + b"?")
    again = run_of("second", seed=2)
    assert (again["state"], again["error"]) == ("kept", None)
    # The last that was found to be damaged.
    assert not again["steps"]["decode test"]["reused"]
    assert verify(cloud_store(tmp_path / "third", objects)).damage == ()


def test_a_run_without_a_report_is_in_the_ledger(store: Store, tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise StoreError("expected room for the report; found none; free some")

    monkeypatch.setattr(retrain, "report", refuse)
    outcome = run_without_prefect(store, dataset_file=str(tiny().manifest))
    assert outcome["state"] == "failed"
    record = Ledger(store, "tiny").last("runs")
    assert record
    assert (record["state"], record["error"]["sentence"]) == ("failed", outcome["sentence"])
    assert not list(underway.abandoned(store, "tiny"))
