"""Rows in memory and in shards: each once in an epoch, in an order as random as can be, in the memory allowed."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy

from storage.datasets.training import TrainingConfig
from storage.errors import DataRefused, TrainingFailed
from storage.formats import parquet
from storage.records import FolderEntry, Split
from storage.runtime import code_digests
from storage.store import Store
from tasks import train as training
from tasks.model import augmentation, network, training_rows
from tasks.model.fitting import Fitting
from tasks.model.holdout import tail
from tasks.model.scaling import Statistics
from tasks.model.training_rows import InMemory, Shards, Window
from tests.conftest import TinyFactory
from tests.support.models import split, trained
from tests.support.numbered_rows import SMALL, numbered, numbers

PIXELS = 12
STATISTICS = Statistics(np.zeros(PIXELS), 0.6)


@pytest.mark.parametrize("fitted", [1000, 900, 897])
def test_every_epoch_passes_over_every_fitted_row_once(tmp_path: Path, fitted: int):
    train = numbered(tmp_path)
    with training_rows.opened("tiny", train, SMALL, tail(1000, 1000 - fitted), tmp_path) as opened:
        for epoch in (1, 2):
            windows = [numbers(window) for window in opened.windows(epoch)]
            assert sorted(number for window in windows for number in window) == list(range(fitted))
            assert len(windows) > 8
            assert {len(window) for window in windows} == opened.lengths
            assert max(map(len, windows)) <= 104
            assert [len(window) % SMALL.batch_size for window in windows].count(0) >= len(windows) - 1
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]


def test_images_and_labels_stay_together(tmp_path: Path):
    train = numbered(tmp_path)
    _, labels = parquet.read(train.file)
    with training_rows.opened("tiny", train, SMALL, tail(1000, 100), tmp_path) as opened:
        for window in opened.windows(1):
            assert window.labels.numpy()[window.order].tolist() == labels[numbers(window)].tolist()


def test_orders_differ_between_epochs_and_seeds_and_are_the_same_again(tmp_path: Path):
    train = numbered(tmp_path)

    def order(seed: int, epoch: int) -> tuple[int, ...]:
        config = SMALL.model_copy(update={"seed": seed})
        with training_rows.opened("tiny", train, config, tail(1000, 100), tmp_path) as opened:
            return tuple(number for window in opened.windows(epoch) for number in numbers(window))

    assert len({order(1, 1), order(1, 2), order(2, 1)}) == 3
    assert order(1, 2) == order(1, 2)


def test_the_rows_of_every_shard_are_a_fair_draw_of_a_split_sorted_by_class():
    shards = Shards(rows=100_000, size=4096, seed=3)
    labels = np.arange(100_000) * 10 // 100_000
    assigned = shards.assigned()
    assert np.bincount(assigned).tolist() == [shards.length(shard) for shard in range(shards.count)]
    table = np.array([np.bincount(labels[assigned == shard], minlength=10) for shard in range(shards.count)])
    expected = np.outer([shards.length(shard) for shard in range(shards.count)], np.full(10, 0.1))
    test = scipy.stats.chisquare(table.ravel(), expected.ravel(), ddof=shards.count + 9 - 1)
    assert 0.001 < test.pvalue < 0.999


def test_each_epoch_by_itself_is_as_random_as_in_memory():
    """The place of a row in an epoch is uniform over seeds, whatever the row."""
    places = []
    for seed in range(3000):
        shards = Shards(rows=24, size=8, seed=seed)
        assigned = shards.assigned()
        order = [np.flatnonzero(assigned == shard)[shards.order_within(2, shard)].tolist() for shard in shards.order(2)]
        places.append([row for shard in order for row in shard].index(5))
    assert scipy.stats.chisquare(np.bincount(places, minlength=24)).pvalue > 0.001


WITH_EVERYTHING = TrainingConfig(
    memory=SMALL.memory,
    batch_size=SMALL.batch_size,
    optimizer="adam",
    schedule="cosine",
    warmup_epochs=1,
    shift=0.5,
    rotate=5,
)


@pytest.mark.parametrize("config", [SMALL, WITH_EVERYTHING], ids=["plain", "with everything"])
def test_training_in_shards_is_training_in_memory_in_that_order(tmp_path: Path, config: TrainingConfig):
    # The last shard is whole batches, too: so the steps are the same, whichever shard comes last.
    augmented = augmentation.chosen(config, (3, 4), STATISTICS, None)
    train, architecture = numbered(tmp_path), network.Architecture(PIXELS, (5,), "tanh", 3)
    images, labels = parquet.read(train.file)
    with training_rows.opened("tiny", train, config, tail(1000, 104), tmp_path) as opened:
        sharded = Fitting(architecture, config, STATISTICS, opened, 896, augmented)
        reported = [sharded.epoch(1), sharded.epoch(2), sharded.score(896, 1000), sharded.score(0, 1000)]
        orders = {epoch: [n for window in opened.windows(epoch) for n in numbers(window)] for epoch in (1, 2)}
    assert sharded.traces == 2
    assert sharded.calls == 2 * math.ceil(896 / 104)

    class InThatOrder(InMemory):
        def windows(self, epoch: int) -> Iterator[Window]:
            for window in super().windows(epoch):
                yield Window(window.images, window.labels, np.array(orders[epoch], np.int32))

    whole = InThatOrder(images.reshape(1000, -1), labels, 896, config.seed)
    fitting = Fitting(architecture, config, STATISTICS, whole, 896, augmented)
    expected = [fitting.epoch(1), fitting.epoch(2), fitting.score(896, 1000), fitting.score(0, 1000)]
    for name, values in sharded.weights.items():
        np.testing.assert_array_equal(values, fitting.weights[name])
    np.testing.assert_allclose(reported, expected, rtol=1e-6)


def test_more_memory_than_needed_changes_nothing(store: Store, tiny: TinyFactory):
    dataset = tiny()
    assert not trained(store, dataset, epochs=2).step.reused
    assert trained(store, dataset, epochs=2, memory="3GiB").step.reused


def test_what_is_trained_in_shards_is_another_training_and_says_so(store: Store, tiny: TinyFactory):
    dataset = tiny(train=400)
    trained(store, dataset, epochs=2, batch_size=16)
    result = trained(store, dataset, epochs=2, batch_size=16, memory="30KB")
    assert not result.step.reused
    assert result.step.reason == "rows_at_once none → 96"
    assert result.record.train_accuracy > 0.4
    assert trained(store, dataset, epochs=2, batch_size=16, memory="30.5KB").step.reused


def test_a_killed_training_in_shards_ends_with_the_same_weights(
    store: Store, tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dataset = tiny(train=400)
    parameters = {"epochs": 6, "batch_size": 16, "memory": "30KB"}
    unbroken = trained(Store(tmp_path / "other"), dataset, **parameters).record
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    epoch = Fitting.epoch

    def ended(self: Fitting, number: int):
        if number == 4:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as broken:
        broken.setattr(Fitting, "epoch", ended)
        with pytest.raises(KeyboardInterrupt):
            trained(store, dataset, **parameters)
    assert trained(store, dataset, **parameters).record.weights_digest == unbroken.weights_digest


def test_memory_for_less_than_a_batch_is_refused_in_one_sentence(store: Store, tiny: TinyFactory):
    with pytest.raises(TrainingFailed, match=r"tiny: expected memory for a batch of 64 .*found 10KB, enough for 39; "):
        trained(store, tiny(train=400), batch_size=64, memory="10KB")


def test_labels_that_are_no_class_are_refused_before_training(store: Store, tiny: TinyFactory):
    labels = (np.arange(400) % 3).astype(np.uint8)
    labels[399] = 7
    with pytest.raises(DataRefused, match="row 399 of the train split is 7"):
        trained(store, tiny(train=400, arrays={"train-labels": labels}), memory="30KB")


MEASURED = """
import resource, sys
from pathlib import Path
import numpy as np
from storage.records import FolderEntry, Split
from tasks.model import network, training_rows as rows
from storage.datasets.training import TrainingConfig
from tasks.model.fitting import Fitting
from tasks.model.holdout import tail
from tasks.model.scaling import Statistics

folder, count = Path(sys.argv[1]), int(sys.argv[2])
config = TrainingConfig(memory="64MiB")
there = Split(FolderEntry(folder), "train", count, (28, 28), 3, "", {})
architecture = network.Architecture(784, (50, 50), "tanh", 3)

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024

network.build(architecture, network.initial_weights(architecture, 1))
before = peak()
with rows.opened("large", there, config, tail(count, 20_000), folder) as opened:
    fitting = Fitting(architecture, config, Statistics(np.zeros(784), 0.6), opened, count - 20_000)
    fitting.epoch(1), fitting.epoch(2), fitting.score(count - 20_000, count)
print(peak() - before)
"""


def test_the_memory_of_a_training_does_not_grow_with_its_rows(tmp_path: Path):
    """300,000 images are 235 MB of pixels; the budget is 64 MiB, the rest is what Arrow and TensorFlow work with."""
    images = np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), np.uint8)
    labels = (np.arange(10_000) % 3).astype(np.uint8)
    record = Split(FolderEntry(tmp_path), "train", 300_000, (28, 28), 3, "", {})
    with parquet.Writer(record.file, (28, 28), ("a", "b", "c")) as writer:
        for _ in range(30):
            writer.write(images, labels)
        writer.close({"image_shape": [28, 28], "rows": record.rows})
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(record.rows)]
    ended = subprocess.run(command, cwd=code_digests.ROOT, capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 256 << 20


def test_the_split_of_a_store_is_dealt_out_in_its_entry_s_own_folder(store: Store, tiny: TinyFactory):
    dataset = tiny(train=400)
    model = trained(store, dataset, epochs=1, batch_size=16, memory="30KB").record
    assert {path.suffix for path in model.entry.folder.iterdir()} == {".json", ".jsonl", ".keras", ".npz"}
    assert split(store, dataset, "train").rows == 400
