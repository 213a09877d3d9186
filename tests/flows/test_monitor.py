"""The flow `monitor`: what it says of new images, and that it acts on drift once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker

from flows.dataset_in_store import DatasetInStore
from flows.drift import Asked, look
from flows.monitor import monitor
from storage.drifts import Drifts
from storage.errors import DamagedEntry
from storage.store import Store
from storage.verify import verify
from tests.conftest import bars, write_tiny
from tests.support.operated import LAST_DAY, post, until
from tests.support.runs import whole_run

SHAPE = (9, 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set of a name of its own, and a store with its champion."""
    folder = tmp_path_factory.mktemp("monitored")
    store = Store(folder / "store")
    store.prepare()
    name = f"tiny-{uuid4().hex[:8]}"
    dataset = write_tiny(folder, train=600, test=150, name=name)
    whole_run(store, dataset.manifest, epochs=8, published=False)
    return folder


def name_of(folder: Path) -> str:
    return next(folder.glob("*.toml")).stem


def new(folder: Path, name: str, inverted: int) -> Path:
    images = bars(150, 1, 3, SHAPE, 7)["train-images"]
    images[:inverted] = 255 - images[:inverted]
    file = folder / name
    np.savez(file, images=images)
    return file


@pytest.fixture(scope="module")
def looked(results: Path, folder: Path) -> Any:
    """Look at images, of which some are inverted; return Prefect's state."""

    def call(inverted: int, **more: Any) -> Any:
        file = new(folder, "new.npz", inverted)
        where = {"dataset_file": str(next(folder.glob("*.toml"))), "store": str(folder / "store")}
        return monitor(name_of(folder), str(file), **where | more, return_state=True)

    return call


@pytest.mark.flow
def test_drift_is_announced_once_and_starts_one_retraining(looked: Any, folder: Path, server: dict[str, str]):
    name, store = name_of(folder), Store(folder / "store")
    # Without a deployment there is nothing to start.
    assert looked(0).result()["retraining"] is None
    first = looked(60)
    assert (first.type.value, first.name) == ("COMPLETED", "Completed")
    assert first.message.startswith("drifted: 150 images unlike those that v1 of ")
    assert (first.result()["announced"], first.result()["retraining"]) == (True, None)
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow_from_name("retrain"), name)
        again = [looked(60).result() for _ in range(2)]
        assert [each["announced"] for each in again] == [False, False]
        assert [each["retraining"] for each in again] == [f"{name} after drift from v1", None]
        # What was within the limits in between has drifted anew.
        assert looked(0).result()["drifted"] is False
        assert looked(60).result()["retraining"] == f"{name} after drift from v1"
        runs = post(server, "flow_runs/filter", {"deployments": {"id": {"any_": [str(deployment)]}}})
    assert sorted(run["tags"] for run in runs) == [["drifted"], ["drifted"]]
    EventsWorker.drain_all()
    resource = {"id": [f"idxflow.model.{name}"]}
    query = {"filter": {"resource": resource, "occurred": LAST_DAY}, "limit": 50}
    events = until(lambda: found if len(found := post(server, "events/filter", query)["events"]) > 1 else None)
    assert {event["event"] for event in events} == {"idxflow.model.drifted"}
    assert len(events) == 2
    assert events[0]["payload"]["sentence"].startswith("drifted: 150 images")
    artifact = post(server, "artifacts/latest/filter", {"artifacts": {"key": {"any_": [f"drift-{name}"]}}})[0]
    assert artifact["data"].startswith("**drifted: 150 images")
    assert "](data:image/svg+xml;base64," in artifact["data"]
    assert not verify(store).damage


@pytest.mark.flow
def test_images_that_cannot_be_compared_end_the_run_with_the_sentence(looked: Any, folder: Path):
    failed = looked(0, labels=str(folder / "none.idx"))
    assert failed.type.value == "FAILED"
    assert failed.message.startswith("expected an image file at ")
    refused = monitor("unknown", "new.npz", store=str(folder / "store"), return_state=True)
    assert refused.message.startswith("expected a data set of the store")


def test_drift_in_files_whose_names_are_no_utf8_is_noted(folder: Path, tmp_path: Path):
    scans, elsewhere = tmp_path / "scans", Store(tmp_path / "store")
    scans.mkdir()
    elsewhere.prepare()
    for number, image in enumerate(255 - bars(150, 1, 3, SHAPE, 7)["train-images"]):
        Image.fromarray(image).save(scans / os.fsdecode(b"%03d-\xe9.png" % number))
    data = DatasetInStore.open(name_of(folder), str(folder / "store"))
    found = look(data, Asked(scans, dataset_file=next(folder.glob("*.toml"))), print)
    noted = Drifts(elsewhere, data.name).note(1, found.comparison.is_drifted, found.values())
    assert noted
    files = [one["file"] for one in Drifts(elsewhere, data.name).record(noted.number)["values"]["most"]]
    assert all(name.endswith("-\ufffd.png") for name in files)


def test_a_finding_is_noted_only_if_it_is_news(store: Store):
    drifts = Drifts(store, "tiny")
    assert drifts.note(1, False, {}) is None
    found = [drifts.note(champion, drifted, {}) for champion, drifted in ((1, True), (1, True), (2, False), (2, True))]
    assert [(each and (each.number, each.is_new)) for each in found] == [(1, True), (1, False), None, (2, True)]
    assert [(each.number, each.is_drifted) for each in (drifts.note(2, False, {}), drifts.last())] == [(3, False)] * 2
    drifts.note_retraining(2, "a run")
    assert (drifts.retraining(1), drifts.retraining(2), drifts.last().number) == (False, True, 3)


@pytest.mark.remedies("storage.drifts:record")
def test_a_damaged_finding_is_named_and_removing_it_helps(store: Store):
    drifts = Drifts(store, "tiny")
    drifts.note(1, True, {"sentence": "drifted"})
    file = store.root / "tiny" / "ledger" / "drifts" / "00000001.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"champion": 2}))
    with pytest.raises(DamagedEntry, match="remove this file: the next look writes it again"):
        drifts.note(1, True, {})
    file.unlink()
    assert drifts.note(1, True, {}).is_new
