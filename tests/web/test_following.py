"""The champion that answers is the one of the newest decision, wholly, and stays if the new one is damaged."""

from __future__ import annotations

import io
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from flows.web.champions import LIST_SECONDS, RETRY_SECONDS, Champions
from flows.web.served import Site
from storage.records import TrainedModel
from storage.registry import Registry
from storage.store import Store
from tasks.serving.predict import Model
from tests.support import stores
from tests.support.blobs import blobs, blobs_dataset, registered
from tests.support.memory_objects import MemoryObjects, cloud_store
from tests.support.sites import served

IMAGES = blobs()["test-images"]


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of `tiny`, the first one champion."""
    folder = tmp_path_factory.mktemp("followed")
    store, dataset = Store(folder / "store"), blobs_dataset(folder)
    store.prepare()
    registered(store, dataset)
    registered(store, dataset, promote=False, epochs=1, seed=2)
    return store.root


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(trained, tmp_path / "store"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def champions(store: Store, clock: Clock) -> Champions:
    champions = Champions(store, clock=clock)
    champions.look()
    return champions


def promote(store: Store, number: int) -> None:
    stores.promote(Registry(store, "tiny"), number)


def version_of(champions: Champions) -> int:
    model = champions.followed("tiny").model
    assert model
    return model.version.number


def test_the_next_look_finds_a_promotion_and_a_rollback(champions: Champions, store: Store):
    assert version_of(champions) == 1
    promote(store, 2)
    assert version_of(champions) == 1
    champions.look()
    assert version_of(champions) == 2
    stores.decide(Registry(store, "tiny"), "rolled back", 1)
    champions.look()
    assert version_of(champions) == 1
    assert champions.problems() == {}


def test_a_decision_that_keeps_the_champion_loads_nothing(champions: Champions, store: Store):
    model = champions.followed("tiny").model
    stores.decide(Registry(store, "tiny"), "kept", 1)
    champions.look()
    assert champions.followed("tiny").model is model


def test_a_damaged_champion_leaves_the_old_one_until_it_is_mended(champions: Champions, store: Store, clock: Clock):
    registry = Registry(store, "tiny")
    weights = Path(store.get("tiny", "train", registry.version(2).model, TrainedModel).weights)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    promote(store, 2)
    champions.look()
    assert version_of(champions) == 1
    assert "v2 of tiny is damaged" in champions.problems()["tiny"]
    weights.write_bytes(whole)
    # Not at each look: to verify a large model takes a while.
    champions.look()
    assert version_of(champions) == 1
    clock.now += RETRY_SECONDS
    champions.look()
    assert (version_of(champions), champions.problems()) == (2, {})


def test_a_damaged_decision_leaves_the_old_champion(champions: Champions, store: Store, clock: Clock):
    promote(store, 2)
    newest = max((store.dataset("tiny") / "ledger" / "decisions").iterdir())
    newest.write_bytes(b"{}")
    clock.now += LIST_SECONDS
    champions.look()
    assert version_of(champions) == 1
    assert str(newest) in champions.problems()["tiny"]


def test_a_new_data_set_is_found(tmp_path: Path, clock: Clock, store: Store):
    champions = Champions(Store(tmp_path / "new"), clock=clock)
    champions.look()
    assert champions.names == ()
    shutil.copytree(store.root, tmp_path / "new")
    clock.now += LIST_SECONDS
    champions.look()
    assert (champions.names, version_of(champions)) == (("tiny",), 1)


def test_a_look_at_a_bucket_is_one_request(tmp_path: Path, clock: Clock):
    objects = MemoryObjects()
    store = cloud_store(tmp_path / "cache", objects)
    store.prepare()
    registered(store, blobs_dataset(tmp_path))
    champions = Champions(store, clock=clock)
    champions.look()
    assert version_of(champions) == 1
    objects.forget()
    champions.look()
    assert objects.counts == {"get": 1}


def test_each_answer_is_of_one_version_while_it_changes_without_a_pause(store: Store):
    registry = Registry(store, "tiny")
    expected = {
        number: Model(store, registry.version(number)).predict(IMAGES).probability.tolist() for number in (1, 2)
    }
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    site, changes = Site(store), 12

    def change() -> None:
        for number in range(changes):
            promote(store, 2 - number % 2)
            # What the thread of the site does twice a second.
            site.champions.look()

    with served(site) as client:
        changing = threading.Thread(target=change)
        changing.start()
        seen = set()
        while changing.is_alive() or len(seen) < 2:
            answer = client.post(
                "/v1/tiny/predict", content=buffer.getvalue(), headers={"content-type": "application/x-npy"}
            ).json()
            versions = {one["version"] for one in answer["predictions"]}
            assert versions == {answer["version"]}
            assert [one["probability"] for one in answer["predictions"]] == expected[answer["version"]]
            seen.add(answer["version"])
            if not changing.is_alive():
                promote(store, 3 - answer["version"])
                site.champions.look()
        changing.join()


def test_a_running_site_follows_by_itself(store: Store):
    with served(Site(store)) as client:
        promote(store, 2)
        while client.get("/v1/tiny").json()["version"] != 2:
            pass
        assert client.get("/healthz").json() == {"status": "ok", "problems": {}, "champions": {"tiny": 2}}
