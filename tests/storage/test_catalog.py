"""The catalog and its manifests: what is known, and that nothing else is taken."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cloudpickle
import pytest

from storage.datasets import catalog
from storage.datasets.manifest import Floors, Gate
from storage.datasets.training import training_config

GOOD = 'name = "mine"\nclasses = ["a", "b"]\nimage_shape = [20, 16]\n'
DIGEST = "0" * 64


def read(folder: Path, text: str) -> catalog.Dataset:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return catalog.read(path)


def test_a_byte_order_mark_before_a_manifest_is_left_out(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nclasses = ["a", "b"]\nimage_shape = [2, 2]\n', encoding="utf-8-sig")
    assert catalog.read(path).name == "mine"


@pytest.mark.parametrize("name", catalog.names())
def test_every_data_set_of_the_catalog_is_whole(name: str):
    dataset = catalog.find(name)
    assert dataset.name == name
    assert [a.role for a in dataset.archives] == list(catalog.ROLES)
    assert all(a.pinned for a in dataset.archives)
    assert dataset.embedded or all(a.bytes and len(a.mirrors) == 2 for a in dataset.archives)
    assert dataset.licence != "not stated"
    training_config(dataset)


def test_a_small_manifest_gets_defaults(tmp_path: Path):
    dataset = read(tmp_path, GOOD + 'source = "data"\n')
    assert dataset.source == tmp_path / "data"
    assert dataset.archive("test-labels").file == "t10k-labels-idx1-ubyte.gz"
    assert dataset.floors == Floors()
    assert dataset.gate == Gate("better", 0.05, 0.005, 0.05)
    assert not dataset.archive("train-images").pinned
    assert (dataset.labels, dataset.transpose, dataset.ink) == ((), False, None)


@pytest.mark.parametrize(
    ("short", "written", "labels"),
    [
        ("label_base = 1", "labels = [1, 2]", (1, 2)),
        ("label_base = -1", "labels = [-1, 0]", (-1, 0)),
        ("label_base = 2147483646", "labels = [2147483646, 2147483647]", (2147483646, 2147483647)),
        ("label_base = 0", "labels = [0, 1]", ()),
        ("label_base = 0", "", ()),
    ],
)
def test_a_base_declares_the_same_as_the_labels_that_it_stands_for(
    tmp_path: Path, short: str, written: str, labels: tuple[int, ...]
):
    dataset = read(tmp_path, GOOD + short)
    assert dataset.labels == labels
    assert dataset == read(tmp_path, GOOD + written)


def test_a_gate_of_ones_own(tmp_path: Path):
    gate = '[gate]\npolicy = "not_worse"\nalpha = 0.1\nmargin = 0\nmax_class_loss = 1\n'
    assert read(tmp_path, GOOD + gate).gate == Gate("not_worse", 0.1, 0, 1)
    assert read(tmp_path, GOOD + '[gate]\npolicy = "ask"\n').gate == Gate("ask")


def test_a_whole_number_stays_one_and_a_fraction_too(tmp_path: Path):
    """The keys of results are made from them: with 25.0 in the place of 25, all would be made again."""
    limits = read(tmp_path, GOOD + "[limits]\nmin_pixel_mean = 25\nmax_pixel_mean = 45.0\nmax_imbalance = inf\n").limits
    assert json.dumps([limits.min_pixel_mean, limits.max_pixel_mean, limits.max_imbalance]) == "[25, 45.0, Infinity]"


def test_a_data_set_can_be_sent_to_another_process():
    for name in catalog.names():
        dataset = catalog.find(name)
        assert pickle.loads(pickle.dumps(dataset)) == dataset
        assert cloudpickle.loads(cloudpickle.dumps(dataset)) == dataset


def test_what_training_changes_is_as_json_has_it(tmp_path: Path):
    training = read(tmp_path, GOOD + "[training]\nhidden = [3, 4]\nepochs = 5\n").training
    assert training == {"hidden": [3, 4], "epochs": 5}


def test_mirrors_are_folders_and_single_addresses(tmp_path: Path):
    dataset = read(
        tmp_path,
        'mirrors = ["https://a.example/x/"]\n'
        + GOOD
        + "".join(f'[archives.{role}]\nsha256 = "{DIGEST.upper()}"\n' for role in catalog.ROLES)
        + 'mirrors = ["https://b.example/y.gz"]\n',
    )
    archive = dataset.archive("test-labels")
    assert archive.mirrors == ("https://b.example/y.gz", "https://a.example/x/t10k-labels-idx1-ubyte.gz")
    assert archive.sha256 == DIGEST
