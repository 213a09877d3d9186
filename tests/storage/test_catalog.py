"""The catalog and its manifests: what is known, and that nothing else is taken."""

from __future__ import annotations

from pathlib import Path

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


def test_a_gate_of_ones_own(tmp_path: Path):
    gate = '[gate]\npolicy = "not_worse"\nalpha = 0.1\nmargin = 0\nmax_class_loss = 1\n'
    assert read(tmp_path, GOOD + gate).gate == Gate("not_worse", 0.1, 0, 1)
    assert read(tmp_path, GOOD + '[gate]\npolicy = "ask"\n').gate == Gate("ask")


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
