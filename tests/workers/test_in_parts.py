"""Data in parts on a cluster of workers, with a store in object storage: the same bytes whoever does the work.

The number of rows is small here, because processor time is. By hand, with as many as a person has the time for:

    IDXFLOW_TEST_ROWS=600000 IDXFLOW_TEST_DEATHS=3 pytest -n0 tests/workers/test_in_parts.py
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from expectations import engine, engine_process
from storage.datasets.catalog import ROLES, Dataset
from storage.datasets.training import TrainingConfig
from storage.objects import sealed
from storage.opening import open_store
from storage.records import SPLITS, FolderEntry, Normalization, Split, TrainedModel
from storage.runtime.progress import Progress, listening
from storage.store import ENTRY, Plan, Store
from storage.workers.current import using
from storage.workers.here import Here
from storage.workers.opening import workers_for
from storage.workers.protocol import Workers
from tasks.decode import decode
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.model import network
from tasks.normalize import normalize
from tasks.validate import validate
from tests.conftest import bars
from tests.support import clusters, working
from tests.support.fault_proxy import FaultProxy, Faults
from tests.support.listed_archives import write_listed
from tests.support.object_servers import ObjectServer

pytestmark = pytest.mark.long

ROWS = int(os.environ.get("IDXFLOW_TEST_ROWS", "600"))
DEATHS = int(os.environ.get("IDXFLOW_TEST_DEATHS", "1"))
PARTS, TEST_PARTS = 4, 2
CONFIG = TrainingConfig(hidden=(8,), held_out="stratified")
LIMITS = "[limits]\n" + "".join(
    f"{limit} = 1.0\n" for limit in ("max_blank", "max_duplicates", "max_conflicts", "max_leaked")
)
FAULTS = Faults(lost=0.005, busy=0.005, conflict=0.005, cut=0.005, late=0.005)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    test = ROWS // 6
    sizes = [ROWS // PARTS] * (PARTS - 1) + [ROWS - ROWS // PARTS * (PARTS - 1)]
    tests = [test // TEST_PARTS] * (TEST_PARTS - 1) + [test - test // TEST_PARTS * (TEST_PARTS - 1)]
    rows = bars(ROWS, test, 3, (9, 7))
    # In another order, so that no two archives are equal: equal ones share an entry, named like the first to come.
    orders = {name: np.random.default_rng(0).permutation(count) for name, count in (("train", ROWS), ("test", test))}
    rows = {role: values[orders[role.partition("-")[0]]] for role, values in rows.items()}
    return write_listed(tmp_path_factory.mktemp("listed"), rows, sizes, packed=False, more=LIMITS, test_sizes=tests)


class Cluster:
    """A scheduler and workers, each a machine with a cache of its own."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self.address, _ = stack.enter_context(clusters.scheduler(folder))
        self.workers: Workers = workers_for(self.address)
        stack.callback(self.workers.close)
        self.alive: list[Callable[[], None]] = []
        self._started = 0

    def start(self) -> None:
        self._started += 1
        folder = self._folder / f"machine-{self._started}"
        folder.mkdir()
        os.environ["IDXFLOW_CACHE"] = str(folder)
        process = self._stack.enter_context(clusters.worker(folder, self.address, name=folder.name))
        self.alive.append(process.kill)

    def kill(self, chance: random.Random) -> None:
        self.alive.pop(chance.randrange(len(self.alive)))()


@pytest.fixture
def cluster(object_storage: ObjectServer, tmp_path: Path) -> Iterator[Cluster]:
    os.environ.update(object_storage.environment)
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path)


def fresh(server: ObjectServer, folder: Path, proxy: str = "") -> Store:
    """Return a store that nobody has used, through a proxy if there is one, as a machine sees it that has no cache."""
    folder.mkdir()
    os.environ["IDXFLOW_CACHE"] = str(folder)
    address = server.fresh().address
    mine = address.partition("endpoint=")[2].partition("&")[0]
    store = open_store(address.replace(mine, proxy or mine))
    store.prepare()
    return store


def walked(store: Store, dataset: Dataset) -> dict[str, dict[str, str]]:
    """Do the steps that go by parts; return the SHA-256 of each file of each entry."""
    archives = {role: fetch.fn(store, dataset, dataset.archive(role)).record for role in ROLES}
    train, test = (
        decode.fn(store, dataset, name, archives[f"{name}-images"], archives[f"{name}-labels"]).record
        for name in SPLITS
    )
    assert (train.rows, train.parts, test.parts) == (ROWS, PARTS, TEST_PARTS)
    validate.fn(store, dataset, train, test)
    normalization = normalize.fn(store, dataset, train, CONFIG).record
    evaluate.fn(store, dataset, untrained(store, train, normalization), test)
    return files_of(store, dataset.name)


def untrained(store: Store, split: Split, normalization: Normalization) -> TrainedModel:
    """Return a model with its first weights: to train one takes an import of TensorFlow, and shows nothing here."""
    height, width = split.image_shape
    architecture = network.Architecture(height * width, CONFIG.hidden, CONFIG.activation, 3)
    weights = network.initial_weights(architecture, CONFIG.seed)
    numbers = (architecture.parameters, 1, 1, 1, 1, 0.0, 0.0, normalization.pixel_range, 0)

    def make(folder: Path) -> TrainedModel:
        record = TrainedModel(FolderEntry(folder), network.weights_digest(weights), *numbers)
        network.save_weights(record.weights, weights)
        network.save_architecture(record.architecture, architecture)
        record.normalization.write_bytes(normalization.file.read_bytes())
        return record

    return store.get_or_make(Plan("listed", "train", "first weights"), TrainedModel, make, str).record


def files_of(store: Store, dataset: str) -> dict[str, dict[str, str]]:
    found = {}
    for listed in store.objects.walk(dataset):
        if listed.key.endswith(f"/{ENTRY}"):
            described = sealed.read(store.objects, listed.key)
            found[listed.key] = {name: file["sha256"] for name, file in described["files"].items()}
    return found


def test_all_files_are_the_same_with_any_number_of_workers_whatever_dies(
    cluster: Cluster, object_storage: ObjectServer, dataset: Dataset, tmp_path: Path
) -> None:
    with using(Here()):
        expected = walked(Store(tmp_path / "alone"), dataset)
    assert len(expected) > 3 * PARTS
    with using(cluster.workers):
        cluster.start()
        assert walked(fresh(object_storage, tmp_path / "with-one"), dataset) == expected
        # Then three, of which some die.
        cluster.start()
        cluster.start()
        chance = random.Random(ROWS)
        died = with_deaths(cluster, chance, lambda: walked(fresh(object_storage, tmp_path / "deaths"), dataset))
        assert died == expected
        server = object_storage.address.partition("endpoint=http://")[2].partition("&")[0]
        with FaultProxy(server, FAULTS, seed=ROWS) as proxy:
            assert walked(fresh(object_storage, tmp_path / "faults", proxy.url), dataset) == expected
            assert sum(proxy.made[fault] for fault in ("lost", "busy", "cut")) > 0


def test_workers_of_a_run_import_none_of_the_large_libraries(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would take seconds and memory for them. As in a run, another process has Great Expectations for all."""
    monkeypatch.setattr(engine, "is_loaded", lambda: False)
    with closing(workers_for("2")) as workers, using(workers):
        engine_process.begin()
        try:
            found = walked(Store(tmp_path / "store"), dataset)
        finally:
            engine_process.end()
        loaded = dict(workers.each(working.large_libraries, [working.Item(number) for number in range(4)], "libraries"))
    assert len(found) > 3 * PARTS
    assert set(loaded.values()) == {()}


def with_deaths(
    cluster: Cluster, chance: random.Random, work: Callable[[], dict[str, dict[str, str]]]
) -> dict[str, dict[str, str]]:
    """Do the work; kill workers when so many parts of a step are done, by chance, and start others in their places."""
    left = DEATHS

    def kill(step: Progress) -> None:
        nonlocal left
        if left and step.unit == "parts" and 0 < step.done < (step.total or 0) and chance.random() < 0.2:
            left -= 1
            cluster.kill(chance)
            cluster.start()

    with listening(kill):
        found = work()
    assert not left, "the work was over before all deaths"
    return found
